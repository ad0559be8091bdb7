"""A minibatch of cells as it goes to the model: sparse counts, library sizes, covariate codes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """Cells x genes in CSR, on one device.

    indptr   int32 [cells + 1]
    indices  uint16 or int32 [nnz], gene indices, sorted within a cell
    counts   uint8, uint16 or int32 [nnz]
    library  float32 [cells], total counts of each cell over the genes of the batch
    codes    int64 [cells] a covariate: codes["batch"], codes["labels"], ...
    rows     int64 [cells], position of each cell in the data
    """

    indptr: Tensor
    indices: Tensor
    counts: Tensor
    library: Tensor
    rows: Tensor
    n_genes: int
    codes: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.library)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        tensors = {name: getattr(self, name) for name in ("indptr", "indices", "counts", "library", "rows")}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        codes = {name: tensor.to(device, non_blocking=True) for name, tensor in self.codes.items()}
        return Batch(**moved, n_genes=self.n_genes, codes=codes)
