import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from atlasvi.kernels import log1p_linear, log1p_linear_transposed, order_by_gene
from tests.kernels.cases import BACKENDS


def make_csr(n_cells: int, n_genes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense counts, and the same as indptr, genes, counts; some cells are empty."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(1, 1000, (n_cells, n_genes), generator=generator).float()
    dense *= torch.rand(n_cells, n_genes, generator=generator) < 0.3
    dense[::3] = 0
    rows, genes = dense.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=n_cells).cumsum(0)])
    return dense, indptr, genes, dense[rows, genes].int()  # floats would be computed by plain torch


def place(backend: str, *tensors: Tensor) -> tuple[str, list[Tensor]]:
    """A backend's name and the tensors on its device."""
    if backend == "cuda":
        return "triton", [tensor.detach().cuda() for tensor in tensors]
    return backend, [tensor.detach().clone() for tensor in tensors]


def check_product_and_gradient(
    backend: str,
    n_cells: int,
    n_genes: int,
    n_hidden: int,
    seed: int,
    raw: bool = False,
    dtype: torch.dtype = torch.int32,
) -> None:
    dense, *csr = make_csr(n_cells, n_genes, seed)
    name, csr = place(backend, *csr)
    csr[2] = csr[2].to(dtype)
    weight = torch.randn(n_genes, n_hidden, generator=torch.Generator().manual_seed(seed))
    upstream = torch.randn(n_cells, n_hidden, generator=torch.Generator().manual_seed(seed + 1))
    _, (given, grad) = place(backend, weight, upstream)
    given.requires_grad_()
    out = log1p_linear(*csr, given, raw=raw, backend=name)
    out.backward(grad)
    exact = dense.double() if raw else torch.log1p(dense.double())
    tolerance = 1e-4 * float(exact.max().clamp(min=1))
    assert out.shape == (n_cells, n_hidden)
    assert torch.allclose(out.cpu().double(), exact @ weight.double(), rtol=1e-5, atol=tolerance)
    assert given.grad is not None
    assert torch.allclose(given.grad.cpu().double(), exact.T @ upstream.double(), rtol=1e-5, atol=tolerance)
    assert torch.equal(log1p_linear_transposed(*csr, grad, n_genes, raw=raw, backend=name), given.grad)


@hypothesis_settings(max_examples=25, deadline=None)
@given(n_cells=st.integers(1, 12), n_genes=st.integers(1, 40), n_hidden=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_sparse_product_and_weight_gradient_equal_the_dense_ones(n_cells, n_genes, n_hidden, seed):
    check_product_and_gradient("cpu", n_cells, n_genes, n_hidden, seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 30, 7), (9, 50, 128), (3, 20, 150)])
@pytest.mark.parametrize("raw", [False, True])
def test_so_they_do_on_every_backend(shape: tuple[int, int, int], backend: str, raw: bool):
    check_product_and_gradient(backend, *shape, seed=0, raw=raw)


@pytest.mark.parametrize("raw", [False, True])
def test_so_they_do_for_counts_of_a_float_type(raw: bool):
    check_product_and_gradient("cpu", 4, 30, 7, seed=0, raw=raw, dtype=torch.float32)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_so_does_the_gradient_of_a_gene_of_many_cells(backend: str):
    check_product_and_gradient(backend, 300, 3, 8, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_cells", [1, 3])
def test_cells_without_counts_give_zero(n_cells: int, backend: str):
    indptr = torch.zeros(n_cells + 1, dtype=torch.int64)
    name, csr = place(backend, indptr, torch.zeros(0, dtype=torch.int64), torch.zeros(0).int())
    weight = place(backend, torch.ones(5, 2))[1][0].requires_grad_()
    out = log1p_linear(*csr, weight, backend=name)
    out.sum().backward()
    assert not out.any()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_order_of_genes_is_that_of_a_stable_sort_and_leaves_out_what_is_past_the_end(backend: str):
    _, indptr, genes, counts = make_csr(8, 30, 0)
    tail = torch.full((5,), 40_000)
    name, (indptr, padded, counts) = place(backend, indptr.int(), torch.cat([genes, tail]).to(torch.uint16), counts)
    order = order_by_gene(indptr, padded, 30, backend=name)
    assert order is not None
    places = order.places[: int(order.starts[-1])].cpu()
    assert places.tolist() == genes.sort(stable=True).indices.tolist()
    assert order.starts.diff().tolist() == torch.bincount(genes, minlength=30).tolist()
    assert order.cells[: len(genes)].tolist() == torch.repeat_interleave(torch.arange(8), indptr.cpu().diff()).tolist()
    weight, grads = torch.ones(30, 4, device=indptr.device, requires_grad=True), []
    counts = torch.cat([counts, counts[:5]])
    for known in (order, None):
        log1p_linear(indptr, padded, counts, weight, order=known, backend=name).square().sum().backward()
        grads.append(weight.grad)
        weight.grad = None
    assert torch.equal(*grads)
