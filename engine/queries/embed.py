"""Two coordinates for each cell of a minified store, from a UMAP of a sample of its cells, out of core.

1. Every cell is assigned to one of some hundred regions of the latent space (or to its value of an obs column).
2. A sample is drawn in proportion to these strata, but enough cells of each to be neighbours of each other, so that a
   rare state is in the map; UMAP lays it out.
3. Every other cell is placed beside its nearest cells of the sample (place_beside.py), and all places are written.

Memory is that of the sample, of its UMAP, and of two bytes for each cell (with `strata`, five to eight).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from atlasvi.engine.minified.embedding import writing_embedding
from atlasvi.engine.minified.kept_posterior import check_known
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.neighbours.build_index import build_index
from atlasvi.engine.neighbours.centroids import SAMPLE_PER_LIST, train_centroids
from atlasvi.engine.neighbours.exact_search import ExactSearch
from atlasvi.engine.neighbours.index_file import IndexFile
from atlasvi.engine.neighbours.search_index import choose_probing, search_index
from atlasvi.engine.queries.cell_choice import draw_indices
from atlasvi.engine.queries.place_beside import place_beside
from atlasvi.engine.queries.question_cells import QueryError, need_at_least
from atlasvi.engine.queries.shared_draws import Report
from atlasvi.engine.queries.stratified_sample import choose_sample
from atlasvi.engine.queries.umap_layout import (
    MIN_DISTANCE,
    N_EPOCHS,
    N_NEIGHBOURS,
    find_components,
    import_umap,
    lay_out,
)
from atlasvi.loaders.cells.coded_columns import code_column
from atlasvi.loaders.errors import MissingDependencyError, SourceError

SAMPLE = 100_000  # its UMAP takes about two minutes
SLICE_CELLS = 2**16
MOST_REGIONS, CELLS_PER_REGION = 1024, 100
MOST_PAIRS = 10_000_000_000  # of a cell and one of the sample, up to which they are compared exactly: some ten seconds
CELLS_PER_LIST, RECALL = 200, 0.95  # of the index of the sample
CHECKED_CELLS = 2_000


@dataclass(frozen=True)
class EmbeddingReport:
    """The result of `embed`.

    method           UMAP, or PCA where there are no more cells than one cell has neighbours
    n_sample         cells that UMAP itself laid out
    trustworthiness  of the map (Venna and Kaski 2001), for 15 neighbours among 2,000 cells at random: 1 if all that are
                     near in it are near in the latent space; None for fewer than 100 cells
    """

    out: str
    n_cells: int
    n_sample: int
    method: str
    trustworthiness: float | None


def embed(
    store: MinifiedStore | str | Path,
    *,
    sample: int = SAMPLE,
    strata: str | None = None,
    n_neighbours: int = N_NEIGHBOURS,
    min_distance: float = MIN_DISTANCE,
    seed: int = 0,
    replace: bool = False,
    progress: Report = lambda stage, done, total: None,
) -> EmbeddingReport:
    """Write two coordinates for each cell of a minified store into it, as obsm['X_umap'].

    sample        about how many cells UMAP lays out; if the store has no more, that is a UMAP of all cells
    strata        obs column whose values are all in the sample, the rarest too; None: regions of the latent space
    n_neighbours, min_distance  UMAP's n_neighbors and min_dist
    replace       whether coordinates that are there may be replaced
    The same store, arguments and versions give the same coordinates. A store that is open shows them when it is opened
    again. `read_embedding` reads them.
    Raises MissingDependencyError without umap-learn, SourceError if cells have no latents, ColumnError for an unknown
    column, OutputError if there are coordinates, or if the store can't be written.
    """
    opened = open_for_embedding(store, sample, strata, n_neighbours, min_distance)
    made_by = {
        "method": f"UMAP of a sample (umap-learn {version('umap-learn')}), other cells beside their neighbours in it",
        "seed": seed,
        "sample": sample,
        "strata": strata,
        "n_neighbours": n_neighbours,
        "min_distance": min_distance,
        "n_epochs": N_EPOCHS,
    }
    with writing_embedding(opened, made_by, replace) as append:
        chosen = _choose_sample(opened, sample, strata, n_neighbours, seed, progress)
        placing = _Map(opened, chosen, n_neighbours, min_distance, seed, progress)
        checked, parts = draw_indices(opened.n_cells, CHECKED_CELLS, np.random.default_rng(seed)), list[np.ndarray]()
        for start, places in placing.place_all(progress):
            append(places)
            here = checked[np.searchsorted(checked, start) : np.searchsorted(checked, start + len(places))]
            parts.append(places[here - start])
    faithful = None
    if len(checked) >= 100:
        from sklearn.manifold import trustworthiness

        k = min(N_NEIGHBOURS, len(checked) // 4)
        faithful = float(trustworthiness(opened.take_mean(checked), np.concatenate(parts), n_neighbors=k))
    return EmbeddingReport(opened.path, opened.n_cells, len(chosen), placing.method, faithful)


def open_for_embedding(
    store: MinifiedStore | str | Path, sample: int, strata: str | None, n_neighbours: int, min_distance: float
) -> MinifiedStore:
    """The store, opened, if `embed` can work on it with these arguments. Raises what `embed` raises before its work."""
    need_at_least(2, sample=sample, n_neighbours=n_neighbours)
    if not 0 <= min_distance <= 1:
        raise QueryError(f"min_distance is {min_distance:g}: it must be from 0 to 1.")
    if import_umap() is None:
        raise MissingDependencyError("An embedding needs umap-learn: pip install 'atlasvi[plots]'.")
    opened = store if isinstance(store, MinifiedStore) else open_minified(store)
    if not isinstance(opened, MinifiedStore):
        raise SourceError(
            f"{opened.path}: it is minified data of scvi-tools; coordinates are written into a minified store alone. "
            "Make one (atlasvi minify RUN DATA --out MINI), or write obsm['X_umap'] with scanpy."
        )
    if opened.n_cells == 0:
        raise SourceError(f"{opened.path}: it has no cells to place.")
    if strata is not None:
        opened.read_column(strata, 0, 0)  # raises ColumnError before anything is computed
    return opened


def _read_means(store: MinifiedStore, cells: np.ndarray) -> np.ndarray:
    """Means of cells, float32 [cells, latent]. Raises SourceError if cells have no latents."""
    qzm = store.take_mean(cells)
    check_known(store.path, np.isfinite(qzm).all(1), lambda place: str(store.take_names(cells[[place]])[0]))
    return qzm


def _read_slices(store: MinifiedStore) -> Iterator[tuple[int, np.ndarray]]:
    """(first cell, means) of all cells, in slices."""
    for start in range(0, store.n_cells, SLICE_CELLS):
        yield start, _read_means(store, np.arange(start, min(start + SLICE_CELLS, store.n_cells)))


def _choose_sample(
    store: MinifiedStore, size: int, strata: str | None, n_neighbours: int, seed: int, progress: Report
) -> np.ndarray:
    """Ascending int64 indices of the cells that UMAP lays out."""
    if store.n_cells <= size:
        return np.arange(store.n_cells)
    if strata is not None:
        column = code_column(store, strata)
        codes = column.codes.astype(np.int32)
        codes[codes < 0] = len(column.categories)  # cells without a value are a stratum too
    else:
        codes = _assign_regions(store, int(np.clip(size // CELLS_PER_REGION, 1, MOST_REGIONS)), seed, progress)
    chosen = choose_sample(codes, size, n_neighbours + 1, seed)
    if len(chosen) > 2 * size:
        raise QueryError(
            f"{store.path}: with {n_neighbours + 1} cells of each value of obs column {strata!r}, the sample would "
            f"have {len(chosen):,} cells instead of {size:,}: name a column with fewer values, or none."
        )
    return chosen


def _assign_regions(store: MinifiedStore, n_regions: int, seed: int, progress: Report) -> np.ndarray:
    """int16 [cells]: the region of the latent space that each cell is in, by k-means of some of them."""
    random = np.random.default_rng(seed)
    some = _read_means(store, draw_indices(store.n_cells, n_regions * SAMPLE_PER_LIST, random))
    centroids = train_centroids(random.permutation(some), n_regions, seed)
    regions = np.empty(store.n_cells, np.int16)
    for start, means in _read_slices(store):
        regions[start : start + len(means)] = centroids.assign(means)
        progress("choosing a sample", start + len(means), store.n_cells)
    return regions


class _Sample:
    """The means of the cells of the sample, of which an index can be made."""

    def __init__(self, path: str, means: np.ndarray) -> None:
        self.path, self.means = path, means
        self.n_cells, self.n_latent = means.shape

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The means of cells [start, stop), twice: an index has no use for variances."""
        return self.means[start:stop], self.means[start:stop]


class _Map:
    """The cells of the sample in the plane, and every other cell beside them."""

    def __init__(
        self,
        store: MinifiedStore,
        chosen: np.ndarray,
        n_neighbours: int,
        min_distance: float,
        seed: int,
        progress: Report,
    ) -> None:
        self._store, self._chosen, self._seed, self._min_distance = store, chosen, seed, min_distance
        self._means = _read_means(store, chosen)
        self._k = min(n_neighbours, len(chosen))
        self.method = "UMAP" if len(chosen) > n_neighbours else "PCA"
        if self.method == "PCA":
            places = find_components(self._means.astype(np.float64))
        else:
            progress("finding neighbours in the sample", 0, len(chosen))
            own = np.arange(len(chosen))
            search = ExactSearch(self._means, self._k - 1, own)
            search.add(self._means, own)
            squared, near = search.finish()
            progress("finding neighbours in the sample", len(chosen), len(chosen))
            near, distances = np.insert(near, 0, own, axis=1), np.insert(np.sqrt(squared), 0, 0, axis=1)
            progress("laying out the sample", 0, len(chosen))
            places = lay_out(self._means, near, distances, seed, min_distance)
            progress("laying out the sample", len(chosen), len(chosen))
        self._places = places.astype(np.float32)

    def place_all(self, progress: Report) -> Iterator[tuple[int, np.ndarray]]:
        """(first cell, float32 [cells, 2]) of all cells of the store, in slices."""
        n_cells, chosen = self._store.n_cells, self._chosen
        with tempfile.TemporaryDirectory() as folder:
            index = self._index_sample(Path(folder)) if n_cells * len(chosen) > MOST_PAIRS else None
            for start in range(0, n_cells, SLICE_CELLS):
                stop = min(start + SLICE_CELLS, n_cells)
                first, last = np.searchsorted(chosen, [start, stop])
                places = np.empty((stop - start, 2), np.float32)
                is_new = np.ones(stop - start, bool)
                is_new[chosen[first:last] - start] = False
                places[~is_new] = self._places[first:last]
                if is_new.any():
                    places[is_new] = self._place_new(start + np.flatnonzero(is_new), index)
                yield start, places
                progress("placing cells", stop, n_cells)

    def _place_new(self, cells: np.ndarray, index: IndexFile | None) -> np.ndarray:
        means = _read_means(self._store, cells)
        if index is None:
            search = ExactSearch(means, self._k)
            search.add(self._means, np.arange(len(self._means)))
            squared, near = search.finish()
        else:
            n_lists = choose_probing(index, self._k, RECALL).n_lists
            squared, near = search_index(index, means, self._k, n_lists=n_lists)
        return place_beside(self._places, near, np.sqrt(squared), cells, self._seed, self._min_distance)

    def _index_sample(self, folder: Path) -> IndexFile:
        build_index(
            _Sample(str(folder / "sample"), self._means),
            folder / "index",
            seed=self._seed,
            cells_per_list=CELLS_PER_LIST,
        )
        return IndexFile(folder / "index")
