"""Tensors whose values do not lie next to each other (a column of a table, a transpose) give what their copies give."""

import pytest
import torch
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, decoder_nll, log1p_linear, logits_nll, norm_relu, order_by_gene
from atlasvi.kernels import take_columns as take
from tests.kernels.cases import BACKENDS, assert_agree, make_case, run


def spread(tensor: Tensor) -> Tensor:
    """The same values, each followed by another one that nobody may read."""
    wide = torch.full((*tensor.shape, 2), 3, dtype=tensor.dtype, device=tensor.device)
    wide[..., 0].copy_(tensor)
    assert not wide[..., 0].is_contiguous()
    return wide[..., 0]


def spread_cells(cells: SparseCounts) -> SparseCounts:
    return SparseCounts(spread(cells.indptr), spread(cells.indices), spread(cells.counts))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "cuda":
        monkeypatch.setenv("ATLASVI_KERNELS", request.param)
    return request.param


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


@pytest.mark.parametrize(("likelihood", "dispersion"), [("nb", "gene"), ("zinb", "gene-batch"), ("nb", "gene-cell")])
def test_likelihoods(backend: str, likelihood: str, dispersion: str):
    case = make_case(likelihood, dispersion, True, 6, 20, 0)
    exact = run(case, backend)
    case = case.to(device_of(backend))
    case.cells, case.library, case.weights = spread_cells(case.cells), spread(case.library), spread(case.weights)
    case.theta_rows = None if case.theta_rows is None else spread(case.theta_rows)
    t = {name: spread(tensor).detach().requires_grad_() for name, tensor in case.tensors.items()}
    heads = {
        name: Head(t[f"{prefix}weight"], t[f"{prefix}bias"])
        for name, prefix in (("mean", ""), ("theta", "theta_"), ("dropout", "dropout_"))
        if f"{prefix}weight" in t
    }
    loss = decoder_nll(
        t["hidden"], heads["mean"], case.cells, case.library, heads.get("theta", t.get("log_theta")),
        theta_rows=case.theta_rows, dropout=heads.get("dropout"), likelihood=case.likelihood,
    )  # fmt: skip
    (loss * case.weights).sum().backward()
    got = {name: tensor.grad.cpu() for name, tensor in t.items() if tensor.grad is not None}
    assert_agree({"loss": loss.detach().cpu(), **got}, exact, 1e-6)


def test_likelihoods_from_logits(backend: str):
    case = make_case("nb", "gene-batch", True, 20, 40, 0).to(device_of(backend))
    logits = torch.randn(40, 20, generator=torch.Generator().manual_seed(1)).to(case.library.device).T
    assert case.theta_rows is not None
    losses = []
    for change in (lambda tensor: tensor.contiguous(), spread):
        cells = SparseCounts(change(case.cells.indptr), change(case.cells.indices), change(case.cells.counts))
        table = change(case.tensors["log_theta"])
        losses.append(
            logits_nll(change(logits), cells, change(case.library), table, theta_rows=change(case.theta_rows))
        )
    assert torch.equal(*losses)


def test_columns_and_hidden_layers(backend: str):
    generator = torch.Generator().manual_seed(0)
    device = device_of(backend)
    hidden, columns, upstream, dropout = (torch.randn(n, 9, generator=generator).to(device) for n in (70, 4, 70, 70))
    codes = torch.randint(0, 4, (70, 3), generator=generator).to(device)
    results = []
    for change in (lambda tensor: tensor.contiguous(), lambda tensor: spread(tensor.contiguous())):
        h, c = change(hidden).detach().requires_grad_(), change(columns).detach().requires_grad_()
        taken = h + take(c, change(codes[:, 1]))
        norm_relu(taken, c, change(codes[:, 2]), change(dropout)).backward(change(upstream))
        assert h.grad is not None
        assert c.grad is not None
        results.append((h.grad.contiguous(), c.grad.contiguous()))
    for plain, spaced in zip(*results):
        assert torch.allclose(plain, spaced, rtol=1e-6, atol=1e-6)


def test_the_first_layer(backend: str):
    cells = make_case("nb", "gene", True, 20, 40, 0).to(device_of(backend)).cells
    weight = torch.randn(40, 9, generator=torch.Generator().manual_seed(1)).to(cells.counts.device)
    results = []
    for some, change in ((cells, lambda tensor: tensor), (spread_cells(cells), spread)):
        leaf = change(weight).detach().requires_grad_()
        order = order_by_gene(some.indptr, some.indices, 40)
        out = log1p_linear(some.indptr, some.indices, some.counts, leaf, order=order)
        out.backward(change(torch.ones_like(out)))
        assert leaf.grad is not None
        results.append((out.detach(), leaf.grad.contiguous()))
    assert all(torch.equal(plain, spaced) for plain, spaced in zip(*results))
