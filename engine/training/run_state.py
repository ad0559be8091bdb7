"""Where a run is: all that a checkpoint keeps besides the weights and the optimizer, saved, checked and read again.

Knows nothing of how a run is trained. Whatever else a checkpoint is to keep is a field of `RunState`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import Tensor

from atlasvi.engine.model.loss_terms import TERMS, LossTerms

History = list[dict[str, Any]]
"""Lines of metrics, one an epoch."""


ADDED_LATER = ("first_epoch", "first_step")
"""Fields of `RunState` that checkpoints of older versions do not hold: they take their defaults."""


@dataclass(frozen=True)
class Best:
    """The weights of the best validation ELBO; of epoch -1 as long as there is none."""

    elbo: float = -math.inf
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class RunState:
    """Where a run is; as it is made, at its beginning. Noise needs nothing: it is a function of the seed and the step.

    batch          minibatches of `epoch` that are done
    terms          of the running epoch; epoch_seconds: of its steps
    first_epoch, first_step  above 0 where another run was the start of this one
    A field is checked by its type when it is read. One that an older version did not keep is named in ADDED_LATER.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    terms: LossTerms = field(default_factory=LossTerms)
    epoch_seconds: float = 0.0
    history: History = field(default_factory=list)
    first_epoch: int = 0
    first_step: int = 0
    best: Best = field(default_factory=Best)
    stopped_early: bool = False
    seconds: float = 0.0

    @classmethod
    def from_saved(cls, state: Mapping[str, Any]) -> Self:
        """From the state of a checkpoint of any version. Raises ValueError or KeyError for one of other content."""
        check_state(state)
        others = [each.name for each in fields(cls) if each.name not in ("terms", "best")]
        kept = {name: state[name] for name in others if name in state or name not in ADDED_LATER}
        return cls(**kept, terms=LossTerms.from_saved(state), best=Best(**state["best"]))

    @classmethod
    def beginning_from(cls, state: Mapping[str, Any]) -> Self:
        """To train a finished run further: its epochs, steps and history count on, its best weights do not."""
        check_state(state)
        epoch, step = state["epoch"], state["step"]
        return cls(epoch=epoch, step=step, history=list(state["history"]), first_epoch=epoch, first_step=step)

    def to_saved(self) -> dict[str, Any]:
        """Plain values, as a checkpoint keeps them."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**kept, "history": list(self.history), "best": vars(self.best), **self.terms.to_saved()}

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Go to the beginning of the next epoch; `line` holds the metrics of this one."""
        self.history.append(line)
        self.epoch += 1
        self.batch, self.terms, self.epoch_seconds = 0, LossTerms(), 0.0


def check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError, saying where, unless what a state of training has is as training takes it for granted.

    A file whose checksum is right may still be written by anything. What is missing raises where it is needed.
    """
    checks = {each.name: _CHECKS[each.type] for each in fields(RunState)}
    checks |= {"sums": _are_sums, "terms": _are_terms}
    for name, is_fine in checks.items():
        if name in state and not is_fine(state[name]):
            raise ValueError(f"{name} is {state[name]!r:.60}")
    kept, weights = state.get("best", {}).get("weights", {}), state.get("weights", {})
    if kept and {name: value.shape for name, value in kept.items()} != {n: value.shape for n, value in weights.items()}:
        raise ValueError("the best weights are not those of the model")


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _is_best(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("elbo")) and type(value.get("epoch")) is int


def _are_sums(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


def _are_terms(value: Any) -> bool:
    """Sums by the names of their terms: those of a newer version may be others; one that is not known is NaN."""
    return isinstance(value, dict) and all(type(value.get(name, 0.0)) is float for name in TERMS)


def _is_history(lines: Any) -> bool:
    return isinstance(lines, list) and all(map(_is_line, lines))


def _is_line(line: Any) -> bool:
    """Whether it is a line of metrics: `kind` and numbers, among them the cells of the epoch."""
    named = isinstance(line, dict) and "n_cells" in line and all(isinstance(name, str) for name in line)
    return named and all(type(value) in (int, float) for name, value in line.items() if name != "kind")


_CHECKS: dict[Any, Any] = {
    int: _is_index,
    float: _is_number,
    bool: lambda value: isinstance(value, bool),
    History: _is_history,
    LossTerms: _are_terms,
    Best: _is_best,
}
