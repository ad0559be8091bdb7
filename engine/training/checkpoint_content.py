"""What a checkpoint holds besides weights and optimizer: the state of a run, and how it is saved, checked and read.

To keep something else in a checkpoint, add a field to `RunState`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import Tensor

from atlasvi.engine.model.loss_terms import TERMS, LossTerms

History = list[dict[str, Any]]
"""Lines of metrics, one per epoch."""


KEPT_BY_MODEL = ("optimizer", "epoch", "step", "history")
"""What a saved model and `TrainedRun.state` keep of a checkpoint, besides the weights: what training continues from."""

ADDED_LATER = ("first_epoch", "first_step")
"""Fields of `RunState` that checkpoints of older versions do not hold: they take their default values."""


@dataclass(frozen=True)
class Best:
    """The weights of the best validation ELBO so far; epoch -1 if there are none yet."""

    elbo: float = -math.inf
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class RunState:
    """The state of a run; the defaults are its beginning. Random draws need no state: they depend on seed and step.

    batch          number of minibatches of `epoch` that are done
    terms          loss terms of the current epoch
    epoch_seconds  duration of the current epoch's steps
    first_epoch, first_step  above 0 if this run was started from another run
    A field is checked by its type when it is read. A field that older versions did not keep must be in ADDED_LATER.
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
        """From the state of a checkpoint of any version. Raises ValueError or KeyError if the content is wrong."""
        check_state(state)
        others = [each.name for each in fields(cls) if each.name not in ("terms", "best")]
        kept = {name: state[name] for name in others if name in state or name not in ADDED_LATER}
        return cls(**kept, terms=LossTerms.from_saved(state), best=Best(**state["best"]))

    @classmethod
    def beginning_from(cls, state: Mapping[str, Any]) -> Self:
        """To train a finished run further: its epochs, steps and history continue, its best weights are dropped."""
        check_state(state)
        epoch, step = state["epoch"], state["step"]
        return cls(epoch=epoch, step=step, history=list(state["history"]), first_epoch=epoch, first_step=step)

    def to_saved(self) -> dict[str, Any]:
        """The state as plain values, as a checkpoint holds it."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**kept, "history": list(self.history), "best": vars(self.best), **self.terms.to_saved()}

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Move to the start of the next epoch; `line` holds the metrics of this one."""
        self.history.append(line)
        self.epoch += 1
        self.batch, self.terms, self.epoch_seconds = 0, LossTerms(), 0.0


def check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, if a value of a training state does not have the expected form.

    A file with the right checksum can still have wrong content. A missing field raises where it is needed.
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
    """Whether it holds sums by term. A newer version may have other terms; a missing term becomes NaN."""
    return isinstance(value, dict) and all(type(value.get(name, 0.0)) is float for name in TERMS)


def _is_history(lines: Any) -> bool:
    return isinstance(lines, list) and all(map(_is_line, lines))


def _is_line(line: Any) -> bool:
    """Whether it is a line of metrics: `kind` and numbers, among them the number of cells of the epoch."""
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
