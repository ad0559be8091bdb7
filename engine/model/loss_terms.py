"""The terms of the loss: of each cell as the model gives them, and their sums as they are added up and reported."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


TERMS = ("n_cells", "reconstruction", "kl", "kl_library")
"""What is added up over cells, in the order of `LossTerms.values`: their number; the negative log-likelihood; the KL of
the latent and of the library together, as the ELBO has them; of it, the KL of the library. A new term goes last, and
into `LossTerms.of_cells`."""


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss summed over cells. They add up over minibatches and ranks and know their means.

    values  float64 [len(TERMS)] on any device, so that several ranks add them up in one call; nothing waits for the
            device until a term is read. A term is NaN where a checkpoint of an older version did not keep it.
    """

    values: Tensor

    @classmethod
    def zero(cls) -> Self:
        """Of no cells."""
        return cls(torch.zeros(len(TERMS), dtype=torch.float64))

    @classmethod
    def of_cells(cls, losses: CellLosses, dtype: torch.dtype | None = None) -> Self:
        """Sums over the cells of a minibatch, on its device. A CUDA graph can capture this.

        dtype  in which the cells are added up; None takes that of the losses, which costs a step of training least
        """
        terms = (losses.reconstruction, losses.kl + losses.kl_library, losses.kl_library)
        sums = torch.stack([term.detach().to(dtype or term.dtype).sum() for term in terms]).double()
        return cls(F.pad(sums, (1, 0), value=len(losses.kl)))

    @classmethod
    def from_saved(cls, state: Mapping[str, Any]) -> Self:
        """From the state that a checkpoint of any version holds. Raises ValueError unless it holds numbers."""
        known = {**state.get("terms", {}), **dict(zip(TERMS, state["sums"]))}
        return cls(torch.tensor([known.get(name, math.nan) for name in TERMS], dtype=torch.float64))

    def to_saved(self) -> dict[str, Any]:
        """As a checkpoint keeps them: by name; and the first three in a list, which alone older versions read."""
        values = self.values.tolist()
        return {"sums": values[:3], "terms": dict(zip(TERMS, values))}

    def __add__(self, other: "LossTerms") -> "LossTerms":
        return LossTerms(self.values + other.values)

    def __getitem__(self, name: str) -> float:
        """A term by its name in TERMS."""
        return self.values[TERMS.index(name)].item()

    def is_finite(self) -> bool:
        """Whether no term is NaN or infinite."""
        return bool(self.values.isfinite().all())

    def mean(self, *names: str) -> float:
        """The sum of these terms a cell, in nats; 0 without cells."""
        return sum(self[name] for name in names) / max(self["n_cells"], 1)

    def means(self) -> dict[str, float]:
        """All of MEASURES, nats a cell."""
        return {name: measure(self) for name, measure in MEASURES.items()}

    def loss(self, kl_weight: float) -> float | None:
        """The loss at a weight of the KL term, nats a cell; None where the KL of the library is not known."""
        library = self.mean("kl_library")
        loss = self.mean("reconstruction") + kl_weight * (self.mean("kl") - library) + library
        return None if math.isnan(loss) else loss


MEASURES: dict[str, Callable[[LossTerms], float]] = {
    "reconstruction_loss": lambda terms: terms.mean("reconstruction"),
    "kl": lambda terms: terms.mean("kl"),
    "elbo": lambda terms: -terms.mean("reconstruction", "kl"),
}
"""What is reported of the cells that a model trains on, validates on and is tested on: in each line of metrics, in the
result, and as what early stopping and the learning rate may watch."""
