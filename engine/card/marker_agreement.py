"""How well differential expression in drawn counts agrees with that in real ones, label by label: the hub's figures."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from atlasvi.engine.card.agreement import compare
from atlasvi.engine.card.label_moments import GroupTests

TOP_GENES = 100
TRUE_BELOW = 0.2  # adjusted p of real counts


class MarkerAgreement(NamedTuple):
    """Of one label; NaN where undefined.

    gene_f1       overlap of the genes with the highest scores, 100 or a tenth of fewer than 1,000 genes
    lfc_mae, lfc_pearson, lfc_spearman  of the log2 fold changes of all genes
    roc_auc, pr_auc  how well the scores in drawn counts find the genes that differ in real ones (see `find_markers`)
    """

    gene_f1: float
    lfc_mae: float
    lfc_pearson: float
    lfc_spearman: float
    roc_auc: float
    pr_auc: float


def marker_agreement(drawn: GroupTests, real: GroupTests, label: int) -> MarkerAgreement:
    """The agreement of the tests of one label (its code); all figures are NaN if either has no test of it."""
    if label in real.untested or label in drawn.untested:
        return MarkerAgreement(*[np.nan] * 6)
    n_genes = real.scores.shape[1]
    n_top = TOP_GENES if n_genes >= 10 * TOP_GENES else n_genes // 10
    by_real, by_drawn = (np.argsort(-tests.scores[label], kind="stable")[:n_top] for tests in (real, drawn))
    shared = len(np.intersect1d(by_real, by_drawn)) / n_top if n_top else np.nan
    changes = compare(drawn.log2_fold_changes[label], real.log2_fold_changes[label])
    markers = find_markers(real.adjusted[label], real.scores[label], n_top)
    found = roc_auc(markers, drawn.scores[label]), average_precision(markers, drawn.scores[label])
    return MarkerAgreement(shared, changes.mae, changes.pearson, changes.spearman, *found)


def find_markers(adjusted: np.ndarray, scores: np.ndarray, n_top: int) -> np.ndarray:
    """Genes that differ, bool [genes]: adjusted p below 0.2; if none or more than half have that, the n_top lowest.

    Of genes with the same p, those with the higher score come first.
    """
    found = adjusted < TRUE_BELOW
    if found.any() and found.sum() <= 0.5 * len(found):
        return found
    found = np.zeros(len(adjusted), bool)
    found[np.lexsort((-scores, adjusted))[:n_top]] = True
    return found


def roc_auc(markers: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of scores [n] for markers (bool [n]); NaN if all or none are markers."""
    n = int(markers.sum())
    if n in (0, len(markers)):
        return np.nan
    ranks = stats.rankdata(scores)[markers].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(markers) - n)))


def average_precision(markers: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of scores [n] for markers (bool [n]): the mean precision at each marker; NaN without any."""
    if not markers.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last of each group of equal scores
    hits = np.cumsum(markers[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])
