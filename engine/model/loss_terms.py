"""The terms of the loss: of each cell as the model gives them, and their sums as they are added up and reported."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class CellLosses(NamedTuple):
    """Terms of the loss of each cell, nats, float32 [cells].

    reconstruction  negative log-likelihood of the counts, z (and the library) drawn once
    kl              KL(q(z | x) || N(0, I)), which a warm-up weighs
    kl_library      KL of the log library size to its batch's prior, never weighed; 0 where the library is observed
    """

    reconstruction: Tensor
    kl: Tensor
    kl_library: Tensor

    def loss(self, kl_weight: float | Tensor, n_cells: int) -> Tensor:
        """What these cells add to a loss that is the mean over `n_cells`."""
        return (self.reconstruction + kl_weight * self.kl + self.kl_library).sum() / n_cells


def sum_terms(losses: CellLosses, dtype: torch.dtype | None = None) -> Tensor:
    """The values of `LossTerms` of a minibatch: float64 [terms], on its device, so that ranks add them up in one call.

    dtype  in which the cells are added up; None takes that of the losses, which costs a step of training least
    Nothing waits for the device, and a CUDA graph can capture it.
    """
    terms = (losses.reconstruction, losses.kl + losses.kl_library, losses.kl_library)
    sums = torch.stack([term.detach().to(dtype or term.dtype).sum() for term in terms]).double()
    return F.pad(sums, (1, 0), value=len(losses.kl))


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The terms of the loss summed over cells. They add up over minibatches and ranks and know their means.

    kl          of the latent and of the library together, as the ELBO has them
    kl_library  of it, that of the library; NaN where a checkpoint of an older version did not keep it
    A new term goes last, and into `sum_terms`.
    """

    n_cells: float = 0.0
    reconstruction: float = 0.0
    kl: float = 0.0
    kl_library: float = 0.0

    @classmethod
    def from_saved(cls, state: Mapping[str, Any]) -> Self:
        """From the state that a checkpoint of any version holds: those of format 1 keep a list of the first three."""
        known = state["terms"] if "terms" in state else dict(zip(TERMS, state["sums"]))
        return cls(**{name: known.get(name, math.nan) for name in TERMS})

    def to_saved(self) -> dict[str, Any]:
        """As a checkpoint keeps them: by name."""
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
        """All of MEASURES, nats a cell; 0 without cells."""
        return {name: measure(self) / max(self.n_cells, 1) for name, measure in MEASURES.items()}

    def loss(self, kl_weight: float) -> float | None:
        """The loss at a weight of the KL term, nats a cell; None where the KL of the library is not known."""
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
"""What is reported, a cell, of the cells that a model trains on, validates on and is tested on: in lines of metrics, in
the result, and as what early stopping and the learning rate may watch."""
