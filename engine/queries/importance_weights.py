"""Importance weights of draws of the posterior: draws that explain many cells of a population get larger weights."""

import math

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE, Expression
from atlasvi.engine.queries.cell_choice import sample_cells
from atlasvi.engine.queries.expression import Drawn, decode_drawn
from atlasvi.engine.queries.model_fit import log_normal, marginal_log_likelihood
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells, need_at_least

ELEMENTS = 2**24  # anchors x draws x genes in memory at a time


@torch.inference_mode()
def weigh_draws(
    model: VAE,
    cells: CountedCells,
    generator: Generator,
    indices: np.ndarray,
    drawn: Drawn,
    *,
    max_cells: int = 1024,
    truncation: bool = False,
    n_mc_samples: int = 500,
) -> np.ndarray:
    """Probabilities float64 [draws], which sum to 1, of choosing each draw; as scvi-tools' get_importance_weights.

    indices     int64: cells of the population
    drawn       draws of its posterior
    max_cells   number of anchors: cells of the population, chosen at random, that the draws should explain
    truncation  raise weights to at least their mean
    n_mc_samples  samples for the marginal likelihood of the anchors
    """
    need_at_least(1, max_cells=max_cells, n_mc_samples=n_mc_samples)
    anchors = sample_cells(indices, max_cells, generator)
    log_px = marginal_log_likelihood(model, cells, generator, anchors, n_mc_samples)
    posteriors = list(cells.read_posteriors(model, np.unique(anchors), BATCH_SIZE))
    places = torch.from_numpy(np.searchsorted(np.unique(anchors), anchors)).to(posteriors[0].qzm.device)
    qzm, qzv, library = (
        torch.cat([getattr(part, name) for part in posteriors])[places] for name in ("qzm", "qzv", "library")
    )
    counts = torch.cat([part.counts.to_dense() for part in posteriors if part.counts is not None])[places]
    log_px = log_px.to(counts.device)
    weights: list[Tensor] = []
    size = max(ELEMENTS // (len(anchors) * model.settings.n_genes), 1)
    at = 0
    for expression in decode_drawn(model, drawn, batch_size=size):
        z = drawn.z[at : at + size].to(counts.device)
        at += size
        log_qz = log_normal(z[:, None], qzm, qzv).sum(2)
        log_px_z = torch.stack([_log_prob(model, expression, one, total) for one, total in zip(counts, library)], dim=1)
        log_pz = log_normal(z, 0.0, 1.0).sum(1, keepdim=True)
        weights.append(torch.logsumexp(log_pz + log_px_z - log_px - log_qz.logsumexp(1, keepdim=True), dim=1).double())
    weight = torch.cat(weights)
    if truncation:
        weight = weight.clamp(min=weight.logsumexp(0) - math.log(len(weight)))
    return torch.softmax(weight, 0).cpu().numpy()


def _log_prob(model: VAE, expression: Expression, counts: Tensor, library: Tensor) -> Tensor:
    """log p(counts [genes] | z) of one cell for each draw [draws], at the cell's library."""
    mean = expression.proportions * library
    return model.settings.likelihood.log_prob(counts.expand_as(mean), expression._replace(mean=mean)).sum(1)
