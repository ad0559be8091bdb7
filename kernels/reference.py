"""What the fused kernels compute, written plainly: any float dtype, any device, differentiable by autograd, dense.

The tests compare every backend with these in float64. Parametrisation of Lopez et al. 2018 (Nature Methods 15:1053),
eq. 1: mean mu, inverse dispersion theta, variance mu + mu**2 / theta. Exact: no epsilon inside the logarithms.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE_THETA = 1e3  # above it Stirling's series is exact to 1e-17, and lgamma(x + theta) - lgamma(theta) is not
Likelihood = Literal["nb", "zinb", "poisson"]


def nb_log_prob(counts: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Log-probability of counts under a negative binomial, in nats, elementwise; differentiable in mean and theta.

    counts  [cells, genes], non-negative whole numbers in a float dtype
    mean    [cells, genes], >= 0, in counts
    theta   broadcastable to it, > 0: inverse dispersion
    In float64 it is exact to nine digits for theta from 1e-6 to 1e8, counts and means to 1e6, and for a mean of 0.
    """
    positive_mean = torch.where(counts > 0, mean, 1)  # otherwise the gradient of 0 log(0) is NaN
    combinations = _log_rising(counts, theta) - torch.lgamma(counts + 1)
    return combinations + torch.xlogy(counts, positive_mean) - (counts + theta) * torch.log1p(mean / theta)


def zinb_log_prob(counts: Tensor, mean: Tensor, theta: Tensor, dropout: Tensor) -> Tensor:
    """Log-probability under a zero-inflated negative binomial; `dropout` is the logit of the zero inflation."""
    of_zero = F.softplus(-dropout - theta * torch.log1p(mean / theta)) - F.softplus(-dropout)
    return torch.where(counts > 0, nb_log_prob(counts, mean, theta) - F.softplus(dropout), of_zero)


def poisson_log_prob(counts: Tensor, mean: Tensor) -> Tensor:
    """Log-probability under a Poisson distribution."""
    positive_mean = torch.where(counts > 0, mean, 1)
    return torch.xlogy(counts, positive_mean) - mean - torch.lgamma(counts + 1)


def _log_rising(counts: Tensor, theta: Tensor) -> Tensor:
    """log(theta (theta + 1) ... (theta + x - 1) / theta**x), without the difference of two large lgammas."""
    small, large = theta.clamp(max=LARGE_THETA), theta.clamp(min=LARGE_THETA)
    exact = torch.lgamma(counts + small) - torch.lgamma(small) - counts * small.log()
    series = (counts + large - 0.5) * torch.log1p(counts / large) - counts
    series = series + _stirling_tail(counts + large) - _stirling_tail(large)
    return torch.where(theta < LARGE_THETA, exact, series)


def _stirling_tail(t: Tensor) -> Tensor:
    """lgamma(t) - (t - 1/2) log(t) + t - log(2 pi) / 2 for large t."""
    return 1 / (12 * t) - 1 / (360 * t**3)


def as_integers(counts: Tensor) -> Tensor:
    """Counts in an integer type: as they are, or int32 of whole numbers in a float type."""
    return counts.int() if counts.is_floating_point() else counts


def to_dense(indptr: Tensor, indices: Tensor, counts: Tensor, n_genes: int, dtype: torch.dtype) -> Tensor:
    """[cells, genes] from CSR, in a float dtype; elements after indptr[-1] are ignored."""
    dense = torch.zeros(len(indptr) - 1, n_genes, dtype=dtype, device=counts.device)
    rows = torch.repeat_interleave(torch.arange(len(dense), device=counts.device), indptr.diff().long())
    dense[rows, indices[: len(rows)].long()] = counts[: len(rows)].to(dtype)
    return dense


def nll_from_logits(
    counts: Tensor,
    logits: Tensor,
    library: Tensor,
    log_theta: Tensor | None,
    dropout: Tensor | None,
    likelihood: Likelihood,
    softmax: bool,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: [cells].

    counts, logits [cells, genes]; library [cells]; log_theta broadcastable to [cells, genes] (not for Poisson); dropout
    logits [cells, genes] (ZINB). The mean is library * softmax(logits), or library * softplus(logits).
    """
    proportions = torch.softmax(logits, dim=1) if softmax else F.softplus(logits)
    mean = proportions * library[:, None]
    if likelihood == "poisson":
        return -poisson_log_prob(counts, mean).sum(1)
    assert log_theta is not None
    theta = log_theta.exp()
    if likelihood == "zinb":
        assert dropout is not None
        return -zinb_log_prob(counts, mean, theta, dropout).sum(1)
    return -nb_log_prob(counts, mean, theta).sum(1)
