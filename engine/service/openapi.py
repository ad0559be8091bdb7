"""The description of the endpoints, in OpenAPI 3.1, from the questions and the models of their options."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from atlasvi.engine.queries.question import OfThisMachine, Question
from atlasvi.engine.service.answer_forms import ARROW, CSV, JSON
from atlasvi.engine.service.option_models import find_marked
from atlasvi.engine.service.received import COUNTS

ERRORS = {
    400: "The question can't be answered: a name, a column or a value is wrong.",
    401: "The token is missing or wrong.",
    403: "A page of another site asked.",
    404: "There is nothing at this address.",
    405: "The address is not for this method.",
    406: "None of the forms of answers is accepted.",
    408: "The body came too slowly.",
    413: "The body, or the answer, is too large.",
    415: "The body is not JSON.",
    421: "The Host header names another machine.",
    422: "The body does not fit the question.",
    500: "The service failed, or the store is damaged.",
    501: "A library that this needs is not installed.",
    503: "The service is busy, or the answer takes too long.",
}
COLUMNS = {
    "type": "object",
    "required": ["row", "n_rows", "columns", "warnings"],
    "properties": {
        "row": {"type": "string", "description": "The column that holds the names of the rows."},
        "n_rows": {"type": "integer"},
        "columns": {
            "type": "object",
            "description": "The values of each column; null where one is missing, 'Infinity' or '-Infinity' as text.",
            "additionalProperties": {"type": "array"},
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
    },
}


def describe(
    questions: Mapping[str, Question], models: Mapping[str, type[BaseModel]], cells: type[BaseModel], secured: bool
) -> dict[str, Any]:
    """The document. `cells`: the model of a choice of cells; secured: whether a token is needed."""
    _, defined = models_json_schema(
        [(model, "validation") for model in [*models.values(), cells]], ref_template="#/components/schemas/{model}"
    )
    forms = {
        JSON: {"schema": {"$ref": "#/components/schemas/Columns"}},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
        CSV: {"schema": {"type": "string"}},
    }
    anything = {JSON: {"schema": {"type": "object"}}}
    column = [{"name": "column", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    pattern = [{"name": "pattern", "in": "query", "schema": {"type": "string", "maxLength": 1_000}}]
    paths: dict[str, Any] = {
        "/api/info": {"get": _operation("info", "What the store is, and what can be asked of it.", anything)},
        "/api/genes": {
            "get": _operation("genes", "Genes whose name contains a text.", anything) | {"parameters": pattern}
        },
        "/api/obs/{column}": {
            "parameters": column,
            "get": _operation("column", "Values of an obs column with their numbers of cells, or its range.", anything),
            "post": _operation("column-of", "The same for chosen cells.", anything, cells.__name__),
        },
    }
    for name, question in questions.items():
        operation = _operation(name, question.about, forms, models[name].__name__)
        if find_marked(question, OfThisMachine):
            operation["requestBody"]["content"][COUNTS] = {"schema": {"type": "string", "format": "binary"}}
            operation["description"] = (
                f"With a body of new counts, an h5ad file ({COUNTS}), the options are query parameters."
            )
        paths[f"/api/{name}"] = {"post": operation}
    schemas = {
        **defined.get("$defs", {}),
        "Columns": COLUMNS,
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "atlasvi", "version": version("atlasvi")},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if secured:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _operation(name: str, about: str, answer: dict[str, Any], body: str | None = None) -> dict[str, Any]:
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": answer}}
    responses |= {str(status): {"description": why, "content": error} for status, why in ERRORS.items()}
    found: dict[str, Any] = {"operationId": name, "summary": about, "responses": responses}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body}"}
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return found
