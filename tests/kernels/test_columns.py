import pytest
import torch

from atlasvi.kernels import take_columns
from tests.kernels.cases import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_cell_gets_its_column_and_each_column_the_gradients_of_its_cells(backend: str, monkeypatch):
    if backend != "cuda":
        monkeypatch.setenv("ATLASVI_KERNELS", backend)
    generator = torch.Generator().manual_seed(0)
    columns, codes = torch.randn(5, 9, generator=generator), torch.randint(0, 4, (150,), generator=generator)
    upstream = torch.randn(150, 9, generator=generator)
    device = "cuda" if backend == "cuda" else "cpu"
    leaf = columns.to(device).requires_grad_()
    out = take_columns(leaf, codes.to(device))
    out.backward(upstream.to(device))
    assert torch.equal(out.detach().cpu(), columns[codes])
    assert leaf.grad is not None
    exact = torch.zeros(5, 9, dtype=torch.float64).index_add_(0, codes, upstream.double())
    assert torch.allclose(leaf.grad.cpu().double(), exact, atol=1e-5)
    assert not leaf.grad[4].any()
