"""Counts drawn from NB, ZINB and Poisson distributions, in plain torch: the reference of `sample_counts`.

Both algorithms are exact; the mean mu and the inverse dispersion theta of a count decide which of them draws it:

    mu <= limit  inversion. One uniform number v; the count is the number of k >= 0 with v < P(X > k), found by adding
                 up probabilities from 0 on. That takes mu steps on average, and nearly all counts are zero at once,
                 since P(X > 0) <= mu: where v >= mu, nothing more is computed.
    mu > limit   a rate from a gamma distribution (Marsaglia and Tsang 2000; a shape below 1 is raised by 1, and the
                 draw multiplied by v**(1 / theta)), then a Poisson count: by inversion for a rate up to LARGE_MEAN,
                 else by transformed rejection with a squeeze (PTRS, Hoermann 1993).

limit = min(LARGE_MEAN, LONG_TAIL * theta): probabilities fall by a factor of 1 - theta / (theta + mu) from one count to
the next, so that a small theta would need many steps. ZINB: the count is kept with probability 1 / (1 + exp(pi)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from atlasvi.kernels.counter_random import FIRST_BLOCK, REST_BLOCK, count_position, draw_words, to_angle, to_uniform

LARGE_MEAN = 16.0
LONG_TAIL = 128.0
MOST_RATE = 1e8  # limit of a Poisson rate, as in scvi-tools (max_poisson_rate): counts stay within int32
LEAST_TERM = 1e-19  # inversion ends at terms below it: all that follow are less than 1e-16 together
LOG_THETA_BOUND = 80.0  # beyond it a count is always 0, or Poisson


class InvalidParametersError(ValueError):
    """A cell has no distribution of counts; `cell` is its index among the cells that were given."""

    def __init__(self, cell: int) -> None:
        super().__init__(
            f"no counts can be drawn for the cell with index {cell}: a mean, dispersion or dropout is NaN or infinite, "
            "or the library size is negative"
        )
        self.cell = cell


@dataclass(frozen=True)
class Stream:
    """Where the random numbers of some counts are: seed and draw, and int64 tensors of their cells and genes."""

    seed: int
    draw: int
    cells: Tensor
    genes: Tensor

    def block(self, number: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The words of one block of each count."""
        return draw_words(self.seed, self.cells, self.draw, number, self.genes)

    def take(self, which: Tensor) -> "Stream":
        """The streams of some of the counts."""
        return Stream(self.seed, self.draw, self.cells[which], self.genes[which])


def draw_counts(
    mean: Tensor, log_theta: Tensor | None, dropout: Tensor | None, seed: int, cells: Tensor, draw: int
) -> Tensor:
    """One count for each mean, int32 [cells, genes].

    mean       [cells, genes], >= 0 and finite
    log_theta  broadcastable to it; None: Poisson
    dropout    logits [cells, genes] of the zero inflation; None: without
    cells      int64 [cells], the counters of the cells; with seed and draw number they choose the random numbers
    """
    shape = mean.shape
    genes = torch.arange(shape[1], device=mean.device)
    position, word = count_position(genes)
    first = torch.stack(draw_words(seed, cells[:, None], draw, FIRST_BLOCK, position[None, :]))
    high = first.gather(0, word.expand(1, *shape))[0].flatten()
    stream = Stream(seed, draw, cells[:, None].expand(shape).flatten(), genes.expand(shape).flatten())
    low, kept_high, kept_low, _ = stream.block(REST_BLOCK)
    uniform, means = to_uniform(high, low), mean.double().flatten()
    theta = None
    if log_theta is not None:
        theta = log_theta.double().clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND).exp().expand(shape).flatten()
    limit = LARGE_MEAN if theta is None else torch.clamp(LONG_TAIL * theta, max=LARGE_MEAN)
    counts = torch.zeros_like(uniform)
    some = (means <= limit).nonzero()[:, 0]
    counts[some] = _invert(uniform[some], means[some], None if theta is None else theta[some])
    some = (means > limit).nonzero()[:, 0]
    counts[some] = _mix(stream.take(some), uniform[some], means[some], None if theta is None else theta[some])
    if dropout is not None:
        counts *= to_uniform(kept_high, kept_low) < torch.sigmoid(-dropout.double().flatten())
    return counts.int().view(shape)


def _invert(uniform: Tensor, mean: Tensor, theta: Tensor | None) -> Tensor:
    """The number of k >= 0 with uniform < P(X > k), float64; Poisson if theta is None.

    P(X = k) / P(X = k - 1) = slope + start / k.
    """
    if theta is None:
        exponent, first, slope, start = mean, mean, torch.zeros_like(mean), mean
    else:
        odds = mean / (theta + mean)
        exponent, first, slope, start = theta * torch.log1p(mean / theta), theta * odds, odds, (theta - 1) * odds
    counts = torch.zeros_like(mean)
    tail = -torch.expm1(-exponent)
    at = (uniform < tail).nonzero()[:, 0]
    counts[at] = 1
    term = torch.exp(-exponent[at]) * first[at]
    tail, uniform, slope, start, k = tail[at] - term, uniform[at], slope[at], start[at], 1
    while len(at):
        going = (uniform < tail) & (term > LEAST_TERM)
        at, tail, uniform, slope, start, term = (each[going] for each in (at, tail, uniform, slope, start, term))
        k += 1
        counts[at] = k
        term = term * (slope + start / k)
        tail = tail - term
    return counts


def _mix(stream: Stream, uniform: Tensor, mean: Tensor, theta: Tensor | None) -> Tensor:
    """Poisson counts, float64; with theta their rates are gamma-distributed."""
    block = torch.full_like(stream.cells, REST_BLOCK + 1)
    rate = mean
    if theta is not None:
        gamma, block = _draw_gamma(stream, block, torch.where(theta < 1, theta + 1, theta))
        boost = torch.where(theta < 1, torch.exp(uniform.log() / theta), 1)
        rate = mean * (gamma / theta) * boost
    rate = rate.clamp(max=MOST_RATE)
    counts = torch.zeros_like(rate)
    some = (rate <= LARGE_MEAN).nonzero()[:, 0]
    words = stream.take(some).block(block[some])
    counts[some] = _invert(to_uniform(words[0], words[1]), rate[some], None)
    some = (rate > LARGE_MEAN).nonzero()[:, 0]
    counts[some] = _reject(stream.take(some), block[some], rate[some])
    return counts


def _draw_gamma(stream: Stream, block: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """(a draw of each gamma distribution with a shape >= 1, the first block that it did not use)."""
    drawn, block = torch.empty_like(shape), block.clone()
    at = torch.arange(len(shape), device=shape.device)
    while len(at):
        d = shape[at] - 1 / 3
        words = stream.take(at).block(block[at])
        block[at] += 1
        normal = (-2 * to_uniform(words[0], words[1]).log()).sqrt() * to_angle(words[2]).cos()
        root = 1 + normal / (9 * d).sqrt()
        cube = root**3
        bound = 0.5 * normal * normal + d - d * cube + d * cube.log()  # NaN for a negative root, which is refused
        taken = ((words[3].double() + 0.5) * 2.0**-32).log() < bound
        drawn[at[taken]] = (d * cube)[taken]
        at = at[~taken]
    return drawn, block


def _reject(stream: Stream, block: Tensor, rate: Tensor) -> Tensor:
    """Poisson counts of rates above 10, by PTRS."""
    counts, block = torch.empty_like(rate), block.clone()
    at = torch.arange(len(rate), device=rate.device)
    while len(at):
        mean = rate[at]
        b = 0.931 + 2.53 * mean.sqrt()
        a = -0.059 + 0.02483 * b
        words = stream.take(at).block(block[at])
        block[at] += 1
        u, v = to_uniform(words[0], words[1]) - 0.5, to_uniform(words[2], words[3])
        us = 0.5 - u.abs()
        k = torch.floor((2 * a / us + b) * u + mean + 0.43)
        quick = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
        possible = (k >= 0) & ((us >= 0.013) | (v <= us))
        height = v.log() + (1.1239 + 1.1328 / (b - 3.4)).log() - (a / (us * us) + b).log()
        taken = quick | (possible & (height <= k * mean.log() - mean - torch.lgamma(k + 1)))
        counts[at[taken]] = k[taken]
        at = at[~taken]
    return counts


def to_csr(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(indptr int64, indices int32, counts int32) of dense counts [cells, genes]."""
    rows, genes = dense.nonzero(as_tuple=True)
    ends = torch.bincount(rows, minlength=len(dense)).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]), genes.int(), dense[rows, genes]
