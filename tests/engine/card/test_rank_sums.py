import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from atlasvi.engine.card.label_moments import LabelMoments, normalise
from atlasvi.engine.card.rank_sums import rank_sum_tests
from tests.engine.card.counts import make_counts


def test_rank_sums_are_those_of_scipy_and_fold_changes_those_of_the_t_test():
    n_genes = 70
    counts, labels = make_counts(80, n_genes), np.random.default_rng(1).integers(0, 3, 80)
    found, logs = rank_sum_tests(counts, labels, 4), normalise(counts).toarray()
    assert found.untested == {3: "it has no cell"}
    moments = LabelMoments.empty(4, n_genes)
    moments.add(counts, labels)
    np.testing.assert_allclose(found.log2_fold_changes, moments.welch_tests().log2_fold_changes, rtol=1e-8, atol=1e-12)
    for label in range(3):
        for gene in range(n_genes):
            expected = stats.ranksums(logs[labels == label, gene], logs[labels != label, gene])
            assert found.scores[label, gene] == pytest.approx(expected.statistic, rel=1e-9, abs=1e-12)
            assert found.p_values[label, gene] == pytest.approx(expected.pvalue, rel=1e-9)


def test_rank_sums_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy")
    counts, labels = make_counts(80, 40, 3), np.random.default_rng(2).integers(0, 3, 80)
    obs = pd.DataFrame({"label": pd.Categorical(labels.astype(str))}, index=map(str, range(80)))
    adata = anndata.AnnData(counts.astype(np.float64), obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.normalize_total(adata, target_sum=1e4)
        scanpy.pp.log1p(adata)
        scanpy.tl.rank_genes_groups(adata, "label", method="wilcoxon")
    found = rank_sum_tests(counts, labels, 3)
    for label in range(3):
        theirs = scanpy.get.rank_genes_groups_df(adata, str(label)).set_index("names").loc[adata.var_names]
        # scanpy's scaling rounds twice, and so breaks a few ties of equal proportions
        np.testing.assert_allclose(found.scores[label], theirs["scores"], atol=0.02)
        assert np.median(np.abs(found.scores[label] - theirs["scores"])) < 1e-6
        np.testing.assert_allclose(found.adjusted[label], theirs["pvals_adj"], atol=0.02)


def test_equal_proportions_of_cells_of_other_sizes_are_ties():
    counts = sparse.csr_matrix(np.array([[1, 2], [7, 14], [3, 6], [49, 98]], np.float32))
    assert len(np.unique(normalise(counts)[:, 0].toarray())) == 1
    found = rank_sum_tests(counts, np.array([0, 1, 0, 1]), 2)
    assert (found.scores == 0).all()


def test_values_below_zero_rank_below_the_zeros():
    drawn = np.array([[9999, -0.5, 3], [9998, 3, 2], [9999, 0, 1], [9998, 2, 0], [9999, -0.25, -0.5], [9998, 0, 2]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    found, logs = rank_sum_tests(sparse.csr_matrix(drawn), labels, 2), normalise(sparse.csr_matrix(drawn)).toarray()
    expected = stats.ranksums(logs[labels == 0], logs[labels == 1]).statistic
    np.testing.assert_allclose(found.scores[0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.scores[1], -expected, rtol=1e-12)
