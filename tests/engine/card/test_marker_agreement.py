import numpy as np
import pytest

from atlasvi.engine.card.label_moments import GroupTests
from atlasvi.engine.card.marker_agreement import average_precision, find_markers, marker_agreement, roc_auc


def make_tests(n_genes: int, seed: int, **changed: object) -> GroupTests:
    random = np.random.default_rng(seed)
    scores, changes = random.normal(size=(2, 2, n_genes))
    values = {
        "scores": scores,
        "p_values": scores,
        "adjusted": random.random((2, n_genes)),
        "log2_fold_changes": changes,
    }
    return GroupTests(**{**values, "untested": {}, **changed})


def test_the_areas_are_those_of_scikit_learn_with_ties_too():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for decimals in (0, 1, 8):
        scores, markers = np.round(random.normal(size=300), decimals), random.random(300) < 0.2
        assert roc_auc(markers, scores) == pytest.approx(metrics.roc_auc_score(markers, scores))
        assert average_precision(markers, scores) == pytest.approx(metrics.average_precision_score(markers, scores))
    assert np.isnan(roc_auc(np.ones(4, bool), scores[:4]))
    assert np.isnan(average_precision(np.zeros(4, bool), scores[:4]))


@pytest.mark.parametrize(("n_genes", "n_top"), [(1_500, 100), (400, 40)])
def test_the_overlap_is_of_100_genes_or_of_a_tenth_of_few(n_genes: int, n_top: int):
    real, drawn = make_tests(n_genes, 0), make_tests(n_genes, 1)
    found = marker_agreement(drawn, real, 1)
    best = [set(np.argsort(-tests.scores[1])[:n_top].tolist()) for tests in (real, drawn)]
    assert found.gene_f1 == pytest.approx(len(best[0] & best[1]) / n_top)
    assert marker_agreement(real, real, 0)[:4] == (1, 0, pytest.approx(1), pytest.approx(1))
    markers = real.adjusted[1] < 0.2
    assert found.roc_auc == pytest.approx(roc_auc(markers, drawn.scores[1]))


def test_where_no_gene_or_most_genes_differ_those_with_the_lowest_p_are_the_markers():
    scores = np.arange(10.0)
    none = np.array([0.9, 0.5, 0.4, 0.4, *[1.0] * 6])
    assert np.flatnonzero(find_markers(none, scores, 2)).tolist() == [2, 3]
    assert np.flatnonzero(find_markers(none, scores, 1)).tolist() == [3]  # of equal p, the higher score
    assert np.flatnonzero(find_markers(none / 10, scores, 2)).tolist() == [2, 3]
    assert np.flatnonzero(find_markers(np.where(scores < 5, 0.1, 0.9), scores, 2)).tolist() == [0, 1, 2, 3, 4]


def test_a_label_that_either_has_no_test_of_has_no_figures():
    real, drawn = make_tests(40, 0), make_tests(40, 1, untested={1: "it has one cell"})
    assert np.isnan(marker_agreement(drawn, real, 1)).all()
    assert np.isfinite(marker_agreement(drawn, real, 0)).all()
