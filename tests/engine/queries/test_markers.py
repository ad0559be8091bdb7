"""Markers of labels, and two selections compared: against the comparison of one pair of groups, and scvi-tools."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import OpenedQuestion, compare, markers, open_minified
from atlasvi.engine.queries.differential import differential_expression
from atlasvi.engine.queries.draw_comparison import Test as Comparison
from atlasvi.engine.queries.draw_comparison import control_fdr
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError

N_SAMPLES = 20_000


@pytest.fixture(scope="module")
def opened(forms: Path) -> OpenedQuestion:
    return OpenedQuestion(forms / "x.mini")


def by_gene(table: pd.DataFrame, group: str) -> pd.DataFrame:
    return table[table["group1"] == group].sort_index()


@pytest.mark.parametrize("batch_correction", [False, True])
def test_each_label_has_the_numbers_of_one_comparison_alone(opened: OpenedQuestion, batch_correction: bool):
    model = opened.run.model
    alone = differential_expression(
        model,
        opened.cells,
        pd.Index(opened.run.genes),
        opened.make_generator(1),
        Comparison("change", n_samples_overall=N_SAMPLES, use_observed_batches=not batch_correction),
        n_batches=model.settings.n_batches,
        groupby="cell_type",
        all_stats=False,
    )
    together = markers(opened, "cell_type", n_samples=N_SAMPLES, batch_correction=batch_correction)
    assert together["group1"].unique().tolist() == ["B", "NK", "T"]
    assert set(alone.columns) <= set(together.columns)
    for group in ("B", "NK", "T"):
        one, other = by_gene(alone, group), by_gene(together, group)
        for name, tolerance in {"lfc_mean": 0.04, "lfc_median": 0.05, "lfc_std": 0.04, "proba_de": 0.03}.items():
            np.testing.assert_allclose(one[name], other[name], atol=tolerance, err_msg=f"{group} {name}")
        np.testing.assert_allclose(one["scale1"], other["scale1"], rtol=0.03)
        np.testing.assert_allclose(one["scale2"], other["scale2"], rtol=0.03)
        np.testing.assert_allclose(one["pseudocounts"], other["pseudocounts"], rtol=0.2)


def test_counts_of_the_cells_are_described_if_there_are_any(forms: Path):
    counted = OpenedQuestion(forms / "model", str(forms / "cells.h5ad"))
    table = by_gene(markers(counted, "cell_type", n_samples=100), "B").loc[counted.run.genes]
    obs = counted.cells.read_column("cell_type")
    (batch,) = counted.cells.read_batches(counted.run.model)
    counts = batch.to_dense().numpy()
    np.testing.assert_allclose(table["raw_mean1"], counts[obs == "B"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["non_zeros_proportion2"], (counts[obs != "B"] > 0).mean(0), rtol=1e-5)


def test_the_best_markers_come_first_with_their_expected_false_discoveries(opened: OpenedQuestion):
    everything = markers(opened, "cell_type", n_samples=500, fdr_target=0.2)
    one = everything[everything["group1"] == "T"]
    up = one[one["lfc_mean"] > 0]
    assert one.index[: len(up)].tolist() == up.index.tolist()
    assert up["proba_de"].is_monotonic_decreasing
    assert one["proba_de"][len(up) :].is_monotonic_increasing
    certain = one.sort_values("proba_de", ascending=False, kind="stable")
    expected = np.cumsum(1 - certain["proba_de"]) / np.arange(1, len(one) + 1)
    np.testing.assert_allclose(certain["fdr"].max(), expected.max())
    np.testing.assert_allclose(np.sort(certain["fdr"]), np.sort(expected))
    assert certain["is_de_fdr_0.2"].sum() == control_fdr(certain["proba_de"].to_numpy(), 0.2).sum()
    best = markers(opened, "cell_type", n_samples=500, fdr_target=0.2, top=3)
    assert len(best) == 9
    pd.testing.assert_frame_equal(best[best["group1"] == "T"], one.iloc[:3])


def test_the_same_answer_comes_from_a_path_a_store_and_an_opened_question(forms: Path, opened: OpenedQuestion):
    tables = [
        markers(asked, "cell_type", n_samples=50, seed=3)
        for asked in (opened, forms / "x.mini", str(forms / "x.mini"), open_minified(forms / "x.mini"))
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_only_chosen_cells_are_in_any_group(opened: OpenedQuestion):
    kinds = opened.cells.read_column("cell_type")
    chosen = np.flatnonzero(kinds.isin(["B", "NK"]))
    one = markers(opened, "cell_type", chosen=chosen, n_samples=N_SAMPLES, labels=["B"])
    assert one["comparison"].unique().tolist() == ["B vs Rest"]
    pair = compare(opened, "cell_type=B", "cell_type=NK", n_samples=N_SAMPLES)
    np.testing.assert_allclose(one.sort_index()["lfc_mean"], pair.sort_index()["lfc_mean"], atol=0.04)
    assert pair["proba_de"].is_monotonic_decreasing
    assert pair["comparison"].unique().tolist() == ["cell_type=B vs cell_type=NK"]


def test_without_a_second_selection_all_other_cells_are_compared_with(opened: OpenedQuestion):
    table = compare(opened, "cell_type=B", n_samples=N_SAMPLES, top=5)
    assert len(table) == 5
    assert table["group2"].unique().tolist() == ["Rest"]
    alone = by_gene(markers(opened, "cell_type", n_samples=N_SAMPLES), "B")
    np.testing.assert_allclose(table["lfc_mean"], alone.loc[table.index, "lfc_mean"], atol=0.05)


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        (lambda asked: markers(asked, "kind"), ColumnError, "kind"),
        (lambda asked: markers(asked, "cell_type", labels=["C"]), QueryError, "there are: B, NK, T"),
        (lambda asked: markers(asked, "cell_type", chosen=np.empty(0, np.int64)), QueryError, "none of these cells"),
        (lambda asked: markers(asked, "cell_type", top=0), QueryError, "top is 0"),
        (lambda asked: markers(asked, "cell_type", fdr_target=2), QueryError, "fdr_target is 2"),
        (lambda asked: markers(asked, "cell_type", pseudocounts=0), QueryError, "pseudocounts is 0"),
        (lambda asked: compare(asked, "cell_type=B", "batch=a"), QueryError, "are in both selections"),
        (lambda asked: compare(asked, np.zeros(60, bool)), QueryError, "the first selection has no cells"),
        (lambda asked: compare(asked, "n_counts >= 0"), QueryError, "the second selection has no cells"),
    ],
)
def test_a_question_without_an_answer_is_refused(opened: OpenedQuestion, question, error: type, message: str):
    with pytest.raises(error, match=message):
        question(opened)


def test_one_label_alone_has_nothing_to_be_compared_with(opened: OpenedQuestion):
    chosen = np.flatnonzero(opened.cells.read_column("cell_type") == "B")
    with pytest.raises(QueryError, match="all these cells have cell_type = 'B'"):
        markers(opened, "cell_type", chosen=chosen)


@pytest.mark.slow
def test_markers_agree_with_scvi_tools_as_its_own_seeds_do(shared: Path):
    """`tests/golden/markers.npz`: what scvi-tools 1.5.1 said with seeds 0 and 1 (benchmarks/peers/differential.py)."""
    with np.load(Path(__file__).parents[2] / "golden" / "markers.npz") as file:
        theirs = dict(file)
    asked = OpenedQuestion(shared / "scvi_models" / "onek1k_seed", str(shared / "data" / "onek1k.h5ad"))
    table = markers(asked, "cell_type")
    for k, group in enumerate(theirs["groups"].tolist()):
        ours = table[table["group1"] == group].loc[theirs["genes"]]
        for name in ("lfc_mean", "proba_de", "scale1", "scale2"):
            one, other = theirs[name][:, k]
            spread = np.abs(one - other).mean()
            assert np.abs(ours[name] - one).mean() < 1.5 * spread + 1e-6, f"{group} {name}"
        numbers = theirs["is_de"][:, k].sum(1)
        assert abs(int(ours["is_de_fdr_0.05"].sum()) - numbers.mean()) <= 0.05 * numbers.mean()
