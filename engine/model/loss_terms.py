"""The terms of the loss: for each cell, and summed over cells for reports."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class CellLosses(NamedTuple):
    """Terms of the loss of each cell, in nats, float32 [cells].

    reconstruction  negative log-likelihood of the counts at one draw of z (and of a latent library)
    kl              KL(q(z | x) || N(0, I)), which the warm-up weights
    kl_library      KL of the log library size to its batch's prior, never weighted; 0 if the library is observed
    """

    reconstruction: Tensor
    kl: Tensor
    kl_library: Tensor

    def loss(self, kl_weight: float | Tensor, n_cells: int) -> Tensor:
        """The contribution of these cells to a loss that is a mean over `n_cells`."""
        return (self.reconstruction + kl_weight * self.kl + self.kl_library).sum() / n_cells


def sum_terms(losses: CellLosses, dtype: torch.dtype | None = None) -> Tensor:
    """`LossTerms` of a minibatch as one tensor, float64 [terms], on its device, so that one call can add up all ranks'.

    dtype  dtype of the sum over cells; None: that of the losses, which is fastest in training
    Nothing here synchronises with the device, and a CUDA graph can capture it.
    """
    terms = (losses.reconstruction, losses.kl + losses.kl_library, losses.kl_library)
    sums = torch.stack([term.detach().to(dtype or term.dtype).sum() for term in terms]).double()
    return F.pad(sums, (1, 0), value=len(losses.kl))


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The terms of the loss, summed over cells. They can be added over minibatches and ranks.

    kl          KL of the latent plus that of the library, as in the ELBO
    kl_library  KL of the library alone; NaN if a checkpoint of format 1 did not keep it
    Put a new term last, and add it to `sum_terms`.
    """

    n_cells: float = 0.0
    reconstruction: float = 0.0
    kl: float = 0.0
    kl_library: float = 0.0

    @classmethod
    def from_saved(cls, state: Mapping[str, Any]) -> Self:
        """From the state in a checkpoint of any format; format 1 kept a list of the first three terms."""
        known = state["terms"] if "terms" in state else dict(zip(TERMS, state["sums"]))
        return cls(**{name: known.get(name, math.nan) for name in TERMS})

    def to_saved(self) -> dict[str, Any]:
        """The terms by name, as a checkpoint keeps them."""
        return {"terms": asdict(self)}

    @property
    def values(self) -> tuple[float, ...]:
        """The terms in the order of TERMS."""
        return tuple(getattr(self, name) for name in TERMS)

    def __add__(self, other: "LossTerms") -> "LossTerms":
        return LossTerms(*map(operator.add, self.values, other.values))

    def is_finite(self) -> bool:
        """Whether no term is NaN or infinite."""
        return all(map(math.isfinite, self.values))

    def means(self) -> dict[str, float]:
        """All of MEASURES, in nats per cell; 0 if there are no cells."""
        return {name: measure(self) / max(self.n_cells, 1) for name, measure in MEASURES.items()}

    def loss(self, kl_weight: float) -> float | None:
        """The loss at a weight of the KL term, in nats per cell; None if the KL of the library is unknown."""
        n_cells = max(self.n_cells, 1)
        library = self.kl_library / n_cells
        loss = self.reconstruction / n_cells + kl_weight * (self.kl / n_cells - library) + library
        return None if math.isnan(self.kl_library) else loss


TERMS = tuple(each.name for each in fields(LossTerms))

MEASURES: dict[str, Callable[[LossTerms], float]] = {
    "reconstruction_loss": lambda terms: terms.reconstruction,
    "kl": lambda terms: terms.kl,
    "elbo": lambda terms: -(terms.reconstruction + terms.kl),
}
"""What is reported per cell for the training, validation and test cells, in lines of metrics and in the result, and
what early stopping and the learning rate schedule may monitor."""
