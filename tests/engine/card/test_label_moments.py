import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from atlasvi.engine.card.label_moments import LabelMoments, normalise
from tests.engine.card.counts import make_counts

LABELS = np.random.default_rng(1).integers(0, 3, 60)


def stream(counts: sparse.csr_matrix, labels: np.ndarray, n_labels: int, step: int = 7) -> LabelMoments:
    moments = LabelMoments.empty(n_labels, counts.shape[1])
    for at in range(0, counts.shape[0], step):
        moments.add(counts[at : at + step], labels[at : at + step])
    return moments


def test_welch_tests_of_streamed_moments_are_those_of_scipy_on_cells_in_memory():
    counts = make_counts()
    dense = counts.toarray().astype(float)
    logs = np.log1p(dense * (1e4 / np.maximum(dense.sum(1, keepdims=True), 1)))
    np.testing.assert_allclose(normalise(counts).toarray(), logs, rtol=1e-12)
    halves = stream(counts[:30], LABELS[:30], 3) + stream(counts[30:], LABELS[30:], 3)
    for moments in (stream(counts, LABELS, 3), halves):
        found = moments.welch_tests()
        assert found.untested == {}
        for label in range(3):
            inside, outside = logs[label == LABELS], logs[label != LABELS]
            expected = stats.ttest_ind(inside[:, :-1], outside[:, :-1], equal_var=False)
            np.testing.assert_allclose(found.scores[label, :-1], np.nan_to_num(expected.statistic), rtol=1e-8)
            np.testing.assert_allclose(found.p_values[label, :-1], np.nan_to_num(expected.pvalue, nan=1), rtol=1e-8)
            change = (np.expm1(inside.mean(0)) + 1e-9) / (np.expm1(outside.mean(0)) + 1e-9)
            np.testing.assert_allclose(found.log2_fold_changes[label], np.log2(change), rtol=1e-8, atol=1e-12)
            assert (found.scores[label, -1], found.p_values[label, -1]) == (0, 1)  # a gene without counts
            np.testing.assert_allclose(found.adjusted[label], stats.false_discovery_control(found.p_values[label]))


def test_welch_tests_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy")
    counts = make_counts(80, 40, 3)
    labels = np.random.default_rng(2).integers(0, 3, 80)
    adata = anndata.AnnData(
        counts.astype(np.float64),
        pd.DataFrame({"label": pd.Categorical(labels.astype(str))}, index=map(str, range(80))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.normalize_total(adata, target_sum=1e4)
        scanpy.pp.log1p(adata)
        scanpy.tl.rank_genes_groups(adata, "label", method="t-test")
    found = stream(counts, labels, 3).welch_tests()
    for label in range(3):
        theirs = scanpy.get.rank_genes_groups_df(adata, str(label)).set_index("names").loc[adata.var_names]
        np.testing.assert_allclose(found.scores[label], theirs["scores"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.log2_fold_changes[label], theirs["logfoldchanges"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.adjusted[label], theirs["pvals_adj"], rtol=1e-5)


def test_labels_without_a_test_are_named_with_the_reason_and_the_others_are_tested():
    labels = np.where(np.arange(60) < 30, 0, 1)
    labels[5] = 2
    found = stream(make_counts(), labels, 4).welch_tests()
    assert found.untested == {2: "it has one cell, and a variance needs two", 3: "it has no cell"}
    assert np.isnan(found.scores[[2, 3]]).all()
    assert np.isfinite(found.scores[:2]).all()
    one = stream(make_counts(), np.zeros(60, int), 1).welch_tests()
    assert one.untested == {0: "no cell has another label"}
    labels = np.zeros(60, int)
    labels[7] = 1
    assert (
        stream(make_counts(), labels, 2).welch_tests().untested[0].startswith("all other labels together have one cell")
    )


def test_cells_without_a_label_are_left_out_of_label_and_rest():
    counts, labels = make_counts(), LABELS.copy()
    labels[::4] = -1
    expected = stream(counts[labels >= 0], labels[labels >= 0], 3).welch_tests()
    np.testing.assert_allclose(stream(counts, labels, 3).welch_tests().scores, expected.scores, rtol=1e-9)


def test_a_gene_that_is_constant_has_no_difference_whatever_rounding_leaves_of_its_variance():
    counts = sparse.csr_matrix(np.tile(np.array([[3.0, 7.0, 1.0]], np.float32), (50, 1)))
    found = stream(counts, np.arange(50) % 2, 2).welch_tests()
    assert (found.scores == 0).all()
    assert (found.p_values == 1).all()
