"""How well the model explains cells: ELBO, reconstruction error, marginal log-likelihood. Nats a cell; needs counts."""

import math

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE, CellLosses
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells, Posterior


@torch.inference_mode()
def cell_losses(
    model: VAE, cells: CountedCells, generator: Generator, numbers: np.ndarray, batch_size: int = BATCH_SIZE
) -> CellLosses:
    """The terms of the loss of each cell, float32 [cells] on the CPU; z (and a latent library) drawn once."""
    wanted, places = in_order(numbers, cells.n_cells)
    parts = [model(batch, generator) for batch in cells.read_batches(model, wanted, batch_size)]
    terms = (torch.cat(term).cpu() for term in zip(*parts))
    return CellLosses(*(term if places is None else term[torch.from_numpy(places)] for term in terms))


@torch.inference_mode()
def marginal_log_likelihood(
    model: VAE,
    cells: CountedCells,
    generator: Generator,
    numbers: np.ndarray,
    n_samples: int = 1000,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """log p(x) of each cell float32 [cells], by importance sampling from q(z | x) (and of a latent library).

    A lower bound in expectation, tighter the more samples; their logarithms are added up as they come, so memory does
    not depend on their number.
    """
    wanted, places = in_order(numbers, cells.n_cells)
    parts = []
    for posterior in cells.read_posteriors(model, wanted, batch_size):
        total = torch.full((len(posterior),), -math.inf, device=posterior.library.device)
        for _ in range(n_samples):
            total = torch.logaddexp(total, _log_weight(model, posterior, generator))
        parts.append((total - math.log(n_samples)).cpu())
    values = torch.cat(parts)
    return values if places is None else values[torch.from_numpy(places)]


def _log_weight(model: VAE, posterior: Posterior, generator: Generator) -> Tensor:
    """log p(x, z, l) / q(z, l | x) [cells] at one draw. The softmax of ln changes both densities of z alike."""
    assert posterior.counts is not None
    normal, library = posterior.draw_normal(generator)
    weight = log_normal(normal, 0.0, 1.0).sum(1) - log_normal(normal, posterior.qzm, posterior.qzv).sum(1)
    weight = weight - model.reconstruction(posterior.counts, model.to_latent(normal), library)
    if posterior.qlm is not None and posterior.qlv is not None:
        prior = model.library_prior(posterior.codes, len(posterior))
        log_library = library.log()
        weight = weight + log_normal(log_library, *prior) - log_normal(log_library, posterior.qlm, posterior.qlv)
    return weight


def log_normal(values: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    """Log-density of a normal, elementwise."""
    spread = torch.as_tensor(variance, device=values.device)
    return -0.5 * ((values - mean) ** 2 / spread + spread.log() + math.log(2 * math.pi))
