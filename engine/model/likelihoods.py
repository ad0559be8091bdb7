"""The likelihoods of counts that a model can have: one object for each, in one table.

To add a likelihood, add an entry to LIKELIHOODS and its name to `LikelihoodName`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from atlasvi import kernels
from atlasvi.engine.model.noise import VALUE_STREAM
from atlasvi.kernels.reference import Likelihood as FusedName

LikelihoodName = Literal["nb", "zinb", "poisson", "normal"]
"""The name in options and saved files."""


class Expression(NamedTuple):
    """Parameters of the likelihood of each cell and gene; in scvi-tools px_scale, px_rate, px_r, px_dropout.

    proportions  [..., cells, genes], of each gene in the cell's counts; with a size factor softplus(logits) instead
    mean         [..., cells, genes], in counts: library * proportions
    theta        [genes] or [..., cells, genes], inverse dispersion (normal: standard deviation); None: no dispersion
    dropout      [..., cells, genes], logits of the zero inflation; None if the likelihood has none
    """

    proportions: Tensor
    mean: Tensor
    theta: Tensor | None
    dropout: Tensor | None


@dataclass(frozen=True)
class Likelihood:
    """A distribution of the count of one gene in one cell.

    log_prob         (counts float [..., genes], expression) -> log-probability in nats, elementwise, in plain torch
    sample           (expression, seed, numbers int64 [cells], draw) -> a value for each cell and gene, dense; None:
                     `kernels.sample_counts` draws counts
    has_dispersion   whether it has the parameter theta
    has_dropout      whether it has the parameter dropout
    fused            its name in `kernels.decoder_nll`, which computes loss and gradients in one sweep; None: `log_prob`
                     computes it on dense matrices
    takes_fractions  whether the data may hold fractions, and not only whole numbers
    """

    log_prob: Callable[[Tensor, Expression], Tensor]
    sample: Callable[[Expression, int, Tensor, int], Tensor] | None = None
    has_dispersion: bool = True
    has_dropout: bool = False
    fused: FusedName | None = None
    takes_fractions: bool = False


def takes_fractions(name: Any) -> bool:
    """Whether data for this likelihood may hold fractions; False for an unknown name."""
    return isinstance(name, str) and name in LIKELIHOODS and LIKELIHOODS[name].takes_fractions


def draw_gamma(shape: Tensor, rate: Tensor, generator: Generator) -> Tensor:
    """A draw from gamma distributions of mean shape / rate."""
    return torch._standard_gamma(shape, generator=generator) / rate


def _theta(expression: Expression) -> Tensor:
    assert expression.theta is not None
    return expression.theta


def _dropout(expression: Expression) -> Tensor:
    assert expression.dropout is not None
    return expression.dropout


def _nb_log_prob(counts: Tensor, expression: Expression) -> Tensor:
    return kernels.nb_log_prob(counts, expression.mean, _theta(expression))


def _zinb_log_prob(counts: Tensor, expression: Expression) -> Tensor:
    return kernels.zinb_log_prob(counts, expression.mean, _theta(expression), _dropout(expression))


def _normal_log_prob(values: Tensor, expression: Expression) -> Tensor:
    normal = torch.distributions.Normal(expression.mean, _theta(expression), validate_args=False)
    return normal.log_prob(values)


def _draw_values(expression: Expression, seed: int, numbers: Tensor, draw: int) -> Tensor:
    mean = expression.mean
    normals = kernels.draw_normals(seed, numbers, draw, mean.shape[1], VALUE_STREAM)
    return mean + _theta(expression) * normals.to(mean.dtype)


LIKELIHOODS: dict[str, Likelihood] = {
    "nb": Likelihood(_nb_log_prob, fused="nb"),
    "zinb": Likelihood(_zinb_log_prob, has_dropout=True, fused="zinb"),
    "poisson": Likelihood(
        lambda counts, expression: kernels.poisson_log_prob(counts, expression.mean),
        has_dispersion=False,
        fused="poisson",
    ),
    "normal": Likelihood(_normal_log_prob, _draw_values, takes_fractions=True),
}
