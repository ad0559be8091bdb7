"""The error of a training that can't continue: what happened, and where the last good checkpoint is."""

from torch import nn

from atlasvi.engine.model.loss_terms import LossTerms
from atlasvi.engine.training.checkpoint_files import list_checkpoints, step_of
from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.places.object_path import Place


class TrainingError(AtlasviError, RuntimeError):
    """Training can't continue.

    what  what happened, without where the last good checkpoint is
    """

    what = "it can't continue"


def explain_failure(out: Place, epoch: int, step: int, what: str) -> TrainingError:
    """The error of a run in `out` that failed in this epoch (from 0) and step (from 1)."""
    saved = list_checkpoints(out / "checkpoints")
    good = f"{saved[0]} (step {step_of(saved[0])})" if saved else "none"
    where = f"in epoch {epoch + 1}, step {step}, {what}"
    error = TrainingError(
        f"{out}: {where}. Training stopped; the last good checkpoint is {good}. Try a lower learning_rate, "
        "and check the counts of the data."
    )
    error.what = where
    return error


def find_infinite_loss(terms: LossTerms, kl_weight: float) -> str | None:
    """What is wrong with the loss of a step; None if it is finite."""
    if terms.is_finite():
        return None
    reconstruction, kl = terms.reconstruction / terms.n_cells, terms.kl / terms.n_cells
    found = f"reconstruction {reconstruction:g}, KL {kl:g} nats per cell, KL weight {kl_weight:g}"
    return f"the loss is not finite ({found})"


def find_infinite_weights(model: nn.Module) -> str | None:
    """What is wrong with the weights of a model; None if all are finite."""
    if all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        return None
    return "the weights hold NaN or infinite values"
