"""The order of cells in an epoch: a pure function of (seed, epoch), the same for any threads and restarts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EpochPlan:
    """Which blocks are mixed with which, and where each group's cells stand in the epoch.

    groups        each int64 [blocks]: blocks that are read together, their cells mixed
    group_starts  int64 [groups + 1]: position in the epoch of each group's first cell; the last is the cells in all
    seed, epoch   what the order within groups depends on; seed None keeps the order of the data
    """

    groups: list[np.ndarray]
    group_starts: np.ndarray
    seed: int | None
    epoch: int

    @property
    def n_cells(self) -> int:
        """Cells visited in the epoch."""
        return int(self.group_starts[-1])

    def order_group(self, group: int) -> np.ndarray:
        """int64 [cells of the group]: the order in which its cells, numbered block after block, are visited."""
        n = int(self.group_starts[group + 1] - self.group_starts[group])
        if self.seed is None:
            return np.arange(n)
        return np.random.default_rng([self.seed, self.epoch, 1, group]).permutation(n)


def plan_epoch(block_cells: np.ndarray, group_blocks: int, seed: int | None, epoch: int) -> EpochPlan:
    """Permute the blocks and group them, `group_blocks` at a time.

    block_cells  int [blocks]: cells to visit in each block; a block with none is not read
    seed         None keeps the order of the data
    """
    blocks = np.flatnonzero(block_cells)
    if seed is not None:
        blocks = np.random.default_rng([seed, epoch, 0]).permutation(blocks)
    groups = [blocks[at : at + group_blocks] for at in range(0, len(blocks), group_blocks)]
    starts = np.cumsum([0] + [int(block_cells[group].sum()) for group in groups])
    return EpochPlan(groups, starts, seed, epoch)
