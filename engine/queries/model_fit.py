"""How well the model fits cells: ELBO, reconstruction error, marginal log-likelihood, nats per cell; needs counts."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE, CellLosses
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells, Posterior, need_at_least

FIT_COLUMNS = ("elbo", "reconstruction_loss", "kl", "marginal_ll")


@torch.inference_mode()
def slice_losses(
    model: VAE, cells: CountedCells, generator: Generator, chosen: np.ndarray | None, batch_size: int = BATCH_SIZE
) -> Iterator[CellLosses]:
    """The terms of the loss of the chosen cells, float32 [cells] on the CPU, by minibatch, in their order.

    z (and a latent library) is drawn once. chosen: ascending int64 indices; None: all
    """
    for batch in cells.read_batches(model, chosen, batch_size):
        yield CellLosses(*(term.cpu() for term in model(batch, generator)))


@torch.inference_mode()
def slice_marginal_log_likelihood(
    model: VAE,
    cells: CountedCells,
    generator: Generator,
    chosen: np.ndarray | None,
    n_samples: int = 1000,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Tensor]:
    """log p(x) of the chosen cells, float32 [cells] on the CPU, by minibatch, in their order.

    By importance sampling from q(z | x) (and from q of a latent library). A lower bound in expectation, tighter with
    more samples; a running sum makes memory independent of their number.
    """
    need_at_least(1, n_mc_samples=n_samples)
    for posterior in cells.read_posteriors(model, chosen, batch_size):
        total = torch.full((len(posterior),), -math.inf, device=posterior.library.device)
        for _ in range(n_samples):
            total = torch.logaddexp(total, _log_weight(model, posterior, generator))
        yield (total - math.log(n_samples)).cpu()


def cell_losses(
    model: VAE, cells: CountedCells, generator: Generator, indices: np.ndarray, batch_size: int = BATCH_SIZE
) -> CellLosses:
    """The terms of the loss of the cells with these indices, in any order, float32 [cells] on the CPU."""
    wanted, places = in_order(indices, cells.n_cells)
    parts = zip(*slice_losses(model, cells, generator, wanted, batch_size))
    return CellLosses(*(_put_back(torch.cat(term), places) for term in parts))


def marginal_log_likelihood(
    model: VAE,
    cells: CountedCells,
    generator: Generator,
    indices: np.ndarray,
    n_samples: int = 1000,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """log p(x) of the cells with these indices, in any order, float32 [cells] on the CPU."""
    wanted, places = in_order(indices, cells.n_cells)
    parts = slice_marginal_log_likelihood(model, cells, generator, wanted, n_samples, batch_size)
    return _put_back(torch.cat(list(parts)), places)


def slice_fit(
    model: VAE, cells: CountedCells, generator: Generator, chosen: np.ndarray | None, n_marginal: int = 0
) -> Iterator[np.ndarray]:
    """The measures in `FIT_COLUMNS` for the chosen cells, float32 [cells, columns], by minibatch, in their order.

    n_marginal  samples for the marginal log-likelihood, a fourth column; 0: without this column
    """
    marginal = slice_marginal_log_likelihood(model, cells, generator, chosen, n_marginal) if n_marginal else None
    for terms in slice_losses(model, cells, generator, chosen):
        kl = terms.kl + terms.kl_library
        columns = [-(terms.reconstruction + kl), terms.reconstruction, kl]
        if marginal is not None:
            columns.append(next(marginal))
        yield torch.stack(columns, dim=1).numpy()


def _put_back(values: Tensor, places: np.ndarray | None) -> Tensor:
    return values if places is None else values[torch.from_numpy(places)]


def _log_weight(model: VAE, posterior: Posterior, generator: Generator) -> Tensor:
    """log p(x, z, l) / q(z, l | x) [cells] at one draw. The softmax of ln latents changes p(z) and q(z) alike."""
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
