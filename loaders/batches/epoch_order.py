"""The order of cells in an epoch: a pure function of (seed, epoch), the same for any ranks, threads and restarts.

The blocks of the data are permuted and taken in groups; the cells of a group are shuffled. Minibatch k is the cells at
positions [k * batch_size, (k + 1) * batch_size) of that order: the same set of cells for every rank. Within it, cells
are sorted by block, and rank r of w takes the r-th of w equal slices. So a rank reads few of the blocks, all ranks take
the same number of steps, and together they visit each cell once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EpochPlan:
    """Which blocks an epoch reads, in which order, and which of them are shuffled together.

    blocks        int64 [blocks]: the blocks that are read, in the order of the epoch, group after group
    edges         int64 [blocks + 1]: number of the epoch's cells before each block; the last element is the total
    group_blocks  blocks in a group; the last group may be smaller
    seed, epoch   determine the order within groups; seed None keeps the order of the data
    """

    blocks: np.ndarray
    edges: np.ndarray
    group_blocks: int
    seed: int | None
    epoch: int

    @property
    def n_cells(self) -> int:
        """Cells visited in the epoch."""
        return int(self.edges[-1])

    def order_group(self, group: int) -> np.ndarray:
        """int64 [cells of the group], in the epoch's order: positions that its cells would have sorted by block."""
        edges = self.edges[group * self.group_blocks :]
        start, stop = int(edges[0]), int(edges[min(self.group_blocks, len(edges) - 1)])
        if self.seed is None:
            return np.arange(start, stop)
        order = np.random.default_rng([self.seed, self.epoch, 1, group]).permutation(stop - start)
        return np.add(order, start, out=order)


@dataclass(frozen=True)
class Part:
    """Cells of one block that go into a minibatch.

    group, block  indices of the group in the epoch and of the block in the data
    cells         int64 [n], ascending indices into the block's cells that this epoch visits
    """

    group: int
    block: int
    cells: np.ndarray


def plan_epoch(block_cells: np.ndarray, group_blocks: int, seed: int | None, epoch: int) -> EpochPlan:
    """Permute the blocks and group them, `group_blocks` at a time.

    block_cells  int [blocks]: number of cells to visit in each block; blocks with 0 are not read
    seed         None keeps the order of the data
    """
    blocks = np.flatnonzero(block_cells)
    if seed is not None:
        blocks = np.random.default_rng([seed, epoch, 0]).permutation(blocks)
    return EpochPlan(blocks, np.concatenate([[0], np.cumsum(block_cells[blocks])]), group_blocks, seed, epoch)


def plan_minibatches(
    plan: EpochPlan, batch_size: int, start: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[list[Part]]:
    """The part of each minibatch that `rank` takes, from minibatch `start` on; an empty list where it takes no cell."""
    group_edges = plan.edges[:: plan.group_blocks]
    group = max(int(np.searchsorted(group_edges, start * batch_size, side="right")) - 1, 0)
    begin = int(group_edges[group])  # position in the epoch of the first cell in `waiting`
    waiting = np.zeros(0, np.int64)
    for at in range(start * batch_size, plan.n_cells, batch_size):
        stop = min(at + batch_size, plan.n_cells)
        while begin + len(waiting) < stop:
            waiting = np.concatenate([waiting, plan.order_group(group)])
            group += 1
        chosen, waiting = waiting[at - begin : stop - begin], waiting[stop - begin :]
        begin, n = stop, len(chosen)
        first, last = share_of(n, rank, world_size)
        yield list(_split_by_block(plan, np.sort(chosen)[first:last]))


def share_of(n_cells: int, rank: int, world_size: int) -> tuple[int, int]:
    """The slice [first, last) of a minibatch of `n_cells` that a rank takes; it may be empty."""
    return n_cells * rank // world_size, n_cells * (rank + 1) // world_size


def _split_by_block(plan: EpochPlan, positions: np.ndarray) -> Iterator[Part]:
    """Split ascending positions of cells, which are sorted by block, into cells of blocks."""
    if not len(positions):
        return
    first = int(np.searchsorted(plan.edges, positions[0], side="right")) - 1
    last = int(np.searchsorted(plan.edges, positions[-1], side="right"))
    cuts = np.searchsorted(positions, plan.edges[first : last + 1]).tolist()
    for k, low, high in zip(range(first, last), cuts, cuts[1:]):
        if high > low:
            yield Part(k // plan.group_blocks, int(plan.blocks[k]), positions[low:high] - plan.edges[k])
