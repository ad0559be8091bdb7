import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from atlasvi.kernels import log1p_linear


def make_csr(n_cells: int, n_genes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense counts, and the same as indptr, genes, counts; some cells are empty."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(1, 1000, (n_cells, n_genes), generator=generator).float()
    dense *= torch.rand(n_cells, n_genes, generator=generator) < 0.3
    dense[::3] = 0
    rows, genes = dense.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=n_cells).cumsum(0)])
    return dense, indptr, genes, dense[rows, genes]


@hypothesis_settings(max_examples=25, deadline=None)
@given(n_cells=st.integers(1, 12), n_genes=st.integers(1, 40), n_hidden=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_sparse_product_and_weight_gradient_equal_the_dense_ones(n_cells, n_genes, n_hidden, seed):
    dense, *csr = make_csr(n_cells, n_genes, seed)
    weight = torch.randn(n_genes, n_hidden, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    upstream = torch.randn(n_cells, n_hidden, generator=torch.Generator().manual_seed(seed + 1))
    out = log1p_linear(*csr, weight)
    out.backward(upstream)
    exact = torch.log1p(dense.double())
    assert out.shape == (n_cells, n_hidden)
    assert torch.allclose(out.double(), exact @ weight.detach().double(), rtol=1e-5, atol=1e-4)
    assert weight.grad is not None
    assert torch.allclose(weight.grad.double(), exact.T @ upstream.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_cells", [1, 3])
def test_cells_without_counts_give_zero(n_cells: int):
    indptr = torch.zeros(n_cells + 1, dtype=torch.int64)
    weight = torch.ones(5, 2, requires_grad=True)
    out = log1p_linear(indptr, torch.zeros(0, dtype=torch.int64), torch.zeros(0), weight)
    out.sum().backward()
    assert not out.any()
    assert weight.grad is not None
    assert not weight.grad.any()
