"""The nonzeros of a minibatch sorted by gene, so that sums over cells need no atomics."""

from dataclasses import dataclass

from torch import Tensor

from atlasvi.kernels.backends import choose_backend, load_sparse


@dataclass(frozen=True)
class GeneOrder:
    """Nonzeros of gene g are places[starts[g] : starts[g + 1]] of the CSR arrays, in the order of their cells.

    places int64 [nonzeros], starts int64 [genes + 1], cells int32 [nonzeros]: the cell of each nonzero, in CSR order.
    """

    places: Tensor
    starts: Tensor
    cells: Tensor


def order_by_gene(indptr: Tensor, genes: Tensor, n_genes: int, *, backend: str | None = None) -> GeneOrder | None:
    """The order for the gradient of `log1p_linear`, computed once for all layers whose input is these counts.

    indptr int32 or int64 [cells + 1]; genes of any integer type, at least indptr[-1] of them, the rest is ignored.
    Returns None for a backend that does not need it. The order depends on where the counts are, so it must be computed
    for every minibatch, even if several minibatches use the same memory.
    """
    name = choose_backend(indptr.device, backend)
    if name != "triton":
        return None
    return load_sparse(name).order_by_gene(indptr.contiguous(), genes.contiguous(), n_genes)
