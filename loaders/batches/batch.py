"""A minibatch of cells as it goes to the model: sparse counts, library sizes, covariate codes."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: one cache line, and at least what any device requires


def lay_out(
    wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]], take: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Memory for arrays of these shapes and dtypes, one after the other, and the arrays by name as views of it.

    take  returns memory, uint8 [bytes], given the number of bytes
    """
    spans, end = [], 0
    for shape, dtype in wanted.values():
        n_bytes = math.prod(shape) * dtype.itemsize
        spans.append((end, end + n_bytes))
        end += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    memory = take(end)
    return memory, {
        name: memory[start:stop].view(dtype).reshape(shape)
        for (name, (shape, dtype)), (start, stop) in zip(wanted.items(), spans)
    }


def covariate_dtype(values: np.ndarray) -> np.dtype:
    """The dtype of a covariate in a minibatch: int64 for codes, with which torch indexes, and float32 for numbers."""
    return np.dtype(np.float32 if values.dtype.kind == "f" else np.int64)


def to_tensor(values: np.ndarray) -> Tensor:
    """A covariate of some cells as a tensor, as `Batch.codes` holds it; `values` may be of a narrower dtype."""
    return torch.from_numpy(np.require(values, covariate_dtype(values), "W"))  # torch warns of read-only arrays


@dataclass
class Batch:
    """Cells x genes in CSR, on one device.

    indptr   int32 [cells + 1]
    indices  uint16 or int32 [nnz], gene indices, sorted within a cell
    counts   uint8, uint16 or int32 [nnz]; float32 where they are fractions, for the normal likelihood
    library  float32 [cells], library size: total counts of each cell over the genes of the batch
    codes    covariates: int64 (categories) or float32, [cells] or [cells, columns]: codes["batch"], codes["labels"] ...
    rows     int64 [cells], index of each cell in the data
    memory   uint8 [bytes] that contains all of these, so that one copy moves them to a device; None: separate tensors
    """

    indptr: Tensor
    indices: Tensor
    counts: Tensor
    library: Tensor
    rows: Tensor
    n_genes: int
    codes: dict[str, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None

    def __len__(self) -> int:
        return self.library.shape[0]  # len() of a tensor goes through Python

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return [self.indptr, self.indices, self.counts, self.library, self.rows, *self.codes.values()]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        memory = None if self.memory is None else self.memory.to(device, non_blocking=True)
        if memory is None:
            moved = [tensor.to(device, non_blocking=True) for tensor in self.tensors]
        else:
            moved = self._find_in(memory)
        indptr, indices, counts, library, rows, *codes = moved
        return Batch(indptr, indices, counts, library, rows, self.n_genes, dict(zip(self.codes, codes)), memory)

    def _find_in(self, memory: Tensor) -> list[Tensor]:
        """The same tensors as `tensors`, as views of a copy of this batch's memory.

        One call splits them all: each call of torch releases the interpreter lock, which the loader may then hold.
        """
        assert self.memory is not None
        begin, end, sizes = self.memory.data_ptr(), 0, []
        tensors = self.tensors
        # the address of an empty tensor may be anything
        starts = [tensor.data_ptr() - begin if tensor.nbytes else 0 for tensor in tensors]
        order = sorted(range(len(tensors)), key=lambda k: (starts[k], tensors[k].nbytes))
        for k in order:
            sizes += [starts[k] - end, tensors[k].nbytes]
            end = starts[k] + tensors[k].nbytes
        found = dict(zip(order, memory.split([*sizes, len(memory) - end])[1::2]))
        typed = (found[k].view(tensor.dtype) for k, tensor in enumerate(tensors))
        return [part if tensor.dim() == 1 else part.view(tensor.shape) for part, tensor in zip(typed, tensors)]

    def to_sparse_csr(self) -> Tensor:
        """float32 sparse CSR [cells, genes], as torch multiplies it."""
        size = (len(self), self.n_genes)
        with warnings.catch_warnings():  # torch warns for every CSR tensor that CSR is in beta
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(
                self.indptr, self.indices.int(), self.counts.float(), size, check_invariants=False
            )

    def to_dense(self) -> Tensor:
        """float32 [cells, genes]."""
        dense = torch.zeros((len(self), self.n_genes), device=self.counts.device)
        lengths = self.indptr.diff().long()
        cells = torch.repeat_interleave(torch.arange(len(self), device=lengths.device), lengths)
        dense[cells, self.indices.long()] = self.counts.float()
        return dense
