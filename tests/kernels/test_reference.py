import math

import mpmath
import pytest
import torch

from atlasvi.kernels import nb_log_prob, poisson_log_prob, zinb_log_prob

THETAS = [1e-6, 1e-3, 0.5, 7.0, 900.0, 1.1e3, 1e5, 1e8]
MEANS = [1e-12, 1e-4, 0.3, 40.0, 1e6]
COUNTS = [0, 1, 2, 17, 255, 70_000, 10**6]


def exact_log_prob(count: int, mean: float, theta: float) -> float:
    """The formula with 60 digits."""
    with mpmath.workdps(60):
        x, mu, t = mpmath.mpf(count), mpmath.mpf(mean), mpmath.mpf(theta)
        combinations = mpmath.loggamma(x + t) - mpmath.loggamma(t) - mpmath.loggamma(x + 1)
        return float(combinations + t * mpmath.log(t / (t + mu)) + x * mpmath.log(mu / (t + mu)))


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


@pytest.mark.parametrize("dropout", [-30.0, -1.0, 0.5, 30.0])
def test_zero_inflation_mixes_a_zero_with_a_negative_binomial(dropout: float):
    counts = torch.tensor([0.0, 1.0, 7.0], dtype=torch.float64)
    mean, theta = torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    inflated = zinb_log_prob(counts, mean, theta, torch.tensor(dropout, dtype=torch.float64)).exp()
    zeros = 1 / (1 + math.exp(-dropout))
    expected = (1 - zeros) * nb_log_prob(counts, mean, theta).exp() + zeros * (counts == 0).double()
    assert torch.allclose(inflated, expected, rtol=1e-9)


def test_a_negative_binomial_of_large_theta_is_a_poisson():
    counts, mean = torch.arange(20.0, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)
    large = torch.tensor(1e12, dtype=torch.float64)
    assert torch.allclose(nb_log_prob(counts, mean, large), poisson_log_prob(counts, mean), atol=1e-9)
