"""Bias, layer norm, ReLU and dropout in one pass, against float64 and autograd."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasvi.kernels import norm_relu
from atlasvi.kernels.cpu_hidden import FEW_VALUES, _norm_relu, _norm_relu_backward
from tests.kernels.cases import BACKENDS


def run(projected, columns, codes, dropout, upstream, backend):
    """Output and the gradients of projected and columns."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (projected, columns)]
    out = norm_relu(*leaves, codes, dropout, backend=backend)
    out.backward(upstream)
    return out.detach(), leaves[0].grad, leaves[1].grad


def make(n_cells, n_hidden, n_categories, with_dropout, seed, scale=1.0):
    """Random inputs of that shape."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    codes = torch.randint(0, n_categories, (n_cells,), generator=generator) if n_categories else None
    dropout = (torch.rand(n_cells, n_hidden, generator=generator) > 0.3) / 0.7 if with_dropout else None
    columns = draw(max(n_categories, 1), n_hidden)
    return draw(n_cells, n_hidden) * scale + 0.3 * scale, columns, codes, dropout, draw(n_cells, n_hidden)


def assert_right(inputs, backend="cpu"):
    if backend == "cuda":
        found = [tensor.cpu() for tensor in run(*(t if t is None else t.cuda() for t in inputs), "triton")]
    else:
        found = run(*inputs, backend)
    exact = run(*(t.double() if t is not None and t.is_floating_point() else t for t in inputs), "torch")
    for ours, theirs in zip(found, exact):
        assert ours.dtype == torch.float32
        assert (ours.double() - theirs).norm() <= 1e-5 * theirs.norm() + 1e-6


@given(
    n_cells=st.integers(1, 30),
    n_hidden=st.integers(8, 70),  # with two the gradients are but what is rounded off
    n_categories=st.integers(0, 5),
    with_dropout=st.booleans(),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-1, 1.0, 1e3]),
)
@settings(deadline=None)
def test_values_and_gradients_are_those_of_float64(n_cells, n_hidden, n_categories, with_dropout, seed, scale):
    assert_right(make(n_cells, n_hidden, n_categories, with_dropout, seed, scale))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("n_categories", [0, 3, 20])
def test_so_they_are_on_other_backends(n_categories: int, backend: str):
    for shape, with_dropout in (((70, 12), True), ((9, 128), False)):
        assert_right(make(*shape, n_categories, with_dropout, 0), backend)


@pytest.mark.parametrize("n_categories", [0, 7])
def test_threads_share_wide_layers(n_categories: int):
    inputs = make(1100, 512, n_categories, True, 0)
    assert inputs[0].numel() > FEW_VALUES
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert_right(inputs)
    finally:
        torch.set_num_threads(threads)


def test_memory_in_another_order_and_gradients_that_repeat_are_taken_as_they_are_meant():
    projected, columns, codes, dropout, _ = make(6, 8, 3, True, 1)
    for backend in ("cpu", "torch"):
        leaf = projected.t().contiguous().t().requires_grad_()
        norm_relu(leaf, columns, codes, dropout, backend=backend).sum().backward()  # expanded: strides of zero
        if backend == "cpu":
            found = leaf.grad
    assert torch.allclose(found, leaf.grad, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_cell_comes_out_as_nan_of_that_cell_alone(backend: str):
    projected, columns, *_ = make(3, 5, 0, False, 0)
    projected[1, 2] = math.nan
    device, name = ("cuda", "triton") if backend == "cuda" else ("cpu", backend)
    out = norm_relu(projected.to(device), columns.to(device), backend=name)
    assert out.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("n_hidden", [8, 24, 128])
def test_not_a_bit_depends_on_where_in_memory_arrays_lie(n_hidden: int):
    """Arrays are laid beside each other in every order and at odd distances, none over another."""
    rng, n = np.random.default_rng(0), 12
    buffer = np.empty(20 * n * (n_hidden + 40), np.float32)
    nothing = np.empty((0, 0), np.float32)
    codes = rng.integers(0, 3, n)
    values = {"projected": (n, n_hidden), "columns": (3, n_hidden), "out": (n, n_hidden), "normed": (n, n_hidden)}
    values |= {"scales": (n,), "grad": (n, n_hidden), "to": (n, n_hidden), "table": (3, n_hidden)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    given["table"][:] = 0
    seen = set()
    for _ in range(300):
        laid, at = {}, 0
        for name in rng.permutation(list(values)):
            at += int(rng.integers(0, 20))
            laid[name] = buffer[at : at + given[name].size].reshape(given[name].shape)
            laid[name][:] = given[name]
            at += given[name].size
        forward = [laid[name] for name in ("out", "normed", "scales")]
        _norm_relu(0, n, laid["projected"], laid["columns"], codes, nothing, *forward)
        back = laid["grad"], laid["normed"], laid["scales"], codes, nothing, laid["to"], laid["table"]
        _norm_relu_backward(0, n, *back)
        seen.add(b"".join(laid[name].tobytes() for name in ("out", "normed", "scales", "to", "table")))
    assert len(seen) == 1
