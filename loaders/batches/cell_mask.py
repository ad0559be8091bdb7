"""Which cells of an atlas are chosen, as one bit per cell: a process may hold several such masks of all cells."""

from typing import Self

import numpy as np

SLICE_CELLS = 2**17  # a multiple of 8, so that each slice has bytes of its own


class CellMask:
    """A set of cells out of n_cells."""

    def __init__(self, n_cells: int, bits: np.ndarray | None = None) -> None:
        """bits: uint8 [ceil(n_cells / 8)], the first cell in the lowest bit of the first byte; None: no cell."""
        self.n_cells = n_cells
        self.bits = np.zeros(-(-n_cells // 8), np.uint8) if bits is None else bits

    @classmethod
    def from_bools(cls, chosen: np.ndarray) -> Self:
        """A mask from bool [n_cells]."""
        return cls(len(chosen), np.packbits(np.asarray(chosen, bool), bitorder="little"))

    @classmethod
    def from_indices(cls, indices: np.ndarray, n_cells: int) -> Self:
        """A mask of the cells with these indices (int, in any order)."""
        mask = cls(n_cells)
        for start in range(0, len(indices), SLICE_CELLS):
            some = indices[start : start + SLICE_CELLS]
            np.bitwise_or.at(mask.bits, some >> 3, np.left_shift(1, some & 7).astype(np.uint8))
        return mask

    def __len__(self) -> int:
        return self.n_cells

    def set_slice(self, start: int, chosen: np.ndarray) -> None:
        """Replace cells [start, start + len(chosen)) by bool [cells]; `start` is a multiple of 8, and so is the end or
        it is that of all cells.
        """
        packed = np.packbits(np.asarray(chosen, bool), bitorder="little")
        self.bits[start // 8 : start // 8 + len(packed)] = packed

    def read(self, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: which of these cells are chosen."""
        bits = np.unpackbits(self.bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].view(bool)

    def count(self) -> int:
        """Number of chosen cells."""
        slices = range(0, self.n_cells, SLICE_CELLS)
        return sum(int(np.count_nonzero(self.read(start, min(start + SLICE_CELLS, self.n_cells)))) for start in slices)

    def invert(self) -> "CellMask":
        """The mask of all other cells."""
        others = CellMask(self.n_cells, ~self.bits)
        if self.n_cells % 8:
            others.bits[-1] &= (1 << self.n_cells % 8) - 1
        return others
