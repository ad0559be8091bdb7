"""On a model and cells that scvi-tools saved, Python, the command line and HTTP give the same numbers, scvi-tools' own.

`expected.npz` beside the model is what scvi-tools 1.5.1 computes for 64 of the cells.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import SCVI, OpenedQuestion, aggregate, compare, find_neighbours, markers, similar_genes
from atlasvi.engine.service.answer_forms import CSV
from tests.engine.distributed.rank_processes import run_command
from tests.engine.service.running import ask, ask_table, serving

GENES = ["ENSG00000023902", "ENSG00000028137", "ENSG00000090104"]  # in the order of the model, which SCVI keeps


@pytest.fixture(scope="module")
def seed_model(shared: Path) -> Path:
    return shared / "scvi_models" / "onek1k_seed"


@pytest.fixture(scope="module")
def client(seed_model: Path) -> Iterator[httpx.Client]:
    with serving(seed_model / "minified.h5ad") as client:
        yield client


def test_the_numbers_are_those_that_scvi_tools_computed(seed_model: Path, client: httpx.Client):
    with np.load(seed_model / "expected.npz") as file:
        expected = dict(file)
    rows = expected["rows"].tolist()
    found = {
        "qz": ask_table(client, "latent", rows=rows, variance=True),
        "mean": ask_table(client, "parameters", rows=rows),
        "library": ask_table(client, "library", rows=rows),
    }
    values = {name: np.array([table[key] for key in list(table)[1:]], float).T for name, table in found.items()}
    np.testing.assert_array_equal(values["qz"][:, :20].astype(np.float32), expected["qzm"])
    np.testing.assert_allclose(values["qz"][:, 20:], expected["qzv"], rtol=1e-6)
    np.testing.assert_array_equal(values["library"][:, 0], expected["library"])
    np.testing.assert_allclose(values["mean"], expected["px_rate_at_qzm"], rtol=2e-4, atol=1e-6)


def by_columns(values: Any, names: list[str]) -> dict[str, list[Any]]:
    return dict(zip(names, np.asarray(values).T.tolist()))


def as_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): table[name].tolist() for name in table}


def latents(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    values = model.get_latent_representation(indices="cell_type=bmem")
    return by_columns(values, [f"z{k}" for k in range(20)])


def expression(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    return as_columns(model.get_normalized_expression(gene_list=GENES, indices=range(9), n_samples=3, library_size=1e4))


def counts(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    drawn = model.posterior_predictive_sample(indices=range(9), gene_list=GENES)
    return by_columns(drawn.todense(), GENES)


def difference(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    return as_columns(
        model.differential_expression(
            idx1="cell_type=bmem",
            idx2="cell_type=monoc",
            mode="change",
            n_samples_overall=200,
            all_stats=False,
            delta=0.5,
        )
    )


SEVEN = {"n_samples": 200, "top": 7}
QUESTIONS: list[tuple[str, list[str], dict[str, Any], Callable[[OpenedQuestion, SCVI], dict[str, list[Any]]]]] = [
    ("latent", ["--where", "cell_type=bmem"], {"where": "cell_type=bmem"}, latents),
    (
        "expression",
        ["--genes", ",".join(GENES), "--limit", "9", "--n-samples", "3", "--library-size", "10000"],
        {"genes": GENES, "limit": 9, "n_samples": 3, "library_size": 10000},
        expression,
    ),
    ("sample", ["--genes", ",".join(GENES), "--limit", "9"], {"genes": GENES, "limit": 9}, counts),
    (
        "differential",
        [
            "--idx1",
            "cell_type=bmem",
            "--idx2",
            "cell_type=monoc",
            "--mode",
            "change",
            "--n-samples",
            "200",
            "--delta",
            "0.5",
        ],
        {"idx1": "cell_type=bmem", "idx2": "cell_type=monoc", "mode": "change", "n_samples": 200, "delta": 0.5},
        difference,
    ),
    (
        "markers",
        ["--labels-key", "cell_type", "--n-samples", "200", "--top", "7"],
        {"labels_key": "cell_type", **SEVEN},
        lambda asked, model: as_columns(markers(asked, "cell_type", **SEVEN)),
    ),
    (
        "compare",
        ["--first", "cell_type=bmem", "--n-samples", "200", "--top", "7"],
        {"first": "cell_type=bmem", **SEVEN},
        lambda asked, model: as_columns(compare(asked, "cell_type=bmem", **SEVEN)),
    ),
    (
        "aggregate",
        ["--by", "cell_type", "--genes", ",".join(GENES), "--max-cells", "20"],
        {"by": "cell_type", "genes": GENES, "max_cells": 20},
        lambda asked, model: as_columns(aggregate(asked, ["cell_type"], genes=GENES, max_cells=20).to_table()),
    ),
    (
        "similar-genes",
        ["--genes", GENES[0], "--top", "5", "--max-cells", "50"],
        {"genes": GENES[0], "top": 5, "max_cells": 50},
        lambda asked, model: as_columns(similar_genes(asked, GENES[:1], top=5, max_cells=50)),
    ),
    (
        "neighbours",
        ["--of", "cell_type=bmem", "--limit", "5", "-k", "3"],
        {"of": "cell_type=bmem", "limit": 5, "k": 3},
        lambda asked, model: {
            name: values[:15] for name, values in as_columns(find_neighbours(asked.kept, "cell_type=bmem", k=3)).items()
        },
    ),
]


@pytest.mark.parametrize(("question", "words", "options", "compute"), QUESTIONS, ids=[each[0] for each in QUESTIONS])
def test_python_the_command_line_and_http_give_the_same_numbers(
    seed_model: Path, client: httpx.Client, question: str, words: list[str], options: dict[str, Any], compute: Callable
):
    done = run_command("query", seed_model / "minified.h5ad", question, *words)
    assert done.returncode == 0, done.stderr
    assert ask(client, question, CSV, **options).text == done.stdout
    columns = ask_table(client, question, **options)
    model = SCVI.load(seed_model, seed_model / "minified.h5ad")
    expected = compute(OpenedQuestion(seed_model / "minified.h5ad"), model)
    assert list(columns)[1:] == list(expected)
    assert len(pd.read_csv(io.StringIO(done.stdout))) == len(next(iter(expected.values()))) > 2
    for name, values in expected.items():
        if isinstance(values[0], str):
            assert columns[name] == values
        else:
            np.testing.assert_array_equal(np.array(columns[name], float), np.array(values, float), err_msg=name)
