"""Build the index of a minified store's latents: out of core, in two passes over the latents after a sample.

Cells are in lists by their nearest of some thousand centroids, in each list in the order of the store, with the means
of q(z | x) in eight bits for each dimension, relative to the list. The number of lists to search is chosen by the
recall that is measured here, for some cells of the store, against exact search.

Why our own lists and not a kept library (benchmarks/neighbours.py; RESULTS.md has the figures): at ten million cells x
20 latents, on two cores, ours are built at 530,000 cells a second, faiss's inverted lists with 8-bit codes at 370,000;
1,000 questions take 0.15 s and 0.22 s, in a Gaussian cloud 0.6 s and 4.6 s, at the same recall of 0.97; a cell takes
24 bytes and 28; and faiss holds all latents and the index in memory (2.1 GB, ours 0.4), and brings threads of its own
beside torch's. The graphs of usearch take 169 bytes a cell and forty times the processor time to build. And what a
store needs beside the search would be ours anyway: checksums of the lists that are read, chosen cells, and a recall
that is measured.
"""

import mmap
import operator
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from atlasvi.engine.minified.kept_posterior import check_known
from atlasvi.engine.neighbours.centroids import (
    CELLS_PER_LIST,
    SAMPLE_PER_LIST,
    Centroids,
    choose_n_lists,
    train_centroids,
)
from atlasvi.engine.neighbours.exact_search import ExactSearch
from atlasvi.engine.neighbours.index_file import (
    HEADER,
    LARGE,
    Header,
    IndexFile,
    Latents,
    checksum_list,
    identify_latents,
    name_index,
)
from atlasvi.engine.neighbours.scanning import place_cells, widen_ranges
from atlasvi.engine.neighbours.search_index import search_index
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import hash_files, write_json, write_manifest
from atlasvi.loaders.outputs import write_folder_aside

SLICE_CELLS = 2**16  # latents read at a time
WRITTEN_CELLS = 2**22  # after which pages that were written are released; more often, each is read back too often
SAMPLE_SLICES, SAMPLE_SLICE_CELLS = 128, 2**13
MEASURED_CELLS, MEASURED_KS = 200, (10, 50, 250)
GROWTH, MOST_PROBES = 0.0005, 1024  # twice the lists must find this share more, or no more are tried
MOST_CELLS = 2**32

Progress = Callable[[str, int, int], None]
"""Told the stage, how many cells are done, and of how many."""


@dataclass(frozen=True)
class IndexReport:
    """The result of `build_index`: bytes of the whole folder, and the recall for 50 neighbours by lists searched."""

    out: str
    n_cells: int
    n_lists: int
    n_bytes: int
    recalls: dict[int, float]

    @property
    def best_recall(self) -> float:
        """The recall with the most lists that were tried."""
        return max(self.recalls.values())


def build_index(
    store: Latents,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    cells_per_list: int = CELLS_PER_LIST,
    progress: Progress = lambda stage, done, total: None,
) -> IndexReport:
    """Write the index of a store's latents to a new folder, `out` (default: MINI.neighbours, beside the store).

    cells_per_list  about how many cells a list has; fewer are better where there are many more queries than cells
    The same latents and seed give the same index. Memory is that of a sample and of two bytes for each cell.
    Raises SourceError if cells have no latents, OutputError if `out` exists or can't be written.
    """
    out = name_index(store.path) if out is None else Path(out)
    if not 0 < store.n_cells < MOST_CELLS:
        raise SourceError(f"{store.path}: it has {store.n_cells:,} cells; an index is of 1 to {MOST_CELLS - 1:,}.")
    with write_folder_aside(out) as scratch:
        folder = scratch / "result"
        folder.mkdir()
        n_lists = choose_n_lists(store.n_cells, cells_per_list)
        sample, measured = _take_sample(store, n_lists * SAMPLE_PER_LIST, np.random.default_rng(seed))
        centroids = train_centroids(sample, n_lists, seed)
        assigned = _assign_cells(store, centroids, measured, progress)
        _encode_cells(folder, store, assigned, progress)
        n_lists = len(centroids.lists)
        header = Header(store.n_cells, store.n_latent, n_lists, identify_latents(store), (), (), ())
        np.save(folder / "centroids.npy", centroids.lists)
        write_json(folder / HEADER, header.to_record())
        write_manifest(folder)
        header = _measure_recalls(IndexFile(folder), measured, assigned.nearest)
        known = hash_files(folder, [f"{name}.npy" for name in LARGE]) if header.probes else None
        write_json(folder / HEADER, header.to_record())
        write_manifest(folder, known=known)
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    fifty = header.ks.index(50) if 50 in header.ks else -1
    recalls = dict(zip(header.probes, header.recalls[fifty]))
    return IndexReport(str(out), store.n_cells, header.n_lists, n_bytes, recalls)


@dataclass(frozen=True)
class _Measured:
    """Cells for which the recall is measured: their indices, int64, and means, float32 [cells, latent]."""

    cells: np.ndarray
    qzm: np.ndarray


@dataclass(frozen=True)
class _Assigned:
    """The first pass over the latents.

    lists         uint16 [cells]
    low, step     float32 [lists, latent]
    nearest       int64 [measured, k]: the true neighbours of the measured cells
    """

    lists: np.ndarray
    low: np.ndarray
    step: np.ndarray
    nearest: np.ndarray


def _take_sample(store: Latents, n: int, random: np.random.Generator) -> tuple[np.ndarray, _Measured]:
    """Means of about n cells in random order, float32 [cells, latent], from slices all over the store."""
    size = min(SAMPLE_SLICE_CELLS, store.n_cells)
    n_slices = min(-(-store.n_cells // size), SAMPLE_SLICES)
    parts, cells = [], []
    for start in np.linspace(0, store.n_cells - size, n_slices).astype(int).tolist():
        rows = random.choice(size, min(-(-n // n_slices), size), replace=False)
        parts.append(_read(store, start, start + size)[rows])
        cells.append(start + rows)
    order = random.permutation(sum(map(len, parts)))
    sample, numbers = np.concatenate(parts)[order], np.concatenate(cells)[order]
    _, first = np.unique(numbers[: 2 * MEASURED_CELLS], return_index=True)
    first = first[:MEASURED_CELLS]
    return sample, _Measured(numbers[first], sample[first])


def _read(store: Latents, start: int, stop: int) -> np.ndarray:
    """Means of cells [start, stop), float32 [cells, latent]. Raises SourceError if cells have no latents."""
    qzm, qzv = store.read_latent(start, stop)
    known = np.isfinite(qzm).all(1) & np.isfinite(qzv).all(1)
    check_known(store.path, known, lambda place: f"number {start + place:,}")
    return np.ascontiguousarray(qzm, np.float32)


def _read_slices(store: Latents) -> Iterator[tuple[int, np.ndarray]]:
    """(first cell, means) of all cells, in slices, with the next slice being read meanwhile."""
    starts = range(0, store.n_cells, SLICE_CELLS)
    with ThreadPoolExecutor(1) as reader:

        def submit(start: int):  # type: ignore[no-untyped-def]
            return reader.submit(_read, store, start, min(start + SLICE_CELLS, store.n_cells))

        waiting = submit(0)
        for start in starts:
            part = waiting.result()
            if start + SLICE_CELLS < store.n_cells:
                waiting = submit(start + SLICE_CELLS)
            yield start, part


def _assign_cells(store: Latents, centroids: Centroids, measured: _Measured, progress: Progress) -> _Assigned:
    lists = np.empty(store.n_cells, np.uint16)
    low = np.full(centroids.lists.shape, np.inf, np.float32)
    high = -low
    exact = ExactSearch(measured.qzm, min(max(MEASURED_KS), store.n_cells), own=measured.cells)
    for start, qzm in _read_slices(store):
        stop = start + len(qzm)
        lists[start:stop] = centroids.assign(qzm)
        widen_ranges(qzm, lists[start:stop], low, high)
        exact.add(qzm, np.arange(start, stop))
        progress("assigning cells to lists", stop, store.n_cells)
    empty = low > high
    low, high = np.where(empty, 0, low), np.where(empty, 0, high)
    return _Assigned(lists, low, (high - low) / np.float32(255), exact.finish()[1])


def _encode_cells(folder: Path, store: Latents, assigned: _Assigned, progress: Progress) -> None:
    """Write the codes and cells by list, and where the lists are, with their checksums."""
    shapes = zip(LARGE, (np.uint8, np.uint32), ((store.n_latent,), ()))
    large = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (store.n_cells, *shape))
        for name, dtype, shape in shapes
    ]
    starts = np.cumsum([0, *np.bincount(assigned.lists, minlength=len(assigned.low))])
    places = starts[:-1].copy()
    for start, qzm in _read_slices(store):
        lists = assigned.lists[start : start + len(qzm)]
        place_cells(qzm, start, lists, assigned.low, assigned.step, places, *large)
        if start % WRITTEN_CELLS == 0:
            for array in large:  # else all that was written would count as memory of this process
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        progress("writing the lists", start + len(qzm), store.n_cells)
    here = [slice(*edges) for edges in pairwise(starts)]
    checksums = [checksum_list(*(array[part] for array in large)) for part in here]
    small = {"low": assigned.low, "step": assigned.step, "starts": starts, "checksums": np.array(checksums, np.uint32)}
    for name, values in small.items():
        np.save(folder / f"{name}.npy", values)


def _measure_recalls(index: IndexFile, measured: _Measured, nearest: np.ndarray) -> Header:
    """The header with the recall for a growing number of lists, until it is nearly 1 or no longer grows."""
    ks = tuple(k for k in MEASURED_KS if k < index.header.n_cells) or (1,)
    probes: list[int] = []
    recalls: list[list[float]] = []
    n_lists, most, growth = 1, min(index.header.n_lists, MOST_PROBES), 1.0
    while n_lists <= most and growth > GROWTH:
        found = [search_index(index, measured.qzm, k, n_lists=n_lists, own=measured.cells)[1] for k in ks]
        recalls.append([_share_found(cells, nearest[:, :k]) for cells, k in zip(found, ks)])
        probes.append(n_lists)
        growth = max(map(operator.sub, recalls[-1], recalls[-2])) if len(recalls) > 1 else 1.0
        n_lists = most if n_lists < most < 2 * n_lists else 2 * n_lists
    by_k = tuple(tuple(row[place] for row in recalls) for place in range(len(ks)))
    return replace(index.header, ks=ks, probes=tuple(probes), recalls=by_k)


def _share_found(found: np.ndarray, nearest: np.ndarray) -> float:
    """Mean share of the true neighbours of a cell, int64 [cells, k], that were found."""
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(found, nearest)]))
