"""On a model and cells that scvi-tools saved, Python, the command line and HTTP give the same numbers, scvi-tools' own.

`expected.npz` beside the model is what scvi-tools 1.5.1 computes for 64 of the cells; `tests/golden/answers.npz` holds
what it answers with each of five seeds where it draws (tests/golden/make_answers.py).
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
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.queries.correlation import correlate_genes
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


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "golden" / "answers.npz") as file:
        return dict(file)


def measure_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far an answer is from scvi-tools' own with its seeds, as a multiple of how far one more of these would be:
    about 1. Of [seeds, cells, genes], genes weigh the same, whatever their expression.
    """
    variance = theirs.astype(np.float64).var(0, ddof=1)
    size = np.maximum(variance.mean(0), 1e-12)
    squares = np.square(ours - theirs.mean(0, dtype=np.float64)) / (1 + 1 / len(theirs))
    return float(np.sqrt((squares / size).mean() / (variance / size).mean()))


def read_values(table: dict[str, list[Any]], names: Any) -> np.ndarray:
    return np.array([table[str(name)] for name in names], float).T


def test_draws_of_cells_have_the_distribution_that_they_have_in_scvi_tools(client: httpx.Client, drawn: dict):
    genes, rows = drawn["genes"].tolist(), drawn["rows"].tolist()
    chosen = {"genes": genes, "rows": rows}
    batches = {"transform_batch": drawn["batches"].tolist()}
    scaled = {**chosen, "library_size": 10_000, "n_samples": 10}
    counts = read_values(ask_table(client, "sample", n_samples=20, **chosen), genes).reshape(len(rows), 20, -1)
    found = {
        "expression": read_values(ask_table(client, "expression", **scaled), genes),
        "expression_as": read_values(ask_table(client, "expression", **scaled, **batches), genes),
        "sample": counts.mean(1),
        "sample_square": np.square(counts).mean(1),
        "pearson": read_values(ask_table(client, "correlation", method="pearson", **chosen), genes),
        "spearman": read_values(ask_table(client, "correlation", **chosen), genes),
        "spearman_as": read_values(ask_table(client, "correlation", **chosen, **batches), genes),
    }
    distances = {name: measure_distance(values, drawn[name]) for name, values in found.items()}
    assert min(distances.values()) > 0.75, distances  # neither the same numbers nor less noise
    assert max(distances.values()) < 1.35, distances
    dispersions = ask_table(client, "parameters", parameter="dispersions", **chosen)
    np.testing.assert_allclose(read_values(dispersions, genes), drawn["dispersions"][0], rtol=1e-6)


def test_comparisons_of_groups_are_as_far_from_scvi_tools_as_it_is_from_itself(client: httpx.Client, drawn: dict):
    """The cells that are drawn are the same for all genes, so scvi-tools' own seeds have distances of 0.2 to 3.2."""
    one, other = drawn["groups"].tolist()
    asked = {"groupby": "cell_type", "group1": one, "n_samples": 1_000}
    for name, options in (
        ("vanilla", {"group2": other}),
        ("corrected", {"group2": other, "batch_correction": True}),
        ("change", {"group2": other, "mode": "change"}),
        ("rest", {"mode": "change"}),
    ):
        table = pd.DataFrame(ask_table(client, "differential", **asked, **options)).set_index("gene")
        columns = {key: key.removeprefix(f"{name}_") for key in drawn if key.startswith(f"{name}_")}
        distances = {}
        for key, column in columns.items():
            ours, theirs = table.loc[drawn["compared"], column].to_numpy(float), drawn[key]
            if column in ("scale1", "scale2"):  # else the few most expressed genes decide
                ours, theirs = np.log(ours), np.log(theirs)
            distances[key] = measure_distance(ours, theirs)
        assert len(distances) >= 4
        assert max(distances.values()) < 2.5, distances


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


def draws(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    values = model.get_normalized_expression(gene_list=GENES, indices="cell_type=bmem", n_samples_overall=9)
    return by_columns(values, GENES)


def parameters(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    found = model.get_likelihood_parameters(indices=range(9))["dispersions"]
    return by_columns(found[:, [model.run.genes.index(gene) for gene in GENES]], GENES)


def library(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    return by_columns(model.get_latent_library_size(indices=range(9), give_mean=False), ["library"])


def correlations(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    columns = np.array([model.run.genes.index(gene) for gene in GENES])  # SCVI's method draws all genes, and so others
    rows = choose_cells(asked.cells, where=["cell_type == 'bmem' and age > 76"])
    options = {"indices": rows, "columns": columns, "n_samples": 2}
    return by_columns(correlate_genes(asked.run.model, asked.cells, asked.make_generator(0), **options), GENES)


def densities(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    found = model.differential_abundance(sample_key="sex", num_cells_posterior=50)
    return as_columns(found.iloc[:9])


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


def higher(asked: OpenedQuestion, model: SCVI) -> dict[str, list[Any]]:
    options = {"n_samples_overall": 200, "all_stats": False}
    return as_columns(model.differential_expression(groupby="cell_type", group1=["bmem"], **options))


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
        "expression",
        ["--genes", ",".join(GENES), "--where", "cell_type=bmem", "--n-samples-overall", "9"],
        {"genes": GENES, "where": "cell_type=bmem", "n_samples_overall": 9},
        draws,
    ),
    (
        "parameters",
        ["--parameter", "dispersions", "--genes", ",".join(GENES), "--limit", "9"],
        {"parameter": "dispersions", "genes": GENES, "limit": 9},
        parameters,
    ),
    ("library", ["--limit", "9"], {"limit": 9}, library),
    (
        "correlation",
        ["--genes", ",".join(GENES), "--where", "cell_type == 'bmem' and age > 76", "--n-samples", "2"],
        {"genes": GENES, "where": "cell_type == 'bmem' and age > 76", "n_samples": 2},
        correlations,
    ),
    (
        "abundance",
        ["--sample-key", "sex", "--max-cells", "50", "--limit", "9"],
        {"sample_key": "sex", "max_cells": 50, "limit": 9},
        densities,
    ),
    (
        "differential",
        ["--groupby", "cell_type", "--group1", "bmem", "--n-samples", "200"],
        {"groupby": "cell_type", "group1": "bmem", "n_samples": 200},
        higher,
    ),
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
