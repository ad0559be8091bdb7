"""The error of a training that can't go on: what happened, where the last good checkpoint is."""

from pathlib import Path

from torch import nn

from atlasvi.engine.model.loss_terms import LossTerms
from atlasvi.engine.training.checkpoint import list_checkpoints, step_of
from atlasvi.loaders.errors import AtlasviError


class TrainingError(AtlasviError, RuntimeError):
    """Training can't go on.

    what  what happened, without where the last good checkpoint is
    """

    what = "it can't go on"


def explain_failure(out: Path, epoch: int, step: int, what: str) -> TrainingError:
    """The error for a run in `out` that failed in an epoch (from 0) and a step (from 1)."""
    saved = list_checkpoints(out / "checkpoints")
    good = f"{saved[0]} (step {step_of(saved[0])})" if saved else "none"
    where = f"in epoch {epoch + 1}, step {step}, {what}"
    error = TrainingError(
        f"{out}: {where}. Training stopped; the last good checkpoint is {good}. Try a lower learning_rate, "
        "and look at the counts of that data."
    )
    error.what = where
    return error


def find_infinite_loss(terms: LossTerms, kl_weight: float) -> str | None:
    """What is wrong with the loss of a step; None where it is finite."""
    if terms.is_finite():
        return None
    reconstruction, kl = terms.reconstruction / terms.n_cells, terms.kl / terms.n_cells
    found = f"reconstruction {reconstruction:g}, KL {kl:g} nats a cell, KL weight {kl_weight:g}"
    return f"the loss is not finite ({found})"


def find_infinite_weights(model: nn.Module) -> str | None:
    """What is wrong with the weights of a model; None where all are finite."""
    if all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        return None
    return "the weights hold NaN or infinite values"
