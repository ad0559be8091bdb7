"""Wilcoxon's rank-sum test of each label against the rest, on cells in memory: a stratified sample of the data.

As scanpy's `rank_genes_groups(method="wilcoxon")`: the score is z by the normal approximation, not corrected for ties.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from scipy import sparse, stats

from atlasvi.engine.card.label_moments import (
    GroupTests,
    explain_untested,
    finish_test,
    log2_fold_change,
    normalise,
)


def rank_sum_tests(counts: sparse.csr_matrix, labels: np.ndarray, n_labels: int) -> GroupTests:
    """Tests of the cells (rows) of each label against all others; labels int [cells], from 0 to n_labels - 1."""
    logs, shape = normalise(counts).tocsc(), (n_labels, counts.shape[1])
    logs.eliminate_zeros()
    n_cells = np.bincount(labels, minlength=n_labels)
    untested, n = explain_untested(n_cells), len(labels)
    sums, ranks = np.zeros((2, *shape))
    n_threads = max(torch.get_num_threads(), 1)
    edges = np.linspace(0, shape[1], n_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="atlasvi-card") as threads:
        arguments = logs.indptr, logs.indices, logs.data, labels, n_cells, sums, ranks
        for part in [threads.submit(_sum_by_label, *edge, *arguments) for edge in itertools.pairwise(edges)]:
            part.result()
    scores, p_values, adjusted, changes = (np.full(shape, np.nan) for _ in range(4))
    for label in range(n_labels):
        if label not in untested:
            n_label = int(n_cells[label])
            deviation = np.sqrt(n_label * (n - n_label) / 12 * (n + 1))
            z = (ranks[label] - n_label * (n + 1) / 2) / deviation
            scores[label], p_values[label], adjusted[label] = finish_test(z, 2 * stats.norm.sf(np.abs(z)))
            rest = (sums.sum(0) - sums[label]) / (n - n_label)
            changes[label] = log2_fold_change(sums[label] / n_label, rest)
    return GroupTests(scores, p_values, adjusted, changes, untested)


@njit(cache=True, nogil=True)
def _sum_by_label(
    first_gene: int,
    last_gene: int,
    starts: np.ndarray,
    cells: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    n_cells: np.ndarray,
    sums: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Of each label and each of the genes [first_gene, last_gene): the sum of its cells' values, and of their ranks
    among all cells, ties at their mean.

    starts, cells, values  CSC without stored zeros, [cells, genes]; all zeros of a gene have the same rank
    n_cells                int64 [labels]
    sums, ranks            float64 [labels, genes]; ranks are NaN for a gene with a NaN
    """
    for gene in range(first_gene, last_gene):
        first, last = starts[gene], starts[gene + 1]
        own, n_zeros = values[first:last], len(labels) - (last - first)
        order = np.argsort(own)
        of_zero = np.nan if np.isnan(own).any() else (own < 0).sum() + (n_zeros + 1) / 2
        for label in range(len(n_cells)):
            ranks[label, gene] = of_zero * n_cells[label]
        start = 0
        while start < len(own):
            value, stop = own[order[start]], start + 1
            while stop < len(own) and own[order[stop]] == value:
                stop += 1
            rank = (start + stop + 1) / 2 + (n_zeros if value > 0 else 0)
            for at in order[start:stop]:
                label = labels[cells[first + at]]
                sums[label, gene] += value
                ranks[label, gene] += rank - of_zero
            start = stop
