"""Minibatches from cells on disk: an ordinary PyTorch IterableDataset that can stop and resume at any minibatch."""

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch.utils.data import IterableDataset, get_worker_info

from atlasvi.loaders.batches.batch import Batch, covariate_dtype, lay_out
from atlasvi.loaders.batches.cell_mask import CellMask
from atlasvi.loaders.batches.cell_selection import Draws, balance_classes, choose_cells
from atlasvi.loaders.batches.epoch_order import EpochPlan, Part, plan_epoch, plan_minibatches
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.coded_columns import code_column, slice_column
from atlasvi.loaders.cells.open_cells import open_cells, select_genes
from atlasvi.loaders.errors import DamagedChunkError
from atlasvi.loaders.places.object_path import is_remote
from atlasvi.loaders.places.objects import Traffic, traffic
from atlasvi.loaders.rows.block_rows import Rows, copy_cells
from atlasvi.loaders.rows.buffers import Buffers

READY_CELLS = 2**12  # cells in minibatches that are assembled before the caller asks for them
MOST_THREADS = 4
REMOTE_THREADS = 32  # which read from a bucket: most of them wait for an answer
AHEAD_BLOCKS = 16  # of a bucket, asked for before a group that is read needs them: see benchmarks/RESULTS.md, Buckets
SPARSE = 4  # of a block of which fewer than one cell in SPARSE is visited, only the visited ones are kept in memory

log = logging.getLogger(__name__)


class BatchLoader(IterableDataset):
    """Minibatches of `batch_size` cells, each cell once an epoch; the last may be smaller, no cell is dropped.

    data        a cell store or source, as a path or as `open_cells` opened it
    batch_size  cells in a minibatch, summed over all ranks
    seed        (seed, epoch) determines the order, whatever the number of threads, ranks and restarts
    codes       covariates: names of obs columns, or name -> int or float [data.n_cells]
    genes       names of the genes to read, in this order; None: all
    cells       which cells to visit: bool [data.n_cells] or a CellMask, or an expression over obs
                ("cell_type == 'B cell'")
    weights     float [data.n_cells]: draw cells by weight, some several times; the length of an epoch is unchanged
    balance     an obs column whose classes are drawn equally often
    shuffle     False keeps the order of the data
    rank, world_size  this process takes the part of each minibatch that belongs to `rank`
    threads     background threads that read and assemble; None: one a core, at most 4; 32 for data in a bucket,
                until a disk cache has all that an epoch reads
    damaged     'stop' at a block that does not match its checksum, or 'skip' it; `lost_cells` counts the cells lost

    Iterating yields the rest of the current epoch and then moves to the next epoch. Background threads read the counts
    and assemble minibatches; `num_workers` of a DataLoader around this must be 0. Memory: two groups of blocks and some
    minibatches, about 200 MB from a cell store; and for each cell of the data a bit of `cells`, and of each covariate a
    code in the narrowest dtype (a byte, with up to 256 categories) or a float32.
    """

    def __init__(
        self,
        data: Cells | str | Path,
        batch_size: int,
        seed: int,
        *,
        codes: Mapping[str, np.ndarray] | Sequence[str] | None = None,
        genes: Sequence[str] | None = None,
        cells: np.ndarray | CellMask | str | None = None,
        weights: np.ndarray | None = None,
        balance: str | None = None,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        damaged: Literal["stop", "skip"] = "stop",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}: it must be at least 0 and below world_size, {world_size}")
        if weights is not None and balance is not None:
            raise ValueError("give weights or balance, not both: balance is a choice of weights")
        if damaged not in ("stop", "skip"):
            raise ValueError(f"damaged is {damaged!r}: choose 'stop' or 'skip'")
        self.data = data if isinstance(data, Cells) else open_cells(data)
        if genes is not None:
            self.data = select_genes(self.data, genes)
        self.batch_size, self.seed, self.shuffle, self.damaged = batch_size, seed, shuffle, damaged
        self.rank, self.world_size = rank, world_size
        self.categories: dict[str, list[Any]] = {}  # of covariates given by name: the category of each code
        self._codes = self._read_codes(codes or {})
        chosen = choose_cells(self.data, cells) if isinstance(cells, str) else cells
        if chosen is not None and not isinstance(chosen, CellMask):
            chosen = CellMask.from_bools(np.asarray(chosen))
        self._cells = chosen
        for name, values in {**self._codes, "cells": self._cells, "weights": weights}.items():
            if values is not None and len(values) != self.data.n_cells:
                raise ValueError(f"{name} has {len(values):,} values for {self.data.n_cells:,} cells: give one a cell")
        if balance is not None:
            weights = balance_classes(self.data, balance, self._cells)
        self._draws = None if weights is None else Draws(weights, self._cells)
        self._is_remote = is_remote(self.data.path)
        self._threads = threads
        self._before: Traffic | None = None  # what had been read when the epoch before began
        self._buffers = Buffers(_allocate_pinned if torch.cuda.is_available() else np.empty)
        self._block_cells = self._count_block_cells(0)
        self.n_cells = int(self._block_cells.sum())
        self._epoch, self._batch = 0, 0
        self._lost: dict[int, int] = {}

    def __len__(self) -> int:
        """Minibatches per epoch, the same on every rank."""
        return -(-self.n_cells // self.batch_size)

    @property
    def lost_cells(self) -> int:
        """Cells skipped so far because their block was damaged; 0 unless `damaged` is 'skip'."""
        return sum(self._lost.values())

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the position: the next iteration begins at minibatch `start_batch` of `epoch`."""
        self._epoch, self._batch = epoch, start_batch

    def state_dict(self) -> dict[str, int]:
        """Position of the next minibatch, and the values that determine the order."""
        order = {"seed": self.seed, "batch_size": self.batch_size, "n_cells": self.n_cells}
        return {"epoch": self._epoch, "batch": self._batch, **order}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken, on any number of ranks. Raises ValueError if the order differs."""
        for name, now in self.state_dict().items():
            if name not in ("epoch", "batch") and state.get(name, now) != now:
                raise ValueError(f"the state was taken with {name}={state[name]}, and this loader has {name}={now}")
        self.set_epoch(state["epoch"], state["batch"])

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise RuntimeError("BatchLoader has its own threads for reading: set num_workers=0, or iterate it directly")
        if self._draws is not None:
            self._block_cells = self._count_block_cells(self._epoch)
        plan = plan_epoch(self._block_cells, self.data.group_blocks, self.seed if self.shuffle else None, self._epoch)
        workers = ThreadPoolExecutor(self._choose_threads(), thread_name_prefix="atlasvi-loader")
        try:
            for batch in self._stream(plan, workers):
                self._batch += 1
                # a rank's part may be empty: yield it, since all ranks must take the same number of steps
                if len(batch) or self.world_size > 1:
                    yield batch
        finally:  # also when the caller leaves the loop early
            workers.shutdown(wait=True, cancel_futures=True)
        self.set_epoch(self._epoch + 1)

    def _choose_threads(self) -> int:
        """The number of threads of an epoch: many for a bucket, for which they mostly wait. Once a disk cache had all
        that the epoch before read, they do not wait, and many would only slow each other down."""
        before, self._before = self._before, replace(traffic)
        was_kept = before and before.n_bytes == traffic.n_bytes and before.kept_bytes < traffic.kept_bytes
        few = min(os.cpu_count() or 1, MOST_THREADS)
        return self._threads or (REMOTE_THREADS if self._is_remote and not was_kept else few)

    def _stream(self, plan: EpochPlan, workers: Executor) -> Iterator[Batch]:
        """Minibatches from the current position on; blocks are read while earlier minibatches are assembled."""
        # the next group is read once half of this one is used, so both are in memory for some time in any case
        group_cells = plan.n_cells * self.data.group_blocks // max(len(plan.blocks), 1)
        n_planned, n_ready = (max(cells // self.batch_size, 2) for cells in (group_cells // 2, READY_CELLS))
        planned: deque[list[tuple[Future[Block], np.ndarray]]] = deque()
        ready: deque[Future[Batch]] = deque()
        blocks: dict[tuple[int, int], Future[Block]] = {}
        minibatches = plan_minibatches(plan, self.batch_size, self._batch, self.rank, self.world_size)
        asked: dict[tuple[int, int], Future[object]] = {}
        for parts in self._ask_ahead(minibatches, asked, workers) if self._is_remote else minibatches:
            if parts:  # drop the blocks of finished groups; minibatches that are not yet assembled keep theirs
                blocks = {key: block for key, block in blocks.items() if key[0] >= parts[0].group}
            for key in [(part.group, part.block) for part in parts]:
                if key not in blocks:
                    blocks[key] = workers.submit(self._read_block, key[1], plan.epoch, asked.pop(key, None))
            planned.append([(blocks[part.group, part.block], part.cells) for part in parts])
            if len(planned) > n_planned:
                ready.append(workers.submit(self._assemble, planned.popleft()))
            if len(ready) > n_ready:
                yield ready.popleft().result()
        ready.extend(workers.submit(self._assemble, parts) for parts in planned)
        planned.clear()
        while ready:
            yield ready.popleft().result()

    def _ask_ahead(
        self, minibatches: Iterator[list[Part]], asked: dict[tuple[int, int], Future[object]], workers: Executor
    ) -> Iterator[list[Part]]:
        """The same minibatches; the blocks of later ones are asked for, and what that returns is put into `asked`."""
        waiting: deque[list[Part]] = deque()
        latest: set[tuple[int, int]] = set()  # blocks of the last group that was asked for, and of the one before
        for parts in minibatches:
            waiting.append(parts)
            for key in [(part.group, part.block) for part in parts]:
                if key not in latest:
                    latest = {key, *(other for other in latest if other[0] >= key[0] - 1)}
                    asked[key] = workers.submit(self.data.ask_ahead, key[1])
            while len(asked) > AHEAD_BLOCKS and waiting:
                yield waiting.popleft()
        yield from waiting

    def _read_block(self, block: int, epoch: int, asked: Future[object] | None = None) -> "Block":
        """The cells of a block that the epoch visits; what was `asked` for ahead is kept until it is read."""
        start, stop = self.data.block_starts[block], self.data.block_starts[block + 1]
        if asked is not None:
            with suppress(Exception):  # an error in it occurs again below, or has passed
                asked.result()  # this waits for no task that has not begun: that one was submitted before
        try:
            rows = self.data.read_block(block)
        except DamagedChunkError as error:
            if self.damaged == "stop":
                raise
            if block not in self._lost:
                self._lost[block] = int(self._block_cells[block])
                log.warning("%s: %d cells left out: %s", self.data.path, self._lost[block], error)
            return Block(None, None)
        if self._draws is not None:
            visited = np.repeat(np.arange(len(rows)), self._draws.count(start, stop, self.seed, epoch))
        elif self._cells is not None:
            visited = np.flatnonzero(self._cells.read(start, stop))
        else:
            return Block(rows, None)
        if SPARSE * len(visited) < len(rows):  # a minibatch of few cells of each block needs many blocks at a time
            return Block(rows.copy(visited), visited, is_copy=True)
        return Block(rows, visited)

    def _assemble(self, parts: "list[tuple[Future[Block], np.ndarray]]") -> Batch:
        """Assemble a minibatch from the chosen cells of each block."""
        read = [(block.result(), cells) for block, cells in parts]
        pieces = [(block.rows, *block.find(cells)) for block, cells in read if block.rows is not None]
        lengths = [rows.lengths[places] for rows, places, _ in pieces]
        ends = np.zeros(1 + sum(map(len, lengths)), np.int64)
        np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int32)]), out=ends[1:])
        counts_dtype = np.result_type(np.uint8, *(rows.counts.dtype for rows, _, _ in pieces))
        if counts_dtype.kind == "f":  # values that are not whole
            counts_dtype = np.dtype(np.float32)
        elif counts_dtype.itemsize == 4:
            counts_dtype = np.dtype(np.int32)  # torch has few operations for uint32
        index_dtype = np.result_type(np.uint16, *(rows.indices.dtype for rows, _, _ in pieces))
        n_cells, n_counts = len(ends) - 1, int(ends[-1])
        memory, arrays = lay_out(
            {
                "indptr": ((n_cells + 1,), np.dtype(np.int32)),
                "library": ((n_cells,), np.dtype(np.float32)),
                "rows": ((n_cells,), np.dtype(np.int64)),
                **{f"codes/{name}": ((n_cells, *v.shape[1:]), covariate_dtype(v)) for name, v in self._codes.items()},
                "indices": ((n_counts,), index_dtype),
                "counts": ((n_counts,), counts_dtype),
            },
            lambda n_bytes: self._buffers.take(n_bytes, np.uint8),
        )
        numbers, at = arrays["rows"], 0
        for rows, places, cells in pieces:
            copy_cells(
                rows.starts, rows.lengths, rows.indices, rows.counts, places, at, ends, arrays["indices"],
                arrays["counts"], arrays["library"],
            )  # fmt: skip
            np.add(cells, rows.first, out=numbers[at : at + len(cells)])
            at += len(cells)
        arrays["indptr"][:] = ends
        for name, values in self._codes.items():
            arrays[f"codes/{name}"][:] = values[numbers]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        codes = {name: tensors.pop(f"codes/{name}") for name in self._codes}
        return Batch(**tensors, n_genes=len(self.data.genes), codes=codes, memory=torch.from_numpy(memory))

    def _count_block_cells(self, epoch: int) -> np.ndarray:
        """int64 [blocks]: number of visits to cells of each block."""
        edges = self.data.block_starts
        if self._draws is not None:
            draws = self._draws
            return np.array([draws.count(a, b, self.seed, epoch).sum() for a, b in itertools.pairwise(edges)], np.int64)
        if self._cells is None:
            return np.diff(edges)
        chosen = (self._cells.read(int(a), int(b)) for a, b in itertools.pairwise(edges))
        return np.fromiter((np.count_nonzero(part) for part in chosen), np.int64, len(edges) - 1)

    def _read_codes(self, codes: Mapping[str, np.ndarray] | Sequence[str]) -> dict[str, np.ndarray]:
        """Covariates of all cells; columns given by name are read: floats as float32, all others as categories."""
        if isinstance(codes, Mapping):
            return {name: _narrow(np.asarray(values)) for name, values in codes.items()}
        read: dict[str, np.ndarray] = {}
        for name in [codes] if isinstance(codes, str) else codes:
            if pd.api.types.is_float_dtype(self.data.read_column(name, 0, 0).dtype):
                read[name] = np.empty(self.data.n_cells, np.float32)
                for start, part in slice_column(self.data, name):
                    read[name][start : start + len(part)] = part.to_numpy(np.float32)
            else:
                column = code_column(self.data, name)
                read[name], self.categories[name] = column.codes, list(column.categories)
        return read


@dataclass
class Block:
    """A block that was read.

    rows     all rows of the block, or a copy of those that are visited; None: it is damaged
    visited  int64: index in the block of each visited cell, in order; None: all are visited
    is_copy  whether `rows` holds only the visited cells
    """

    rows: Rows | None
    visited: np.ndarray | None
    is_copy: bool = False

    def find(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the visited cells with these indices: (indices in `rows`, indices in the block)."""
        if self.visited is None:
            return cells, cells
        in_block = self.visited[cells]
        return cells if self.is_copy else in_block, in_block


def _narrow(values: np.ndarray) -> np.ndarray:
    """Integer codes in the narrowest dtype, since they are kept for all cells."""
    if values.dtype.kind not in "iu" or not len(values):
        return values
    narrow = np.result_type(np.min_scalar_type(values.min()), np.min_scalar_type(values.max()))
    return values.astype(narrow, copy=False)  # several loaders of the same cells share one array


def _allocate_pinned(length: int, dtype: np.dtype) -> np.ndarray:
    """Pinned memory, from which a GPU copies while the CPU does something else."""
    return torch.empty(length * dtype.itemsize, dtype=torch.uint8, pin_memory=True).numpy().view(dtype)
