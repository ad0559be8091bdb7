"""The order of cells in an epoch: a pure function of (seed, epoch), the same for any ranks, threads and restarts.

The blocks of the data are permuted and taken in groups; the cells of a group are mixed. Minibatch k is the cells at
positions [k * batch_size, (k + 1) * batch_size) of that order: a set, the same whoever asks. Within it cells stand
block by block, and rank r of w takes the r-th of w runs of it: so a rank reads few of the blocks, every rank takes
the same number of steps, and together they visit each cell once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EpochPlan:
    """Which blocks are mixed with which, in which order.

    blocks        int64 [blocks]: the blocks that are read, in the order of the epoch, group after group
    edges         int64 [blocks + 1]: cells of the epoch before each of them; the last is the cells in all
    group_blocks  how many of them make a group; the last may be smaller
    seed, epoch   what the order within groups depends on; seed None keeps the order of the data
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
        """int64 [cells of the group]: positions of its cells, as if they came block by block, in the epoch's order."""
        edges = self.edges[group * self.group_blocks :]
        start, stop = int(edges[0]), int(edges[min(self.group_blocks, len(edges) - 1)])
        if self.seed is None:
            return np.arange(start, stop)
        order = np.random.default_rng([self.seed, self.epoch, 1, group]).permutation(stop - start)
        return np.add(order, start, out=order)


@dataclass(frozen=True)
class Part:
    """Cells of one block that go into a minibatch.

    group, block  where they are; cells  int64 [n], ascending: the how many-th of the block's cells to be visited
    """

    group: int
    block: int
    cells: np.ndarray


def plan_epoch(block_cells: np.ndarray, group_blocks: int, seed: int | None, epoch: int) -> EpochPlan:
    """Permute the blocks and group them, `group_blocks` at a time.

    block_cells  int [blocks]: cells to visit in each block; a block with none is not read
    seed         None keeps the order of the data
    """
    blocks = np.flatnonzero(block_cells)
    if seed is not None:
        blocks = np.random.default_rng([seed, epoch, 0]).permutation(blocks)
    return EpochPlan(blocks, np.concatenate([[0], np.cumsum(block_cells[blocks])]), group_blocks, seed, epoch)


def plan_minibatches(
    plan: EpochPlan, batch_size: int, start: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[list[Part]]:
    """The share of `rank` in each minibatch from `start` on; an empty list where it has none."""
    group_edges = plan.edges[:: plan.group_blocks]
    group = max(int(np.searchsorted(group_edges, start * batch_size, side="right")) - 1, 0)
    begin = int(group_edges[group])  # position in the epoch of the first of `waiting`
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
    """The run [first, last) of a minibatch of `n_cells` that a rank takes; it may be empty."""
    return n_cells * rank // world_size, n_cells * (rank + 1) // world_size


def _split_by_block(plan: EpochPlan, positions: np.ndarray) -> Iterator[Part]:
    """Ascending positions, as if cells came block by block, as cells of blocks."""
    if not len(positions):
        return
    first = int(np.searchsorted(plan.edges, positions[0], side="right")) - 1
    last = int(np.searchsorted(plan.edges, positions[-1], side="right"))
    cuts = np.searchsorted(positions, plan.edges[first : last + 1]).tolist()
    for k, low, high in zip(range(first, last), cuts, cuts[1:]):
        if high > low:
            yield Part(k // plan.group_blocks, int(plan.blocks[k]), positions[low:high] - plan.edges[k])
