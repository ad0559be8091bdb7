"""The nearest cells of a minified store: of its own cells, or of new cells that its model encodes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.neighbours.exact_search import search_exactly, to_points
from atlasvi.engine.neighbours.index_file import IndexFile, name_index
from atlasvi.engine.neighbours.search_index import choose_probing, search_index
from atlasvi.engine.queries.cell_choice import Where, find_cells, mark_cells
from atlasvi.engine.queries.latents import slice_latents
from atlasvi.engine.queries.new_cells import MissingGenes, choose_encoder, open_new_cells
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, QuestionCells, need_at_least
from atlasvi.loaders.tables.store_tables import check_column

By = Literal["mean", "posterior"]
RECALL = 0.97  # what is asked of an index, if nothing else is; new cells reach a little less than the store's own
FEW_CELLS = 50_000  # up to so many, exact search takes less time than what it would save
MOST_PAIRS = (
    20_000_000_000  # of a query and a cell, that are compared exactly without being asked to: about half a minute
)
MOST_CODED_PAIRS = 4_000_000_000  # of a query and a chosen cell, for which all lists are searched: a few seconds
CANDIDATES = 4  # times k cells by mean are ranked by posterior: OneK1K's 15 nearest by posterior are 88% those by mean
QUERIES_AT_ONCE = 4096


@dataclass(frozen=True)
class SearchOptions:
    """How neighbours are searched.

    k       number of neighbours
    by      mean: by the distance of the posterior means; posterior: by the 2-Wasserstein distance of the posteriors,
            in which their widths count too (see exact_search.py)
    recall  share of the true neighbours that an index should find, at least
    exact   whether all cells are compared, even if there is an index
    """

    k: int = 15
    by: By = "mean"
    recall: float = RECALL
    exact: bool = False

    def __post_init__(self) -> None:
        need_at_least(1, k=self.k)
        if self.by not in get_args(By):
            raise QueryError(f"by is {self.by!r}: use one of {', '.join(get_args(By))}.")
        if not 0 < self.recall <= 1:
            raise QueryError(f"recall is {self.recall}: it is a share above 0 and at most 1.")


class NeighbourSearch:
    """Searches the cells of minified data: by its index, if it has one; exactly, if it or the choice is small.

    chosen  bool [cells]: the cells that may be neighbours; None: all
    index   where the index is, or the index, opened; None: beside the data, if it is there
    Raises SourceError if the index is damaged or of other latents, QueryError if no cell is chosen.
    """

    def __init__(
        self,
        reference: MinifiedCells,
        options: SearchOptions,
        chosen: np.ndarray | None = None,
        index: str | Path | IndexFile | None = None,
    ) -> None:
        self.reference, self.options, self._chosen = reference, options, chosen
        self._n_chosen = reference.n_cells if chosen is None else int(np.count_nonzero(chosen))
        if self._n_chosen == 0:
            raise QueryError(f"{reference.path}: none of its cells is chosen, so there are no neighbours.")
        may_use = not options.exact and self._n_chosen > FEW_CELLS
        if index is None and may_use and (place := name_index(reference.path)).exists():
            index = place
        if isinstance(index, str | Path) and may_use:
            index = IndexFile(index, reference.kept)
        self.index = index if isinstance(index, IndexFile) and may_use else None

    def search(self, qzm: np.ndarray, qzv: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Distances float32 [queries, k], and cells int64 [queries, k], nearest first; infinity and -1 at the end.

        qzm, qzv  float32 [queries, latent]
        own       int64 [queries]: the cell that each query is, which is no neighbour of itself; None: they are others
        """
        k, by_posterior = self.options.k, self.options.by == "posterior"
        points = to_points(qzm, qzv, by_posterior)
        if self.index is None:
            self._check_pairs(len(qzm))
            chosen = None if self._chosen is None else np.flatnonzero(self._chosen)
            squared, cells = search_exactly(self._read_points(chosen), points, k, own)
        else:
            n_found = k * CANDIDATES if by_posterior else k
            n_lists = self._choose_n_lists(self.index, len(qzm), n_found)
            squared, cells = search_index(self.index, qzm, n_found, n_lists=n_lists, own=own, chosen=self._chosen)
            if by_posterior:
                squared, cells = self._rank_candidates(points, cells)
        return np.sqrt(squared), cells

    def _rank_candidates(self, points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of the cells found for each query, int64 [queries, n], by their points in the store."""
        wanted = np.unique(cells[cells >= 0])
        there = np.concatenate([part for part, _ in self._read_points(wanted)])
        squared = np.full(cells.shape, np.inf, np.float32)
        for query, point in enumerate(points):
            found = cells[query] >= 0
            squared[query, found] = ((there[np.searchsorted(wanted, cells[query, found])] - point) ** 2).sum(1)
        order = np.lexsort((cells, squared), axis=1)[:, : self.options.k]
        return np.take_along_axis(squared, order, 1), np.take_along_axis(cells, order, 1)

    def _choose_n_lists(self, index: IndexFile, n_queries: int, k: int) -> int:
        """All lists, if few cells are chosen: these may be far from the queries, for which no recall was measured."""
        if self._chosen is not None and n_queries * self._n_chosen <= MOST_CODED_PAIRS:
            return index.header.n_lists
        # the k-th of chosen cells that are everywhere is about this neighbour among all cells
        k = -(-k * self.reference.n_cells // self._n_chosen)
        return choose_probing(index, k, self.options.recall).n_lists

    def _read_points(self, cells: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(points, indices) of these cells, ascending int64, in slices; None: of all."""
        at = 0
        for qzm, qzv in self.reference.read_latents(None, cells):
            here = np.arange(at, at + len(qzm)) if cells is None else cells[at : at + len(qzm)]
            at += len(qzm)
            yield to_points(qzm, qzv, self.options.by == "posterior"), here

    def _check_pairs(self, n_queries: int) -> None:
        if not self.options.exact and n_queries * self._n_chosen > MOST_PAIRS:
            raise QueryError(
                f"{self.reference.path}: to compare {n_queries:,} cells with {self._n_chosen:,} takes minutes: build "
                f"an index once (atlasvi index {self.reference.path}), or accept the wait (--exact, exact=True)."
            )


def find_neighbours(
    store: KeptPosterior | str | Path,
    of: Where | None = None,
    *,
    new_cells: Any = None,
    among: Where | None = None,
    columns: Sequence[str] = (),
    k: int = 15,
    by: By = "mean",
    recall: float = RECALL,
    exact: bool = False,
    index: str | Path | None = None,
    missing_genes: MissingGenes = "refuse",
    model: TrainedRun | str | Path | None = None,
) -> pd.DataFrame:
    """The k nearest cells in latent space of cells of a minified store, or of new cells.

    store          minified data, opened or as a path
    of             the cells to find neighbours of, as for `find_cells` (None: all); without themselves as neighbours
    new_cells      instead: counts of other cells, as for `open_new_cells`, which the model encodes
    model          that encodes them: a run that was mapped from the model in the store; None: that model
    among          the cells of the store that may be neighbours, as for `find_cells`; None: all
    columns        columns of the store's obs to add, of the neighbours
    k, by, recall, exact  see `SearchOptions`; index: where the index is, if not beside the store
    Returns a row for each cell and neighbour: rank from 1, neighbour (its name), distance, and the columns; the index
    holds the name of the cell. Cells with fewer than k neighbours have fewer rows.
    Raises the errors of `find_cells`, `open_new_cells` and `NeighbourSearch`.
    """
    kept = store if isinstance(store, KeptPosterior) else open_minified(store)
    reference = MinifiedCells(kept)
    check_columns(columns, reference)
    options = SearchOptions(k, by, recall, exact)
    search = NeighbourSearch(reference, options, None if among is None else mark_cells(reference, among), index)
    if new_cells is None:
        tables = list(slice_neighbours(search, reference, None if of is None else find_cells(reference, of), columns))
    elif of is not None:
        raise QueryError("of= chooses cells of the store, and new_cells= are others: pass one of them.")
    else:
        with closing(open_new_cells(new_cells, choose_encoder(kept, model), missing_genes)) as new:
            tables = list(slice_neighbours(search, new.cells, None, columns, model=new.model))
    return pd.concat(tables)


def check_columns(columns: Iterable[str], reference: QuestionCells) -> None:
    """Raise ColumnError, with the columns that are there, if one of them is not in obs."""
    for name in columns:
        check_column(name, reference.obs_columns, reference.path)


def slice_neighbours(
    search: NeighbourSearch,
    cells: QuestionCells,
    chosen: np.ndarray | None,
    columns: Sequence[str] = (),
    model: Any = None,
) -> Iterator[pd.DataFrame]:
    """The rows of `find_neighbours`, for some thousand cells at a time.

    cells   whose neighbours are searched: those of the search, or others, which `model` encodes
    chosen  int64 indices of the cells, in any order; None: all
    """
    if chosen is not None:
        chosen = np.unique(chosen)
    at, is_same = 0, cells is search.reference
    for names, qzm, qzv in join_slices(slice_latents(model, cells, chosen)):
        own = None
        if is_same:
            own = np.arange(at, at + len(qzm)) if chosen is None else chosen[at : at + len(qzm)]
        at += len(qzm)
        yield _make_table(search.reference, names, *search.search(qzm, qzv, own), columns)


def join_slices(
    slices: Iterator[tuple[pd.Index, np.ndarray, np.ndarray]],
) -> Iterator[tuple[pd.Index, np.ndarray, np.ndarray]]:
    """The same in slices of QUERIES_AT_ONCE cells or more: for each, exact search reads all cells, an index lists."""
    waiting: list[tuple[pd.Index, np.ndarray, np.ndarray]] = []
    for part in slices:
        waiting.append(part)
        if sum(len(names) for names, _, _ in waiting) >= QUERIES_AT_ONCE:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(parts: list[tuple[pd.Index, np.ndarray, np.ndarray]]) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    names, qzm, qzv = zip(*parts)
    return pd.Index(np.concatenate(names)), np.concatenate(qzm), np.concatenate(qzv)


def _to_plain(values: pd.Series) -> np.ndarray:
    """Numbers and truth values as they are; of other types, their text, None where it is missing."""
    plain = values.to_numpy()
    return plain if plain.dtype.kind in "biuf" else to_texts(values)


def to_texts(values: pd.Series) -> np.ndarray:
    """The text of each value, object; None where it is missing."""
    return np.array([None if gap else str(value) for value, gap in zip(values, values.isna())], object)


def _make_table(
    reference: MinifiedCells, names: pd.Index, distances: np.ndarray, cells: np.ndarray, columns: Sequence[str]
) -> pd.DataFrame:
    rows, ranks = np.nonzero(cells >= 0)
    near = cells[rows, ranks]
    table = {
        "rank": ranks + 1,
        "neighbour": reference.read_names(near).astype(str),
        "distance": distances[rows, ranks],
        **{name: _to_plain(reference.take_column(name, near)) for name in columns},
    }
    return pd.DataFrame(table, index=pd.Index(names[rows], name="cell"))
