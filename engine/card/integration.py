"""How well a latent space keeps labels apart and mixes batches, on a sample of the cells in memory.

With scib-metrics (the extra `integration`) its figures are computed, from that library. Without it:

    silhouette_label  silhouette width of the labels, scaled to 0 to 1 (Rousseeuw 1987)
    silhouette_batch  1 - the absolute silhouette width of the batches among the cells of each label, means over labels
    batch_entropy     entropy of the batches among the 15 nearest neighbours, divided by that of the whole sample
    neighbour_labels  fraction of cells whose label is the most frequent one among the 15 nearest neighbours
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Figures, Integration

NEIGHBOURS = 15
OWN_METHOD = "atlasvi"  # who computed the figures
CELLS_AT_ONCE = 128  # their distances to 10,000 cells stay in the cache

MEANINGS = {
    "silhouette_label": "Silhouette width of the labels, scaled to 0 to 1: 1 where labels are far apart.",
    "silhouette_batch": "1 - the absolute silhouette width of the batches among cells of one label, mean over labels: "
    "1 where batches lie on each other.",
    "batch_entropy": f"Entropy of the batches among the {NEIGHBOURS} nearest neighbours, divided by that of the "
    "sample: 1 where batches are mixed.",
    "neighbour_labels": f"Fraction of cells whose label most of the {NEIGHBOURS} nearest neighbours have.",
}


def measure_integration(
    latents: np.ndarray, labels: np.ndarray | None, batches: np.ndarray | None
) -> tuple[Integration | None, list[str]]:
    """The figures for latents [cells, latent], and a sentence for each that can't be computed.

    labels, batches  int [cells], below 0 where missing; None: there are none
    Errors are standard errors over the cells of the sample.
    """
    labels, batches = (None if each is None else _densify(each) for each in (labels, batches))
    n_labels, n_batches = (0 if each is None else int(each.max(initial=-1)) + 1 for each in (labels, batches))
    notes = []
    if n_labels < 2:
        notes.append(f"How well labels are kept apart is not computed: {_say_number(n_labels, 'label')}.")
    if n_batches < 2:
        notes.append(f"How well batches are mixed is not computed: {_say_number(n_batches, 'batch')}.")
    if len(latents) <= NEIGHBOURS:
        return None, [f"Integration is not computed: the sample has {len(latents)} cells, too few for neighbours."]
    figures: Figures = {}
    if n_labels >= 2:
        assert labels is not None
        figures["silhouette_label"] = _mean((silhouettes(latents, labels)[labels >= 0] + 1) / 2)
    if n_batches >= 2:
        assert batches is not None
        figures["silhouette_batch"] = _mix_within(latents, batches, labels if n_labels >= 2 else None)
    if n_labels >= 2 or n_batches >= 2:
        near = find_neighbours(latents)
        if n_batches >= 2:
            assert batches is not None
            figures["batch_entropy"] = _mean(_entropies(near, batches, n_batches))
        if n_labels >= 2:
            assert labels is not None
            known = labels >= 0
            votes = count_votes(labels[near[known]], n_labels)
            figures["neighbour_labels"] = _mean((votes.argmax(1) == labels[known]).astype(float))
    if not figures:
        return None, notes
    return Integration(figures, {name: MEANINGS[name] for name in figures}, len(latents), OWN_METHOD), notes


def silhouettes(latents: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Silhouette width of each cell, float64 [cells], as scikit-learn's `silhouette_samples`; 0 for a cell alone in its
    group or without a code (below 0, and not compared with). Memory grows with the number of cells, not its square."""
    known = np.flatnonzero(codes >= 0)
    n, own = int(codes.max(initial=-1)) + 1, codes[known]
    sizes = np.bincount(own, minlength=n)
    members = torch.zeros(len(known), n, dtype=torch.float64)
    members[np.arange(len(known)), own] = 1
    found, widths = np.zeros(len(codes)), np.zeros(len(known))
    for here, distances in _slice_distances(latents[known]):
        rows = np.arange(here.stop - here.start)
        sums = (distances.sqrt_() @ members).numpy()
        mine = own[here]
        inside = sums[rows, mine] / np.maximum(sizes[mine] - 1, 1)
        others = np.divide(sums, sizes, out=np.full(sums.shape, np.inf), where=sizes > 0)
        others[rows, mine] = np.inf
        nearest = others.min(1)
        largest = np.maximum(inside, nearest)
        fine = (sizes[mine] > 1) & np.isfinite(nearest) & (largest > 0)
        widths[here] = np.divide(nearest - inside, largest, out=np.zeros(len(rows)), where=fine)
    found[known] = widths
    return found


def find_neighbours(latents: np.ndarray) -> np.ndarray:
    """int64 [cells, 15]: the nearest other cells of each, by Euclidean distance."""
    parts = []
    for here, distances in _slice_distances(latents):
        distances[:, here].fill_diagonal_(torch.inf)
        parts.append(distances.topk(NEIGHBOURS, largest=False, sorted=False).indices.numpy())
    return np.concatenate(parts)


def _mix_within(latents: np.ndarray, batches: np.ndarray, labels: np.ndarray | None) -> Estimate:
    """1 - |silhouette width of batches| among the cells of each label with several batches, mean over these labels."""
    groups = np.zeros(len(latents), np.int64) if labels is None else labels
    means, errors = [], []
    for code in range(int(groups.max(initial=-1)) + 1):
        here = (groups == code) & (batches >= 0)
        own = _densify(batches[here])
        if len(own) > 2 and 1 < int(own.max(initial=-1)) + 1 < len(own):
            mixed = _mean(1 - np.abs(silhouettes(latents[here], own)))
            means.append(mixed.value)
            errors.append(mixed.error)
    if not means:
        return Estimate(np.nan, np.nan)
    return Estimate(float(np.mean(means)), float(np.sqrt(np.sum(np.square(errors)))) / len(means))


def _entropies(near: np.ndarray, batches: np.ndarray, n_batches: int) -> np.ndarray:
    """Entropy of the batches among the neighbours of each cell, divided by that of all cells."""
    votes = count_votes(batches[near], n_batches)
    votes = votes[votes.sum(1) > 0]
    whole = np.bincount(batches[batches >= 0], minlength=n_batches)
    return _entropy(votes) / _entropy(whole[None])[0]


def _entropy(counts: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(1, keepdims=True)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)


def count_votes(near: np.ndarray, n: int) -> np.ndarray:
    """int64 [cells, n]: how many of the neighbours of each cell have each code.

    near  int [cells, neighbours]: the codes of the neighbours; those below 0 have none
    """
    found = np.zeros((len(near), n), np.int64)
    for votes in near.T:
        known = np.flatnonzero(votes >= 0)
        found[known, votes[known]] += 1
    return found


def _slice_distances(latents: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Squared Euclidean distances float64 [slice, cells] of slices of the cells to all of them."""
    values = torch.from_numpy(latents.astype(np.float64))
    values -= values.mean(0)
    squares = (values**2).sum(1)
    for start in range(0, len(values), CELLS_AT_ONCE):
        here = slice(start, min(start + CELLS_AT_ONCE, len(values)))
        distances = torch.addmm(squares, values[here], values.T, alpha=-2).add_(squares[here, None]).clamp_min_(0)
        distances[:, here].fill_diagonal_(0)
        yield here, distances


def _densify(codes: np.ndarray) -> np.ndarray:
    """int64: the same groups numbered from 0 on without gaps; codes below 0 become -1."""
    values, places = np.unique(codes, return_inverse=True)
    return np.maximum(places - int((values < 0).sum()), -1).astype(np.int64)


def _mean(values: np.ndarray) -> Estimate:
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return Estimate(float(values.mean()) if n else np.nan, error)


def _say_number(n: int, one: str) -> str:
    return f"there are no {one}{'es' if one == 'batch' else 's'}" if n == 0 else f"there is one {one} only"
