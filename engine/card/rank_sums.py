"""Wilcoxon's rank-sum test of each label against the rest, on cells in memory: a stratified sample of the data.

As scanpy's `rank_genes_groups(method="wilcoxon")`: the score is z by the normal approximation, not corrected for ties.
"""

import numpy as np
from scipy import sparse, stats

from atlasvi.engine.card.label_moments import (
    GroupTests,
    explain_untested,
    finish_test,
    log2_fold_change,
    normalise,
)

GENES_AT_ONCE = 64


def rank_sum_tests(counts: sparse.csr_matrix, labels: np.ndarray, n_labels: int) -> GroupTests:
    """Tests of the cells (rows) of each label against all others; labels int [cells], from 0 to n_labels - 1."""
    logs, n_genes = normalise(counts).tocsc(), counts.shape[1]
    n_cells = np.bincount(labels, minlength=n_labels)
    untested, n = explain_untested(n_cells), len(labels)
    scores, p_values, adjusted, changes = (np.full((n_labels, n_genes), np.nan) for _ in range(4))
    members = sparse.csr_matrix((np.ones(n), (labels, np.arange(n))), (n_labels, n))
    tested = np.array([label not in untested for label in range(n_labels)], bool)
    n_label = n_cells[tested][:, None]
    expected, deviation = n_label * (n + 1) / 2, np.sqrt(n_label * (n - n_label) / 12 * (n + 1))
    for first in range(0, n_genes, GENES_AT_ONCE):
        here = slice(first, min(first + GENES_AT_ONCE, n_genes))
        values = logs[:, here].toarray()
        sums = (members @ values)[tested]
        scores[tested, here] = ((members @ stats.rankdata(values, axis=0))[tested] - expected) / deviation
        rest = (values.sum(0) - sums) / (n - n_label)
        changes[tested, here] = log2_fold_change(sums / n_label, rest)
    for label in np.flatnonzero(tested):
        p = 2 * stats.norm.sf(np.abs(scores[label]))
        scores[label], p_values[label], adjusted[label] = finish_test(scores[label], p)
    return GroupTests(scores, p_values, adjusted, changes, untested)
