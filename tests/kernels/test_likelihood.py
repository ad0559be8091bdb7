import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlasvi.kernels import nb_log_prob, nb_nll_from_logits

THETAS = [1e-6, 1e-3, 0.5, 7.0, 900.0, 1.1e3, 1e5, 1e8]
MEANS = [1e-12, 1e-4, 0.3, 40.0, 1e6]
COUNTS = [0, 1, 2, 17, 255, 70_000, 10**6]


def exact_log_prob(count: int, mean: float, theta: float) -> float:
    """The formula with 60 digits."""
    with mpmath.workdps(60):
        x, mu, t = mpmath.mpf(count), mpmath.mpf(mean), mpmath.mpf(theta)
        combinations = mpmath.loggamma(x + t) - mpmath.loggamma(t) - mpmath.loggamma(x + 1)
        return float(combinations + t * mpmath.log(t / (t + mu)) + x * mpmath.log(mu / (t + mu)))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("theta", THETAS)
def test_the_reference_is_exact_over_the_whole_range(theta: float):
    for mean in MEANS:
        for count in COUNTS:
            got = nb_log_prob(*(torch.tensor(value, dtype=torch.float64) for value in (count, mean, theta))).item()
            assert got == pytest.approx(exact_log_prob(count, mean, theta), rel=1e-9, abs=1e-8), (count, mean, theta)


def test_a_mean_of_zero_allows_no_count_but_zero():
    counts, theta = torch.tensor([0.0, 3.0]), torch.tensor(2.0)
    mean = torch.zeros(2, requires_grad=True)
    log_prob = nb_log_prob(counts, mean, theta)
    assert log_prob.tolist() == [0.0, -math.inf]
    log_prob[0].backward()
    assert mean.grad is not None
    assert mean.grad[0] == -1.0


def test_the_reference_passes_gradients_that_are_right_at_any_theta():
    for theta in THETAS:
        counts = torch.tensor([0.0, 1.0, 30.0], dtype=torch.float64)
        mean = torch.tensor([0.2, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
        log_theta = torch.tensor(math.log(theta), dtype=torch.float64, requires_grad=True)
        nb_log_prob(counts, mean, log_theta.exp()).sum().backward()
        assert mean.grad is not None
        assert log_theta.grad is not None
        assert torch.allclose(mean.grad, counts / mean - (counts + theta) / (theta + mean), rtol=1e-9)
        with mpmath.workdps(60):
            t = mpmath.mpf(theta)
            slope = sum(
                t * (mpmath.digamma(x + t) - mpmath.digamma(t) - mpmath.log1p(mu / t) + (mu - x) / (t + mu))
                for x, mu in zip(counts.tolist(), mean.tolist())
            )
        assert log_theta.grad.item() == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


def make_cells(n_cells: int, n_genes: int, seed: int, largest: int = 50) -> dict[str, Tensor]:
    """Logits, dispersions and sparse counts; the first cell is empty."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(1, largest + 1, (n_cells, n_genes), generator=generator).float()
    dense *= torch.rand(n_cells, n_genes, generator=generator) < 0.2
    dense[0] = 0
    rows, genes = dense.nonzero(as_tuple=True)
    return {
        "dense": dense,
        "logits": 3 * torch.randn(n_cells, n_genes, generator=generator),
        "log_theta": torch.randn(n_genes, generator=generator),
        "rows": rows,
        "genes": genes,
        "counts": dense[rows, genes],
        "weights": torch.rand(n_cells, generator=generator),
    }


def fused(cells: dict[str, Tensor], library: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [cells] and the gradients of logits and log_theta of its weighted sum."""
    logits = cells["logits"].clone().requires_grad_()
    log_theta = cells["log_theta"].clone().requires_grad_()
    where = (cells["rows"], cells["genes"], cells["counts"])
    loss = nb_nll_from_logits(logits * 1, library, log_theta, *where)  # * 1: the buffer is overwritten
    (loss * cells["weights"]).sum().backward()
    assert logits.grad is not None
    assert log_theta.grad is not None
    return loss.detach(), logits.grad, log_theta.grad


def reference(cells: dict[str, Tensor], library: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, densely, by autograd."""
    logits = cells["logits"].double().requires_grad_()
    log_theta = cells["log_theta"].double().requires_grad_()
    mean = torch.softmax(logits, dim=1) * library.double()[:, None]
    loss = -nb_log_prob(cells["dense"].double(), mean, log_theta.exp()).sum(1)
    (loss * cells["weights"].double()).sum().backward()
    assert logits.grad is not None
    assert log_theta.grad is not None
    return loss.detach(), logits.grad, log_theta.grad


@settings(max_examples=25, deadline=None)
@given(
    n_cells=st.integers(1, 9),
    n_genes=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    log_theta=st.floats(math.log(1e-6), math.log(1e8)),
    log_library=st.floats(0, math.log(1e7)),
)
def test_loss_and_gradients_equal_the_reference(n_cells, n_genes, seed, log_theta, log_library):
    cells = make_cells(n_cells, n_genes, seed)
    cells["log_theta"] += log_theta
    library = torch.full((n_cells,), math.exp(log_library))
    for got, expected in zip(fused(cells, library), reference(cells, library)):
        assert torch.isfinite(got).all()
        # what is next to nothing may be rounding of a loss that is not
        assert (got.double() - expected).norm() <= 1e-5 * expected.norm() + 2e-6 * max(1.0, cells["counts"].sum())


@pytest.mark.parametrize("theta", THETAS)
def test_loss_and_gradients_hold_at_the_edges(theta: float):
    """Proportions down to 1e-12, library sizes to 1e7, counts to 1e6, an empty cell."""
    cells = make_cells(4, 30, seed=3, largest=10**6)
    cells["logits"] = torch.linspace(math.log(1e-12), 0, 120).reshape(4, 30)[:, torch.randperm(30)]
    cells["log_theta"] = torch.full((30,), math.log(theta))
    library = torch.tensor([0.0, 1.0, 1e4, 1e7])
    loss, grad_logits, grad_theta = fused(cells, library)
    expected_loss, expected_logits, expected_theta = reference(cells, library)
    assert loss[0] == 0
    assert torch.isfinite(loss).all()
    assert relative_error(loss, expected_loss) < 1e-5
    assert relative_error(grad_logits, expected_logits) < 1e-5
    assert relative_error(grad_theta, expected_theta) < 1e-5


def test_a_batch_without_a_single_count_costs_the_zeros_alone():
    cells = make_cells(1, 5, seed=0)
    library = torch.zeros(1)
    loss, grad_logits, grad_theta = fused(cells, library)
    assert loss.tolist() == [0.0]
    assert not grad_logits.any()
    assert not grad_theta.any()


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    cells = make_cells(3, 5, seed=0)
    logits = cells["logits"].requires_grad_()
    loss = nb_nll_from_logits(
        logits * 1, torch.ones(3), cells["log_theta"], cells["rows"], cells["genes"], cells["counts"]
    ).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()
