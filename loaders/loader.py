"""Minibatches from cells on disk: an ordinary PyTorch IterableDataset that can stop and go on at any minibatch."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import IterableDataset

from atlasvi.loaders.batch import Batch
from atlasvi.loaders.cells import CellData
from atlasvi.loaders.plan import EpochPlan, plan_epoch
from atlasvi.loaders.prefetch import Prefetched
from atlasvi.loaders.rows import Rows, gather_rows

AHEAD = 8  # minibatches decoded before they are asked for


class BatchLoader(IterableDataset):
    """Minibatches of `batch_size` cells, each cell of the epoch once; the last may be smaller, none is dropped.

    data        a cell store or source (`open_cells`)
    seed        of the order; (seed, epoch) fixes it
    codes       covariates of all cells: name -> int [data.n_cells]
    cells       bool [data.n_cells]: which cells to visit; None visits all
    shuffle     False keeps the order of the data

    Iterating yields what is left of the current epoch, from the cursor on, and then moves to the next epoch. The counts
    are read and gathered by one background thread (give no `num_workers` to a DataLoader around this: forked workers
    would read everything once each).
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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self._codes = {name: np.asarray(values) for name, values in (codes or {}).items()}
        self._cells = cells
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
        plan = plan_epoch(self._block_cells, self.data.group_blocks, self.seed if self.shuffle else None, self._epoch)
        for batch in Prefetched(self._make_batches(plan, self._batch), AHEAD):
            self._batch += 1
            yield batch
        self.set_epoch(self._epoch + 1)

    def _make_batches(self, plan: EpochPlan, start_batch: int) -> Iterator[Batch]:
        """Minibatches from `start_batch` on; runs in the background thread."""
        start = start_batch * self.batch_size
        first = max(int(np.searchsorted(plan.group_starts, start, side="right")) - 1, 0)
        waiting: list[Rows] = []  # gathered rows of the minibatch that the end of a group left unfinished
        places: list[np.ndarray] = []
        n_waiting = 0
        for group in range(first, len(plan.groups)):
            rows, numbers = self._read_group(plan.groups[group])
            order = plan.order_group(group)[max(start - int(plan.group_starts[group]), 0) :]
            at = 0
            while at < len(order):
                chosen = order[at : at + self.batch_size - n_waiting]
                at += len(chosen)
                n_waiting += len(chosen)
                waiting.append(Rows(0, *gather_rows(rows.indptr, rows.indices, rows.counts, chosen)))
                places.append(numbers[chosen])
                if n_waiting == self.batch_size:
                    yield self._make_batch(waiting, places)
                    waiting, places, n_waiting = [], [], 0
        if n_waiting:
            yield self._make_batch(waiting, places)

    def _read_group(self, blocks: np.ndarray) -> tuple[Rows, np.ndarray]:
        """The cells to visit in some blocks, joined, and their numbers in the data."""
        parts, numbers = [], []
        for block in blocks.tolist():
            rows = self.data.read_block(block)
            cells = np.arange(rows.first, rows.first + len(rows))
            if self._cells is not None and self._block_cells[block] < len(rows):
                chosen = np.flatnonzero(self._cells[rows.first : rows.first + len(rows)])
                rows = Rows(rows.first, *gather_rows(rows.indptr, rows.indices, rows.counts, chosen))
                cells = cells[chosen]
            parts.append(rows)
            numbers.append(cells)
        return join_rows(parts), np.concatenate(numbers)

    def _make_batch(self, parts: list[Rows], places: list[np.ndarray]) -> Batch:
        joined, rows = join_rows(parts), np.concatenate(places)
        counts = joined.counts if joined.counts.dtype.itemsize < 4 else joined.counts.astype(np.int32)
        sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[joined.indptr]
        return Batch(
            indptr=torch.from_numpy(joined.indptr.astype(np.int32)),
            indices=torch.from_numpy(joined.indices),
            counts=torch.from_numpy(counts),
            library=torch.from_numpy(np.diff(sums).astype(np.float32)),
            rows=torch.from_numpy(rows),
            n_genes=len(self.data.genes),
            codes={name: torch.from_numpy(values[rows].astype(np.int64)) for name, values in self._codes.items()},
        )


def join_rows(parts: list[Rows]) -> Rows:
    """Rows one after the other; counts take the widest type among them."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [int(part.indptr[-1]) for part in parts])
    return Rows(
        parts[0].first,
        np.concatenate([[0], *(part.indptr[1:] + offset for part, offset in zip(parts, offsets))]).astype(np.int64),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
