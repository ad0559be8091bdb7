"""Losses of a model in evaluation mode (z sampled once, no dropout), and how many of its latent dimensions are used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atlasvi.engine.model.loss_terms import LossTerms
from atlasvi.engine.model.vae import VAE, kl_of_normals
from atlasvi.engine.terminal import count
from atlasvi.engine.training.step import Step
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader

INFORMATIVE_KL = 0.1
"""Nats per cell. A dimension's mean KL bounds its information about the cells (Hoffman & Johnson 2016, "ELBO surgery"):
distinguishing two equal groups of cells takes 0.69, and dimensions in use have several times this."""


class StopAskedError(Exception):
    """A signal asked some rank to stop."""


@dataclass(frozen=True)
class Evaluation:
    """The losses of a model on some cells, over all ranks.

    kl_by_dimension  KL of each latent dimension, nats per cell
    """

    terms: LossTerms
    kl_by_dimension: list[float]

    def report(self) -> dict[str, Any]:
        """Plain values, as a run's result holds them: MEASURES, n_cells, kl_by_dimension."""
        n_cells = int(self.terms.n_cells)
        return {**self.terms.means(), "n_cells": n_cells, "kl_by_dimension": self.kl_by_dimension}


def evaluate(
    step: Step,
    loader: BatchLoader,
    part: str,
    *,
    epoch: int = 0,
    most: int | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """The terms of the loss over the cells of a loader, over all ranks. The state of the loader does not change.

    part   name of these cells, for messages when another rank is waiting or fails
    epoch  epoch whose order of cells is used
    most   number of cells after which to end (the first cells of a shuffled epoch are a random sample)
    Raises StopAskedError on all ranks once `stop_asked` is true on one.
    """
    model, ranks = step.model, step.ranks
    cursor, was_training = loader.state_dict(), model.training
    loader.set_epoch(epoch)
    model.eval()
    terms, dimensions = LossTerms(), np.zeros(model.n_latent)
    with torch.inference_mode(), _measure_kl(model) as kl_by_dimension:
        for number, batch in enumerate(DeviceFeeder(loader, step.device)):
            n_cells = min(loader.batch_size, loader.n_cells - number * loader.batch_size)
            terms_here = step.evaluate(batch, number, n_cells)
            here = np.array([stop_asked(), *kl_by_dimension, *terms_here.values])
            stop, *found = ranks.sum(here, f"minibatch {number + 1} of {part} cells").tolist()
            if stop:
                raise StopAskedError
            dimensions += found[: model.n_latent]
            terms += LossTerms(*found[model.n_latent :])
            if most is not None and terms.n_cells >= most:
                break
            ranks.note(f"minibatch {number + 2} of {part} cells")
    model.train(was_training)
    loader.load_state_dict(cursor)
    return Evaluation(terms, (dimensions / max(terms.n_cells, 1)).tolist())


@contextmanager
def _measure_kl(model: VAE) -> Iterator[list[float]]:
    """Yields a list that holds, after each call of the model in the block, the KL of each latent dimension, summed over
    the cells of that call.
    """
    sums = [0.0] * model.n_latent

    def measure(encoder: torch.nn.Module, cells: Any, posterior: tuple[torch.Tensor, torch.Tensor]) -> None:
        sums[:] = kl_of_normals(*posterior).double().sum(0).tolist()

    handle = model.encoder.register_forward_hook(measure)
    try:
        yield sums
    finally:
        handle.remove()


def count_informative(kl_by_dimension: Sequence[float]) -> int:
    """Number of latent dimensions that carry information about the cells."""
    return sum(kl >= INFORMATIVE_KL for kl in kl_by_dimension)


def warn_of_collapse(n_informative: int, n_latent: int) -> str | None:
    """A warning for the user if fewer than a fifth of the latent dimensions are used, else None."""
    if 5 * n_informative >= n_latent:
        return None
    return (
        f"Warning: {n_informative} of {count(n_latent, 'latent dimension')} carry information (a KL of at least "
        f"{INFORMATIVE_KL} nats per cell). Unless the cells vary in so few ways, the latent space has collapsed: "
        "with hundreds of thousands of cells use --set recipe=atlas; else train for more steps (a smaller "
        "--batch-size, more --epochs), or let the weight of the KL term rise more slowly (--set kl_warmup_steps=N)."
    )
