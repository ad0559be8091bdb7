"""Minibatches from cells on disk: an ordinary PyTorch IterableDataset that can stop and go on at any minibatch."""

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from atlasvi.loaders.batch import Batch
from atlasvi.loaders.buffers import Buffers
from atlasvi.loaders.cells import CellData
from atlasvi.loaders.plan import EpochPlan, plan_epoch
from atlasvi.loaders.rows import Rows, copy_cells

AHEAD = 8  # minibatches assembled before they are asked for
MOST_THREADS = 4


class BatchLoader(IterableDataset):
    """Minibatches of `batch_size` cells, each cell of the epoch once; the last may be smaller, none is dropped.

    data        a cell store or source (`open_cells`)
    seed        of the order; (seed, epoch) fixes it
    codes       covariates of all cells: name -> int [data.n_cells]
    cells       bool [data.n_cells]: which cells to visit; None visits all
    shuffle     False keeps the order of the data
    threads     that read and assemble in the background; None: one a core, at most 4

    Iterating yields what is left of the current epoch, from the cursor on, and then moves to the next epoch. Counts are
    read and assembled by background threads (give no `num_workers` to a DataLoader around this: forked workers would
    read everything once each). Memory: two groups of blocks and a few minibatches, about 150 MB from a cell store.
    """

    def __init__(
        self,
        data: CellData,
        batch_size: int,
        seed: int,
        *,
        codes: Mapping[str, np.ndarray] | None = None,
        cells: np.ndarray | None = None,
        shuffle: bool = True,
        threads: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self._codes = {name: np.asarray(values) for name, values in (codes or {}).items()}
        self._cells = cells
        self._threads, self._buffers = threads or min(os.cpu_count() or 1, MOST_THREADS), Buffers()
        edges = data.block_starts
        if cells is None:
            self._block_cells = np.diff(edges)
        else:
            self._block_cells = np.array([np.count_nonzero(cells[a:b]) for a, b in itertools.pairwise(edges)], np.int64)
        self.n_cells = int(self._block_cells.sum())
        self._epoch, self._batch = 0, 0

    def __len__(self) -> int:
        """Minibatches an epoch."""
        return -(-self.n_cells // self.batch_size)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the cursor: the next iteration begins at minibatch `start_batch` of `epoch`."""
        self._epoch, self._batch = epoch, start_batch

    def state_dict(self) -> dict[str, int]:
        """Where the next minibatch is."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.set_epoch(state["epoch"], state["batch"])

    def __iter__(self) -> Iterator[Batch]:
        seed = self.seed if self.shuffle else None
        plan = plan_epoch(self._block_cells, self.data.group_blocks, seed, self._epoch)
        workers = ThreadPoolExecutor(self._threads, thread_name_prefix="atlasvi-loader")
        try:
            for batch in self._stream(plan, self._batch, workers):
                self._batch += 1
                yield batch
        finally:  # also when the consumer breaks off
            workers.shutdown(wait=True, cancel_futures=True)
        self.set_epoch(self._epoch + 1)

    def _stream(self, plan: EpochPlan, start_batch: int, workers: Executor) -> Iterator[Batch]:
        """Minibatches from `start_batch` on: the workers decode a group ahead and assemble AHEAD minibatches."""
        start = start_batch * self.batch_size
        number = max(int(np.searchsorted(plan.group_starts, start, side="right")) - 1, 0)
        reading = deque(self._submit_group(plan, number, workers))
        ready: deque[Future[Batch]] = deque()
        parts: list[tuple[Group, np.ndarray]] = []  # of the minibatch that the end of a group left unfinished
        n_waiting = 0
        while number < len(plan.groups):
            blocks, reading = reading, deque(self._submit_group(plan, number + 1, workers))
            group = join_blocks([block.result() for block in blocks])
            order = plan.order_group(number)[max(start - int(plan.group_starts[number]), 0) :]
            number += 1
            at = 0
            while at < len(order):
                chosen = order[at : at + self.batch_size - n_waiting]
                at += len(chosen)
                n_waiting += len(chosen)
                parts.append((group, chosen))
                if n_waiting == self.batch_size:
                    ready.append(workers.submit(self._assemble, parts))
                    parts, n_waiting = [], 0
                if len(ready) > AHEAD:
                    yield ready.popleft().result()
        if parts:
            ready.append(workers.submit(self._assemble, parts))
        while ready:
            yield ready.popleft().result()

    def _submit_group(self, plan: EpochPlan, number: int, workers: Executor) -> Iterator[Future]:
        if number < len(plan.groups):
            for block in plan.groups[number].tolist():
                yield workers.submit(self._read_block, block)

    def _read_block(self, block: int) -> tuple[Rows, np.ndarray]:
        """A block, and which of its cells are to be visited."""
        rows = self.data.read_block(block)
        if self._cells is None:
            return rows, np.arange(len(rows))
        return rows, np.flatnonzero(self._cells[rows.first : rows.first + len(rows)])

    def _assemble(self, parts: list["tuple[Group, np.ndarray]"]) -> Batch:
        """The minibatch of the chosen cells of each group."""
        ends = np.zeros(1 + sum(len(chosen) for _, chosen in parts), np.int64)
        np.cumsum(np.concatenate([group.lengths[chosen] for group, chosen in parts]), out=ends[1:])
        counts_dtype = np.result_type(*(rows.counts.dtype for group, _ in parts for rows in group.blocks))
        if counts_dtype.itemsize == 4:
            counts_dtype = np.dtype(np.int32)  # torch computes little with uint32
        indices = self._buffers.take(int(ends[-1]), parts[0][0].blocks[0].indices.dtype)
        counts = self._buffers.take(int(ends[-1]), counts_dtype)
        library = np.empty(len(ends) - 1, np.float32)
        begin = 0
        for group, chosen in parts:
            block_of = group.block_of[chosen]
            by_block = np.argsort(block_of, kind="stable")
            edges = np.searchsorted(block_of[by_block], np.arange(len(group.blocks) + 1))
            cells, places = group.cell_of[chosen][by_block], by_block + begin
            for block, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
                if high > low:
                    rows, some = group.blocks[block], slice(low, high)
                    copy_cells(
                        rows.starts, rows.lengths, rows.indices, rows.counts, cells[some], places[some],
                        ends, indices, counts, library,
                    )  # fmt: skip
            begin += len(chosen)
        numbers = np.concatenate([group.numbers[chosen] for group, chosen in parts])
        return Batch(
            indptr=torch.from_numpy(ends.astype(np.int32)),
            indices=torch.from_numpy(indices),
            counts=torch.from_numpy(counts),
            library=torch.from_numpy(library),
            rows=torch.from_numpy(numbers),
            n_genes=len(self.data.genes),
            codes={name: torch.from_numpy(values[numbers].astype(np.int64)) for name, values in self._codes.items()},
        )


@dataclass
class Group:
    """Blocks whose cells are mixed; the cells to be visited are numbered block after block.

    block_of, cell_of  int [cells]: the block (within the group) of each, and its place in it
    numbers            int64 [cells]: its number in the data; lengths int32 [cells]: its stored counts
    """

    blocks: list[Rows]
    block_of: np.ndarray
    cell_of: np.ndarray
    numbers: np.ndarray
    lengths: np.ndarray


def join_blocks(blocks: list[tuple[Rows, np.ndarray]]) -> Group:
    """A group of blocks, each with the cells of it that are to be visited."""
    return Group(
        [rows for rows, _ in blocks],
        np.repeat(np.arange(len(blocks), dtype=np.int16), [len(cells) for _, cells in blocks]),
        np.concatenate([cells for _, cells in blocks]),
        np.concatenate([cells + rows.first for rows, cells in blocks]),
        np.concatenate([rows.lengths[cells] for rows, cells in blocks]),
    )
