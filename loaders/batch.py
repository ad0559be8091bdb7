"""A minibatch of cells as it goes to the model: sparse counts, library sizes, covariate codes."""

import warnings
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
    codes    int64 (categories) or float32, [cells] or [cells, columns]: codes["batch"], codes["labels"], ...
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
        return self.library.shape[0]  # len() of a tensor goes through Python

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return [self.indptr, self.indices, self.counts, self.library, self.rows, *self.codes.values()]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        tensors = {name: getattr(self, name) for name in ("indptr", "indices", "counts", "library", "rows")}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        codes = {name: tensor.to(device, non_blocking=True) for name, tensor in self.codes.items()}
        return Batch(**moved, n_genes=self.n_genes, codes=codes)

    def to_sparse_csr(self) -> Tensor:
        """float32 sparse CSR [cells, genes], as torch multiplies it."""
        size = (len(self), self.n_genes)
        with warnings.catch_warnings():  # torch says of every CSR tensor that CSR is in beta
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
