"""Labels for new cells from their neighbours in a labelled minified store, with probabilities, and "unknown".

A label's share of the k nearest cells is weighted by a Gaussian of their distance, as wide as the root mean square of
these distances, and averaged over draws from the cell's posterior, as in scArches (Lotfollahi et al. 2022, Nature
Biotechnology 40:121, "label transfer"). A dimension that carries no information has a posterior of variance 1, and
draws in it would only add noise to all distances: draws are scaled by var(qzm) / (var(qzm) + mean(qzv)) over reference
cells, which is what a draw tells of where the cell's mean is. On OneK1K the expected calibration error
was 2.6% with plain draws, and is 0.3% with these.

Both figures that come with a label are measured on cells of the reference, of each label alike, each judged by cells of
other batches only, as a cell of a new batch is. Probabilities are tempered so that they fit best there. A cell is
unknown if it is farther from its neighbours than nearly all reference cells of its label are (a conformal p-value, as
in Bates et al. 2023, Annals of Statistics 51:149).
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.neighbours.index_file import IndexFile
from atlasvi.engine.queries.cell_choice import Where, mark_cells
from atlasvi.engine.queries.latents import slice_latents
from atlasvi.engine.queries.neighbours import (
    RECALL,
    NeighbourSearch,
    SearchOptions,
    check_columns,
    join_slices,
    to_texts,
)
from atlasvi.engine.queries.new_cells import MissingGenes, NewCells, choose_encoder, open_new_cells
from atlasvi.engine.queries.obs_rows import SLICE_CELLS
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, need_at_least
from atlasvi.engine.terminal import count

UNKNOWN = "unknown"
JUDGED_CELLS, MOST_OF_LABEL = 10_000, 500  # reference cells that are judged, in all and of one label, about
FEWEST_OF_LABEL = 100  # of fewer cells no small share can be told: all labels are taken together
OVERSAMPLED = 4  # times k neighbours are searched for reference cells, to have k of other batches
TEMPERATURES = 2.0 ** np.linspace(-2, 2, 33)
BINS = 15


@dataclass(frozen=True)
class AnnotationOptions:
    """How labels are found.

    k        neighbours of each cell
    n_draws  from each cell's posterior; 0: its mean alone
    unknown  share of the reference's own cells that would be called unknown
    """

    k: int = 30
    n_draws: int = 5
    unknown: float = 0.01
    seed: int = 0
    recall: float = RECALL
    exact: bool = False

    def __post_init__(self) -> None:
        need_at_least(1, k=self.k)
        need_at_least(0, n_draws=self.n_draws, seed=self.seed)
        if not 0 <= self.unknown < 1:
            raise QueryError(f"unknown is {self.unknown}: it is a share, at least 0 and below 1.")


class Annotator:
    """Labels cells by a column of a minified store.

    labels             the values of the column, text
    calibration_error  expected calibration error (15 bins) of the judged reference cells' most probable labels
    Raises ColumnError if the column is missing, QueryError if it has fewer than two values among the chosen cells.
    """

    def __init__(
        self,
        reference: MinifiedCells,
        labels_key: str,
        options: AnnotationOptions,
        chosen: np.ndarray | None = None,
        index: str | Path | IndexFile | None = None,
    ) -> None:
        check_columns([labels_key], reference)
        self.reference, self.options = reference, options
        self.labels, self._codes = _read_labels(reference, labels_key)
        if chosen is not None:
            self._codes[~chosen] = -1
        sizes = np.bincount(self._codes + 1, minlength=len(self.labels) + 1)[1:]
        if (n_labels := int(np.count_nonzero(sizes))) < 2:
            raise QueryError(
                f"{reference.path}: these cells have {count(n_labels, 'label')} in column {labels_key!r}: at least two "
                "are needed to tell cells apart."
            )
        known = None if (self._codes >= 0).all() else self._codes >= 0
        search = SearchOptions(options.k, recall=options.recall, exact=options.exact)
        self._search = NeighbourSearch(reference, search, known, index)
        wide = NeighbourSearch(reference, replace(search, k=OVERSAMPLED * options.k), known, index)
        self._judge(wide, sizes)

    def _judge(self, search: NeighbourSearch, sizes: np.ndarray) -> None:
        """Label reference cells by others, to learn the temperature, and how far cells of each label are away."""
        random = np.random.default_rng(self.options.seed)
        most = int(np.clip(JUDGED_CELLS // len(sizes), FEWEST_OF_LABEL, MOST_OF_LABEL))
        members = (np.flatnonzero(self._codes == code) for code in np.flatnonzero(sizes))
        cells = np.sort(np.concatenate([random.choice(each, min(most, len(each)), replace=False) for each in members]))
        qzm, qzv = (np.concatenate(parts) for parts in zip(*self.reference.read_latents(None, cells)))
        self._scale = qzm.var(0) / (qzm.var(0) + qzv.mean(0))
        distances, near = search.search(qzm, qzv, own=cells)
        key = self.reference.setup.keys.batch_key
        if key is not None:
            batches = pd.factorize(self.reference.read_column(key))[0]
            distances[batches[near] == batches[cells][:, None]] = np.inf
            order = np.argsort(distances, axis=1, kind="stable")
            distances, near = (np.take_along_axis(values, order, 1) for values in (distances, near))
        distances, near = distances[:, : self.options.k], near[:, : self.options.k]
        judged = np.isfinite(distances[:, 0])
        distances, near, truth = distances[judged], near[judged], self._codes[cells[judged]]
        weights = sizes[truth] / np.bincount(truth, minlength=len(sizes))[truth]
        shares = self._vote(distances, near)
        losses = [-np.log(_temper(shares, t)[np.arange(len(truth)), truth]) @ weights for t in TEMPERATURES]
        self._temperature = float(TEMPERATURES[int(np.argmin(losses))]) if len(truth) else 1.0
        tempered = _temper(shares, self._temperature)
        right = tempered.argmax(1) == truth
        self.calibration_error = measure_calibration(tempered.max(1, initial=0), right, weights)
        away = _measure_distance(distances)
        of_label = (away[truth == code] for code in range(len(sizes)))
        self._usual = [np.sort(each if len(each) >= FEWEST_OF_LABEL else away) for each in of_label]

    def slice_labels(
        self, new: NewCells, columns: Sequence[str] = (), limit: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """The rows of `annotate` for some thousand new cells at a time, in their order."""
        random = np.random.default_rng(self.options.seed)
        chosen = None if limit is None else np.arange(new.cells.n_cells)[:limit]
        for names, qzm, qzv in join_slices(slice_latents(new.model, new.cells, chosen)):
            distances, near = self._search.search(qzm, qzv)
            votes = [self._vote(distances, near)] if not self.options.n_draws else []
            noise = random.standard_normal((len(qzm), self.options.n_draws, qzm.shape[1]), np.float32)
            for draw in range(self.options.n_draws):
                z = qzm + np.sqrt(qzv) * self._scale * noise[:, draw]
                votes.append(self._vote(*self._search.search(z, qzv)))
            shares = _temper(np.mean(votes, axis=0), self._temperature)
            yield self._make_table(names, shares, distances, near, columns)

    def _vote(self, distances: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Weighted shares of the labels, float64 [cells, labels]; places without a cell have an infinite distance."""
        there = np.isfinite(distances)
        squared = np.where(there, distances, 0).astype(float) ** 2
        width = squared.sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
        weights = np.where(there, np.exp(-squared / (2 * np.maximum(width, 1e-30))), 0)
        shares = np.zeros((len(near), len(self.labels)))
        np.add.at(shares, (np.arange(len(near))[:, None], np.where(there, self._codes[near], 0)), weights)
        return shares / shares.sum(1, keepdims=True)

    def _make_table(
        self, names: pd.Index, shares: np.ndarray, distances: np.ndarray, near: np.ndarray, columns: Sequence[str]
    ) -> pd.DataFrame:
        order = np.argsort(-shares, axis=1, kind="stable")[:, :2]
        best, rows = order[:, 0], np.arange(len(order))
        away = _measure_distance(distances)
        typical = np.empty(len(away))
        for code in np.unique(best):
            usual, here = self._usual[code], best == code
            typical[here] = (len(usual) - np.searchsorted(usual, away[here]) + 1) / (len(usual) + 1)
        table: dict[str, Any] = {
            "label": np.where(typical <= self.options.unknown, UNKNOWN, self.labels[best]),
            "probability": shares[rows, best],
            "closest": self.labels[best],
            "second": self.labels[order[:, 1]],
            "second_probability": shares[rows, order[:, 1]],
            "distance": away,
            "typical": typical,
            "nearest": self.reference.read_names(near[:, 0]).astype(str),
        }
        there = near >= 0
        for name in columns:
            values = np.full(near.shape, None, object)
            values[there] = to_texts(self.reference.take_column(name, near[there]))
            counted = [pd.Series(row[row != None]).value_counts() for row in values]  # noqa: E711  elementwise
            table[name] = [counts.index[0] if len(counts) else None for counts in counted]
            table[f"{name}_values"] = [len(counts) for counts in counted]
        return pd.DataFrame(table, index=pd.Index(names, name="cell"))


def annotate(
    store: KeptPosterior | str | Path,
    new_cells: Any,
    labels_key: str,
    *,
    among: Where | None = None,
    columns: Sequence[str] = (),
    k: int = 30,
    n_draws: int = 5,
    unknown: float = 0.01,
    seed: int = 0,
    recall: float = RECALL,
    exact: bool = False,
    index: str | Path | None = None,
    missing_genes: MissingGenes = "refuse",
    model: TrainedRun | str | Path | None = None,
) -> pd.DataFrame:
    """Labels of new cells from their neighbours in a labelled minified store, a row for each cell.

    store      minified data, opened or as a path; its cells without a label are not used
    new_cells  counts, as for `open_new_cells`
    model      that encodes them: a run that was mapped from the model in the store; None: that model
    among      the cells of the store to use, as for `find_cells`; None: all
    columns    columns of the store's obs (donors, studies, ...) to tell of the neighbours
    k, n_draws, unknown, seed  see `AnnotationOptions`; recall, exact, index: see `find_neighbours`
    Columns of the answer: label, or "unknown"; probability of `closest`, the most probable label, and of the `second`;
    distance, the root mean square of those of the k neighbours; typical, the share of the reference's cells of that
    label that are at least as far from theirs; nearest, the name of the nearest cell; and, for each of `columns`, its
    most frequent value among the neighbours, and how many values there are.
    Raises the errors of `find_neighbours`; QueryError if there are fewer than two labels.
    """
    kept = store if isinstance(store, KeptPosterior) else open_minified(store)
    reference = MinifiedCells(kept)
    check_columns(columns, reference)
    options = AnnotationOptions(k, n_draws, unknown, seed, recall, exact)
    chosen = None if among is None else mark_cells(reference, among)
    with closing(open_new_cells(new_cells, choose_encoder(kept, model), missing_genes)) as new:
        annotator = Annotator(reference, labels_key, options, chosen, index)
        return pd.concat(list(annotator.slice_labels(new, columns)))


def measure_calibration(probability: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: mean difference of probability and share of right labels, in 15 bins of probability.

    probability float [cells] of the given label, right bool [cells], weights float [cells] (None: all equal)
    """
    weights = np.ones(len(right)) if weights is None else weights
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    differences = np.bincount(bins, weights * (probability - right), BINS)
    return float(np.abs(differences).sum() / max(weights.sum(), 1e-30))


def _read_labels(reference: MinifiedCells, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column as text, sorted, and the code of each cell, int32 [cells]; -1: it has none."""
    parts, known = [], dict[str, int]()
    for start in range(0, reference.n_cells, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, reference.n_cells)
        codes, values = pd.factorize(reference.read_column(labels_key, start, stop))
        numbers = [known.setdefault(str(value), len(known)) for value in values]
        parts.append(np.array([*numbers, -1], np.int32)[codes])
    labels = np.array(sorted(known), object)
    rank = np.empty(len(known) + 1, np.int32)
    rank[[known[label] for label in labels]], rank[-1] = np.arange(len(known)), -1
    return labels, rank[np.concatenate(parts)]


def _measure_distance(distances: np.ndarray) -> np.ndarray:
    """Root mean square of the finite distances of each cell, [cells, k]."""
    there = np.isfinite(distances)
    return np.sqrt((np.where(there, distances, 0).astype(float) ** 2).sum(1) / np.maximum(there.sum(1), 1))


def _temper(shares: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities proportional to shares ** (1 / temperature), [cells, labels], none of them 0."""
    powers = (shares + 1e-3 / shares.shape[1]) ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)
