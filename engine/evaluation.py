"""Losses of a model as it is: z sampled once, dropout off."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atlasvi.engine.model import SCVI
from atlasvi.engine.noise import EVALUATION_NOISE, seed_draws, share_noise
from atlasvi.engine.ranks import Ranks
from atlasvi.loaders.feeder import DeviceFeeder
from atlasvi.loaders.loader import BatchLoader


class StopAskedError(Exception):
    """A signal has asked some rank to stop."""


def evaluate(
    model: SCVI,
    loader: BatchLoader,
    device: torch.device,
    ranks: Ranks,
    seed: int,
    part: str,
    *,
    epoch: int = 0,
    most: int | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Losses over the cells of a loader, all ranks together: see `mean_losses`. The loader is left where it was.

    part   what the cells are called where another rank waits or fails
    epoch  whose order is taken; most: cells after which to end (of a shuffled epoch, the first are a random sample)
    Raises StopAskedError on all ranks once `stop_asked` is true on one.
    """
    cursor, was_training = loader.state_dict(), model.training
    loader.set_epoch(epoch)
    model.eval()
    generator, sums = torch.Generator(device), np.zeros(3)
    with torch.inference_mode():
        for number, batch in enumerate(DeviceFeeder(loader, device)):
            seed_draws(generator, seed, EVALUATION_NOISE, number)
            n_cells = min(loader.batch_size, loader.n_cells - number * loader.batch_size)
            noise = share_noise(generator, n_cells, ranks.rank, ranks.world_size)
            reconstruction, kl, kl_library = model(batch, noise)
            losses = reconstruction.double().sum().item(), (kl + kl_library).double().sum().item()
            here = np.array([len(batch), *losses, stop_asked()])
            found = ranks.sum(here, f"minibatch {number + 1} of {part} cells")
            if found[3]:
                raise StopAskedError
            sums += found[:3]
            if most is not None and sums[0] >= most:
                break
            ranks.note(f"minibatch {number + 2} of {part} cells")
    model.train(was_training)
    loader.load_state_dict(cursor)
    return mean_losses(*sums.tolist())


def mean_losses(cells: float, reconstruction: float, kl: float) -> dict[str, Any]:
    """Nats a cell, of sums over `cells` cells: reconstruction_loss, kl, elbo; and n_cells."""
    cells = max(cells, 1)
    return {
        "reconstruction_loss": reconstruction / cells,
        "kl": kl / cells,
        "elbo": -(reconstruction + kl) / cells,
        "n_cells": int(cells),
    }
