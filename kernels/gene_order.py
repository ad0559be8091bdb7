"""The nonzeros of a minibatch in the order of their genes: what sums over cells without atomics go by."""

from dataclasses import dataclass

from torch import Tensor

from atlasvi.kernels.backends import choose_backend, load_sparse


@dataclass(frozen=True)
class GeneOrder:
    """Nonzeros of gene g are places[starts[g]: starts[g + 1]] of the CSR arrays, in the order of their cells.

    places int64 [nonzeros], starts int64 [genes + 1], cells int32 [nonzeros]: the cell of each nonzero, in CSR's order.
    """

    places: Tensor
    starts: Tensor
    cells: Tensor


def order_by_gene(indptr: Tensor, genes: Tensor, n_genes: int, *, backend: str | None = None) -> GeneOrder | None:
    """The order that the gradient of `log1p_linear` needs, to be computed once for all layers that take the counts.

    indptr int32 or int64 [cells + 1], genes any integer type, at least indptr[-1]: more is not looked at. None for a
    backend that does without. It says where the counts are, so it must be computed anew for every minibatch, also where
    minibatches come in the same memory.
    """
    name = choose_backend(indptr.device, backend)
    if name != "triton":
        return None
    return load_sparse(name).order_by_gene(indptr.contiguous(), genes.contiguous(), n_genes)
