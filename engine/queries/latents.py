"""Latents of cells: parameters of q(z | x), their means, draws, and mixtures over cells."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.noise import draw_normal
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, QuestionCells, name_cells, need_at_least

ELEMENTS = 2**22  # of cells x components (x latent, unless they are normal) that densities are computed for at a time


def slice_latents(
    model: VAE | None, cells: QuestionCells, chosen: np.ndarray | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[pd.Index, np.ndarray, np.ndarray]]:
    """(names, qzm, qzv) of the chosen cells, in slices, in their order; latents are float32 [cells, latent].

    model   may be None for minified cells
    chosen  ascending int64 indices; None: all
    """
    both = (np.stack(parts, axis=1) for parts in cells.read_latents(model, chosen, batch_size))
    for names, latents in name_cells(cells, chosen, both):
        yield names, latents[:, 0], latents[:, 1]


@torch.inference_mode()
def read_latents(
    model: VAE, cells: QuestionCells, indices: np.ndarray, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """qzm and qzv, float32 [n, latent] each, of the cells with these indices; before the softmax for ln latents."""
    wanted, places = in_order(indices, cells.n_cells)
    n_cells = cells.n_cells if wanted is None else len(wanted)
    latents = tuple(np.empty((n_cells, model.n_latent), np.float32) for _ in range(2))
    at = 0
    for parts in cells.read_latents(model, wanted, batch_size):
        for out, part in zip(latents, parts):
            out[at : at + len(part)] = part
        at += len(parts[0])
    qzm, qzv = latents
    return (qzm, qzv) if places is None else (qzm[places], qzv[places])


@torch.inference_mode()
def represent_cells(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    indices: np.ndarray,
    give_mean: bool = True,
    mc_samples: int = 5000,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """z float32 [n, latent]: the mean of q(z | x), or a draw.

    mc_samples  number of draws that estimate the mean of an ln latent; a normal latent needs none
    """
    need_at_least(1, mc_samples=mc_samples)
    qzm, qzv = read_latents(model, cells, indices, batch_size)
    softmax = model.settings.latent_distribution == "ln"
    if give_mean and not softmax:
        return qzm
    z = np.empty_like(qzm)
    size = max(ELEMENTS // (mc_samples * model.n_latent), 1) if give_mean else batch_size
    for at in range(0, len(z), size):
        mean, variance = (torch.from_numpy(part[at : at + size]).to(generator.device) for part in (qzm, qzv))
        if give_mean:
            mean, variance = (part.expand(mc_samples, *part.shape) for part in (mean, variance))
        drawn = model.to_latent(mean + variance.sqrt() * draw_normal(mean, generator))
        z[at : at + size] = (drawn.mean(0) if give_mean else drawn).cpu().numpy()
    return z


@torch.inference_mode()
def latent_library(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    indices: np.ndarray,
    give_mean: bool = True,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Library size of each cell, counts float32 [n, 1]: the mean of its posterior, or a draw (or the observed one).

    Raises RuntimeError if give_mean is True and the library is observed: it then has no posterior.
    """
    wanted, places = in_order(indices, cells.n_cells)
    parts = []
    for posterior in cells.read_posteriors(model, wanted, batch_size):
        posterior.check_library(model)
        if not give_mean:
            parts.append(posterior.draw(model, generator)[1])
        elif posterior.qlm is None or posterior.qlv is None:
            raise RuntimeError("the library size of this model is observed: give_mean=False returns it")
        else:
            parts.append((posterior.qlm + posterior.qlv / 2).exp())
    library = torch.cat(parts).cpu().numpy()[:, None]
    return library if places is None else library[places]


@torch.inference_mode()
def slice_library(
    model: VAE, cells: QuestionCells, chosen: np.ndarray | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[np.ndarray]:
    """Library size of the chosen cells, float32 [cells, 1], by minibatch: observed, or the mean of its posterior."""
    for posterior in cells.read_posteriors(model, chosen, batch_size):
        posterior.check_library(model)
        yield posterior.mean(model)[1].cpu().numpy()[:, None]


def batch_vectors(model: VAE, cells: QuestionCells, indices: np.ndarray) -> np.ndarray:
    """The embedding of each cell's batch, float32 [cells, embedding]. Raises QueryError if batches are one-hot."""
    if model.batch_embedding is None:
        raise QueryError("This model has no vectors of batches: it was not made with batch_representation='embedding'.")
    codes = cells.read_codes(cells.setup, indices).get("batch", np.zeros(len(indices), np.int64))
    return model.batch_embedding.detach().cpu().numpy()[codes]


def mix_posteriors(qzm: Tensor, qzv: Tensor, dof: float | None = 3.0) -> torch.distributions.MixtureSameFamily:
    """The mixture, with equal weights, of the posteriors of cells [cells, latent].

    dof  degrees of freedom of Student's t around each mean; None: normal distributions
    Raises QueryError if dof is not a number above 0.
    """
    if dof is not None and not 0 < dof < np.inf:
        raise QueryError(f"dof is {dof}: degrees of freedom are a number above 0, or None for normal distributions.")
    scale = qzv.sqrt()
    part: torch.distributions.Distribution
    if dof is None:
        part = torch.distributions.Normal(qzm, scale, validate_args=False)
    else:
        part = torch.distributions.StudentT(dof, qzm, scale, validate_args=False)
    equal = torch.distributions.Categorical(logits=torch.ones(len(qzm), device=qzm.device))
    return torch.distributions.MixtureSameFamily(equal, torch.distributions.Independent(part, 1), validate_args=False)


@torch.inference_mode()
def log_density(z: Tensor, qzm: Tensor, qzv: Tensor, dof: float | None = None) -> Tensor:
    """Log-density of that mixture at z [cells, latent], float32 [cells]; memory does not grow with the components."""
    size = max(ELEMENTS // (len(z) if dof is None else len(z) * z.shape[1]), 1)
    total = torch.full((len(z),), -torch.inf, dtype=torch.float64, device=z.device)
    for at in range(0, len(qzm), size):
        mean, variance = qzm[at : at + size], qzv[at : at + size]
        if dof is None:
            part = _log_sum_of_normals(z.double(), mean.double(), variance.double())
        else:
            part = mix_posteriors(mean, variance, dof).log_prob(z) + np.log(len(mean))
        total = torch.logaddexp(total, part.double())
    return (total - np.log(len(qzm))).float()


def _log_sum_of_normals(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log of the sum of normal densities at z [cells, latent], float64 [cells]; mean and variance [components, latent].

    The squares (z - mean)^2 / variance are expanded, so that two matrix products sum them: ten times as fast as summing
    them one by one. In float64, because their large terms cancel.
    """
    precision = 1 / variance
    constant = (mean.square() * precision).sum(1) + variance.log().sum(1) + z.shape[1] * np.log(2 * np.pi)
    twice = torch.addmm(constant, z.square(), precision.T).addmm_(z, (mean * precision).T, alpha=-2)
    return torch.logsumexp(twice.mul_(-0.5), dim=1)
