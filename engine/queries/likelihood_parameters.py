"""Parameters of the likelihood of the counts of each cell: mean, dispersion, dropout."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, Expression
from atlasvi.engine.queries.expression import decode_batches, decode_cells, decode_parameters
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.question_cells import BATCH_SIZE, Posterior, QueryError, QuestionCells, name_cells


def likelihood_parameters(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    *,
    indices: np.ndarray,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int = BATCH_SIZE,
) -> dict[str, np.ndarray]:
    """`mean` and, if the likelihood has them, `dispersions` and `dropout` (the probability of zero inflation).

    All are float32 [cells, genes], or [samples, cells, genes] for several samples that are not averaged; dispersions
    that do not depend on z are always [cells, genes].
    """
    n_genes, names = model.settings.n_genes, name_parameters(model)

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        parameters = _take_parameters(decode_parameters(model, posterior, z, library, batch))
        values = torch.cat([parameters[name] for name in names], dim=-1)
        return values.mean(0) if n_samples > 1 and give_mean else values

    values = decode_cells(model, cells, generator, decode, indices=indices, n_samples=n_samples, batch_size=batch_size)
    answer = {name: values[..., k * n_genes : (k + 1) * n_genes] for k, name in enumerate(names)}
    if not model.settings.decodes_theta and values.ndim == 3 and "dispersions" in answer:
        answer["dispersions"] = answer["dispersions"][0]  # the same in all samples
    return answer


def name_parameters(model: VAE) -> list[str]:
    """The parameters among `mean`, `dispersions` and `dropout` that the likelihood has."""
    likelihood = model.settings.likelihood
    return ["mean"] + ["dispersions"] * likelihood.has_dispersion + ["dropout"] * likelihood.has_dropout


def _take_parameters(expression: Expression) -> dict[str, Tensor]:
    """The parameters by name, [..., cells, genes] each."""
    found = {"mean": expression.mean}
    if expression.theta is not None:
        found["dispersions"] = expression.theta.expand_as(expression.mean)
    if expression.dropout is not None:
        found["dropout"] = torch.sigmoid(expression.dropout)
    return found


def slice_parameter(
    run: TrainedRun,
    cells: QuestionCells,
    chosen: np.ndarray | None,
    name: str,
    genes: Sequence[str] | None = None,
    transform_batch: Any = None,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """(names, one parameter float32 [cells, genes]) of the chosen cells at the posterior mean, by minibatch.

    name  one of `name_parameters`
    Raises QueryError if the likelihood has no such parameter.
    """
    if name not in (known := name_parameters(run.model)):
        likelihood = run.model.settings.gene_likelihood
        raise QueryError(
            f"The model's likelihood, {likelihood}, has no parameter {name!r}; it has: {', '.join(known)}."
        )
    columns = find_genes(run, genes, cells.path)

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        return _take_parameters(decode_parameters(run.model, posterior, z, library, batch))[name][..., columns]

    batches = find_batches(run, transform_batch)
    parts = decode_batches(run.model, cells, None, decode, chosen, transform_batch=batches, n_samples=0)
    return name_cells(cells, chosen, parts)
