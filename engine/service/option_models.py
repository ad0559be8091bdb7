"""The options of a question as a pydantic model: the same names, defaults and limits as on the command line."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import typer.models
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
)

from atlasvi.engine.queries.question import CellsBy, NamesOf, NumberOrWord, OfThisMachine, Question
from atlasvi.engine.service.areas import Area, Polygon
from atlasvi.engine.service.limits import Limits

NO_FILE = "^([^@]|$)"  # @FILE stands for a file of names on the command line
EXACT = 2**53  # up to here JSON's numbers are exact integers everywhere
Rows = list[Annotated[int, Field(ge=0, le=EXACT)]]


class Options(BaseModel):
    """The body of a question."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class CellOptions(Options):
    """The body of a question about chosen cells."""

    rows: Rows | None = Field(None, description="Only these cells of the store, by their indices from 0.")
    polygon: Polygon | None = Field(None, description="Only the cells in this polygon of the embedding.")


def make_model(question: Question, limits: Limits) -> type[Options]:
    """The model of the body of a question: one field for each option that means something over HTTP."""
    fields: dict[str, Any] = {}
    for option in question.options:
        base, marks = _split(option.annotation)
        if not _is_local(base, marks):
            most = {
                "n_samples": limits.most_samples,
                "n_samples_overall": limits.most_samples,
                "k": limits.most_neighbours,
            }
            if question.name == "annotate":
                most = {"n_samples": limits.most_of_new, "k": limits.most_of_new}
            fields[option.name] = _make_field(option, base, marks, limits, most.get(option.name))
    name = "".join(part.capitalize() for part in question.name.split("-"))
    base = CellOptions if "where" in fields else Options
    return create_model(name, __base__=base, __doc__=question.about, **fields)


def read_options(model: type[Options], body: bytes | Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The options of a question by name, as its `answer` takes them, and the rows that it is about (None: all).

    Options that were not given are left out. Raises ValueError, with a sentence, for a body that the model refuses.
    """
    try:
        if isinstance(body, bytes):
            found = model.model_validate_json(body or b"{}")
        else:
            found = model.model_validate(dict(body))
    except ValidationError as error:
        raise ValueError(_explain(error, model)) from None
    options = {name: getattr(found, name) for name in found.model_fields_set}
    rows = options.pop("rows", None)
    for name, value in options.items():
        options[name] = _to_argument(value)
    return options, None if rows is None else np.array(rows, np.int64)


def complete(question: Question, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those that are left out."""
    return {
        option.name: options.get(option.name, None if option.default is option.empty else option.default)
        for option in question.options
    }


def find_marked(question: Question, mark: Any) -> list[str]:
    """The names of the options that carry a mark: one that is equal, or of a class."""
    found = []
    for option in question.options:
        marks = _split(option.annotation)[1]
        if any(each == mark or (isinstance(mark, type) and isinstance(each, mark)) for each in marks):
            found.append(option.name)
    return found


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    base, *marks = get_args(annotation)
    return base, tuple(marks)


def _is_local(base: Any, marks: tuple[Any, ...]) -> bool:
    return any(isinstance(mark, OfThisMachine) for mark in marks) or Path in (base, *get_args(base))


def _make_field(
    option: inspect.Parameter, base: Any, marks: tuple[Any, ...], limits: Limits, most: int | None
) -> tuple[Any, Any]:
    info = next((mark for mark in marks if isinstance(mark, typer.models.OptionInfo)), None)
    kinds: list[Any] = [part for part in get_args(base) if part is not type(None)] or [base]
    optional = type(None) in get_args(base)
    if get_origin(base) is not None and type(None) not in get_args(base):
        kinds = [base]  # a Literal, or a list
    text = Annotated[str, Field(max_length=limits.text_characters)]
    names = Annotated[list[Annotated[str, Field(max_length=1_000)]], Field(min_length=1)]
    for mark in marks:
        if isinstance(mark, NamesOf):
            kinds = [Annotated[str, Field(max_length=limits.body_bytes, pattern=NO_FILE)], names]
        elif isinstance(mark, CellsBy):
            kinds = [Annotated[text, Field(pattern=NO_FILE)], Rows, Area, *[names] * mark.names]
        elif isinstance(mark, NumberOrWord):
            kinds = [Annotated[float | text, AfterValidator(_to_text)]]
    if kinds == [list[str]]:
        kinds = [Annotated[text | list[text], AfterValidator(_to_list)]]
    kinds = [text if kind is str else kind for kind in kinds]
    if kinds == [bool]:
        kinds = [Annotated[bool, BeforeValidator(_check_truth)]]
    elif kinds in ([int], [float]) and info is not None:
        largest = [each for each in (most, info.max, EXACT if kinds == [int] else None) if each is not None]
        bounds = Field(ge=info.min, le=min(largest, default=None))
        kinds = [Annotated[kinds[0], bounds, BeforeValidator(_check_number)]]
    annotated: Any = kinds[0]
    for kind in kinds[1:]:
        annotated = annotated | kind
    if optional:
        annotated = annotated | None
    default = ... if option.default in (option.empty, ...) else option.default
    return annotated, Field(default, description=info.help if info else None)


def _check_number(value: Any, info: ValidationInfo) -> Any:
    """Refuse what JSON does not take for a number; a query parameter is text in any case."""
    if isinstance(value, bool) or (isinstance(value, str) and info.mode == "json"):
        raise ValueError("it must be a number")
    return value


def _check_truth(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, bool) and info.mode == "json":
        raise ValueError("it must be true or false")
    return value


def _to_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _to_argument(value: Any) -> Any:
    """A value of the model as a question takes it: rows as an array."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        return np.array(value, np.int64)
    return value


def _to_text(value: float | str) -> str:
    return f"{value:.17g}" if isinstance(value, float) else value


def _explain(error: ValidationError, model: type[Options]) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"There is no option {place!r}: this question has {', '.join(model.model_fields)}."
    if first["type"] == "missing":
        return f"The option {place!r} is missing."
    if first["type"] == "string_pattern_mismatch":
        return f"The option {place!r} is text that does not begin with @: send a list of names instead of a file."
    where = f"The option {place!r}: " if place else "The body: "
    return f"{where}{first['msg'].removeprefix('Value error, ')}."
