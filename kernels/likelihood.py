"""Negative binomial likelihood of counts: a plain reference, and the one that training uses on sparse counts.

Parametrisation of Lopez et al. 2018 (Nature Methods 15:1053), eq. 1: mean mu, inverse dispersion theta, variance
mu + mu**2 / theta. Exact: no epsilon inside the logarithms.

    log p(x) = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - theta log1p(mu / theta) + x log(mu / (theta + mu))

At x = 0, which is most of the matrix, only `-theta log1p(mu / theta)` is left. So the dense part of the work is one
log1p an element, and all else is done at the nonzeros alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE_THETA = 1e3  # from here on Stirling's series is exact to 1e-17, and lgamma(x + theta) - lgamma(theta) is not


def nb_log_prob(counts: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Log-probability of counts under a negative binomial, in nats, elementwise; differentiable in mean and theta.

    counts  [cells, genes], non-negative whole numbers in a float dtype
    mean    [cells, genes], >= 0, in counts
    theta   broadcastable to it, > 0: inverse dispersion
    In float64 it is right to nine digits for theta from 1e-6 to 1e8, counts and means to 1e6, and a mean of 0.
    """
    positive_mean = torch.where(counts > 0, mean, 1)  # else 0 log(0) has no gradient
    combinations = _log_rising(counts, theta) - torch.lgamma(counts + 1)
    return combinations + torch.xlogy(counts, positive_mean) - (counts + theta) * torch.log1p(mean / theta)


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


def nb_nll_from_logits(
    logits: Tensor, library: Tensor, log_theta: Tensor, rows: Tensor, genes: Tensor, counts: Tensor
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: [cells]; differentiable in logits and log_theta.

    logits     float32 [cells, genes]; softmax over genes gives the proportions, mean = library * proportion. The buffer
               is overwritten: it becomes the gradient
    library    float32 [cells], counts a cell; zero is allowed (an empty cell has loss 0)
    log_theta  float32 [genes], log of the inverse dispersion
    rows, genes, counts  [nnz] the nonzero counts and where they are; counts float32

    The gradients are computed with the value, in one sweep. With r = theta / (theta + mu):
        d nll / d log mu  = (mu - x) r                          then through the softmax: g - p * sum(g)
        d nll / d log theta = theta (log1p(mu / theta) + (x - mu) / (theta + mu) - digamma(x + theta) + digamma(theta))
    What is summed over nonzeros is computed in float64: at theta = 1e8 the lgammas agree in their first nine digits.
    """
    return _NBFromLogits.apply(logits, library, log_theta, rows, genes, counts)


class _NBFromLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, library: Tensor, log_theta: Tensor, rows: Tensor, genes: Tensor, counts: Tensor
    ) -> Tensor:
        n_genes = logits.shape[1]
        exact_theta = log_theta.double().exp()
        theta = exact_theta.to(logits.dtype)
        log_norm = torch.logsumexp(logits, dim=1, keepdim=True)
        at = rows * n_genes + genes
        log_mean_at = (logits.view(-1)[at] - log_norm.view(-1)[rows]).double() + library.log()[rows].double()

        proportions = logits.sub_(log_norm).exp_()  # in place from here on: a fresh buffer costs its page faults
        ratio = proportions * (library[:, None] / theta)  # mu / theta
        dense = torch.log1p(ratio)
        loss = dense @ theta

        x, theta_at, log_theta_at = counts.double(), exact_theta[genes], log_theta.double()[genes]
        mean_at = log_mean_at.exp()
        log1p_at = torch.log1p(mean_at / theta_at)
        terms = torch.lgamma(x + theta_at) - torch.lgamma(exact_theta)[genes] - torch.lgamma(x + 1)
        terms += x * (log_mean_at - log_theta_at - log1p_at)
        loss = loss.double().index_add_(0, rows, -terms).to(logits.dtype)

        # d / d log theta of the dense part: theta (log1p(ratio) - ratio / (1 + ratio)); of the nonzeros the rest
        share = ratio.div_(ratio + 1)  # mu / (theta + mu) = 1 - r
        per_gene = dense.sub_(share)
        weight_at = x * torch.exp(-log1p_at)  # x theta / (theta + mu)
        digammas = torch.digamma(x + theta_at) - torch.digamma(exact_theta)[genes]
        theta_terms = theta_at * (x / (theta_at + mean_at) - digammas)
        slope = share.mul_(theta)  # (mu - 0) r = theta mu / (theta + mu)
        slope.view(-1).index_put_((at,), -weight_at.to(slope.dtype), accumulate=True)
        ctx.save_for_backward(slope, proportions, per_gene, theta, theta_terms, rows, genes)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        slope, proportions, per_gene, theta, theta_terms, rows, genes = ctx.saved_tensors
        total = slope.sum(1, keepdim=True)
        grad_logits = slope.sub_(proportions.mul_(total)).mul_(grad[:, None])
        grad_theta = theta * (grad @ per_gene)
        grad_theta = grad_theta.double().index_add_(0, genes, theta_terms * grad.double()[rows])
        return grad_logits, None, grad_theta.to(theta.dtype), None, None, None
