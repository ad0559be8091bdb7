"""Each question of `atlasvi query` over HTTP: the options of the command, and its answer."""

import inspect
import io
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from atlasvi.engine.cli.query_app import query_app
from atlasvi.engine.cli.question_command import QUESTIONS
from atlasvi.engine.cli.serve_command import NOT_SERVED, list_served
from atlasvi.engine.service.answer_forms import ARROW, CSV
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.option_models import make_model
from tests.engine.distributed.rank_processes import run_command
from tests.engine.service.running import ask, ask_table, refusal

ASKED: list[tuple[str, list[str], dict[str, Any]]] = [
    ("count", ["--where", "cell_type=B"], {"where": "cell_type=B"}),
    (
        "latent",
        ["--where", "cell_type=B", "--where", "donor > 0", "--variance", "--columns", "donor,batch"],
        {"where": ["cell_type=B", "donor > 0"], "variance": True, "columns": ["donor", "batch"]},
    ),
    (
        "expression",
        ["--genes", "g3,g1", "--sample", "7", "--seed", "3", "--library-size", "10000", "--n-samples", "3"],
        {"genes": ["g3", "g1"], "sample": 7, "seed": 3, "library_size": 10000, "n_samples": 3},
    ),
    ("expression", ["--n-samples-overall", "5", "--genes", "g1"], {"n_samples_overall": 5, "genes": "g1"}),
    (
        "expression",
        ["--transform-batch", "b,a", "--library-size", "observed"],
        {"transform_batch": ["b", "a"], "library_size": "observed"},
    ),
    ("parameters", ["--parameter", "dispersions", "--limit", "3"], {"parameter": "dispersions", "limit": 3}),
    ("library", ["--cells", "c0_3,c0_1"], {"cells": ["c0_3", "c0_1"]}),
    ("sample", ["--n-samples", "2", "--genes", "g2", "--seed", "4"], {"n_samples": 2, "genes": "g2", "seed": 4}),
    (
        "markers",
        ["--labels-key", "cell_type", "--labels", "B,NK", "--top", "3", "--n-samples", "200"],
        {"labels_key": "cell_type", "labels": ["B", "NK"], "top": 3, "n_samples": 200},
    ),
    (
        "compare",
        ["--first", "cell_type=B", "--second", "cell_type=NK", "--n-samples", "100", "--batch-correction"],
        {"first": "cell_type=B", "second": "cell_type=NK", "n_samples": 100, "batch_correction": True},
    ),
    (
        "differential",
        ["--groupby", "cell_type", "--group1", "B,T", "--mode", "change", "--n-samples", "100", "--delta", "0.5"],
        {"groupby": "cell_type", "group1": ["B", "T"], "mode": "change", "n_samples": 100, "delta": 0.5},
    ),
    (
        "differential",
        ["--idx1", "cell_type=B", "--idx2", "donor > 0", "--n-samples", "100"],
        {"idx1": "cell_type=B", "idx2": "donor > 0", "n_samples": 100},
    ),
    ("abundance", ["--sample-key", "donor", "--limit", "4"], {"sample_key": "donor", "limit": 4}),
    (
        "aggregate",
        ["--by", "cell_type,donor", "--genes", "g1,g2", "--fraction-at", "observed", "--max-cells", "3"],
        {"by": ["cell_type", "donor"], "genes": ["g1", "g2"], "fraction_at": "observed", "max_cells": 3},
    ),
    ("similar-genes", ["--genes", "g1", "--top", "4"], {"genes": ["g1"], "top": 4}),
    ("correlation", ["--genes", "g1,g9", "--max-cells", "20"], {"genes": ["g1", "g9"], "max_cells": 20}),
    (
        "neighbours",
        ["--of", "cell_type=B", "-k", "3", "--where", "donor=1", "--columns", "donor", "--by", "posterior"],
        {"of": "cell_type=B", "k": 3, "where": "donor=1", "columns": "donor", "by": "posterior"},
    ),
    ("neighbours", ["--of", "c0_1,c0_2", "-k", "2"], {"of": ["c0_1", "c0_2"], "k": 2}),
]


def read_command(forms: Path, *words: str) -> str:
    done = run_command("query", forms / "x.mini", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("question", "words", "options"), ASKED, ids=[f"{each[0]}-{k}" for k, each in enumerate(ASKED)]
)
def test_the_answer_is_that_of_the_command(forms, client: httpx.Client, question: str, words: list[str], options: dict):
    said = read_command(forms, question, *words)
    response = ask(client, question, CSV, **options)
    assert response.status_code == 200, response.text
    if question == "count":
        assert response.text == f"what,cells\nnumber,{said}"
        return
    assert response.text == said
    with pa.ipc.open_stream(ask(client, question, ARROW, **options).content) as reader:
        arrow = reader.read_all().to_pandas()
    columns = ask_table(client, question, **options)
    assert list(columns) == list(arrow)
    table = pd.read_csv(io.StringIO(said))
    for name, values in columns.items():
        if pd.api.types.is_numeric_dtype(arrow[name]):
            np.testing.assert_array_equal(np.array(values, float), arrow[name].to_numpy(float))
            np.testing.assert_allclose(table[name].to_numpy(float), np.array(values, float), rtol=1e-5)
        else:
            assert values == arrow[name].tolist()


def test_each_question_is_an_endpoint_or_stands_in_a_list_with_the_reason(client: httpx.Client):
    commands = {str(each.name) for each in [*query_app.registered_commands, *query_app.registered_groups]}
    assert commands
    assert set(list_served()) | set(NOT_SERVED) == commands
    assert not set(list_served()) & set(NOT_SERVED)
    paths = client.get("/openapi.json").json()["paths"]
    assert {path.removeprefix("/api/") for path, about in paths.items() if "post" in about and "{" not in path} == set(
        list_served()
    )
    asked = {question for question, _, _ in ASKED}
    assert set(list_served()) - asked == {"batch-vectors", "annotate"}, "each is asked in this file"


@pytest.mark.parametrize("name", sorted(list_served()))
def test_names_and_defaults_of_options_are_those_of_the_command(name: str):
    question = QUESTIONS[name]
    model = make_model(question, Limits())
    local = {"new_cells", "index"} | ({"cells"} if name in ("neighbours", "annotate") else set())
    expected = {option.name: option.default for option in question.options if option.name not in local}
    fields = dict(model.model_fields)
    for added in ("rows", "polygon"):
        assert (added in fields) == ("where" in expected)
        assert added not in fields or fields.pop(added).default is None
    assert set(fields) == set(expected)
    for option, default in expected.items():
        if default in (inspect.Parameter.empty, ...):
            assert fields[option].is_required()
        else:
            assert fields[option].default == default
            assert fields[option].description


def test_vectors_of_batches_are_refused_of_a_model_without(client: httpx.Client):
    assert "batch_representation" in refusal(ask(client, "batch-vectors"), 400)


def test_an_option_that_would_have_no_effect_is_refused(client: httpx.Client):
    assert "no effect" in refusal(ask(client, "expression", weights="uniform"), 400)
    assert "no effect" in refusal(ask(client, "latent", seed=0), 400)


def test_cells_are_chosen_by_their_indices_too(client: httpx.Client):
    names = ask_table(client, "latent")["cell"]
    assert ask_table(client, "latent", rows=[7, 3])["cell"] == [names[3], names[7]]
    both = ask_table(client, "latent", rows=list(range(20)), where="cell_type=B", columns="cell_type")
    assert set(both["cell_type"]) == {"B"}
    assert set(both["cell"]) < set(names[:20])
    assert ask_table(client, "count", rows=[1, 2, 3])["cells"] == [3]
    by_rows = ask_table(client, "compare", first=[0, 1, 2], second=[5, 6], n_samples=50)
    assert len(by_rows["gene"]) == 40
    assert set(by_rows["group1"]) == {"first"}
    near = ask_table(client, "neighbours", of=[4, 5], k=1)
    assert near["cell"] == [names[4], names[5]]
    assert "no cell 60" in refusal(ask(client, "latent", rows=[60]), 400)


def test_new_counts_are_labelled_and_their_neighbours_found(forms: Path, client: httpx.Client):
    counts = (forms / "cells.h5ad").read_bytes()
    send = {"Content-Type": "application/x-hdf5", "Accept": CSV}
    for question, words, options in (
        (
            "annotate",
            ["--labels-key", "cell_type", "--columns", "donor", "-k", "5"],
            "labels_key=cell_type&columns=donor&k=5",
        ),
        ("neighbours", ["-k", "2", "--limit", "3"], "k=2&limit=3"),
    ):
        said = run_command("query", forms / "x.mini", forms / "cells.h5ad", question, *words)
        assert said.returncode == 0, said.stderr
        response = client.post(f"/api/{question}?{options}", content=counts, headers=send)
        assert response.status_code == 200, response.text
        assert response.text == said.stdout
    note = client.post(
        "/api/annotate?labels_key=cell_type&limit=2", content=counts, headers=send | {"Accept": "application/json"}
    ).json()
    assert note["n_rows"] == 2
    assert "judged by other batches" in note["note"]
    sentence = refusal(client.post("/api/annotate?labels_key=cell_type", content=b"abc", headers=send), 400)
    assert "the new counts" in sentence
    assert "/tmp" not in sentence
    assert "application/json" in refusal(client.post("/api/latent", content=counts, headers=send), 415)
    assert "annotate needs new cells" in refusal(ask(client, "annotate", labels_key="cell_type"), 400)
