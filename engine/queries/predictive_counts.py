"""Counts drawn from the posterior predictive distribution, which includes the noise of counting."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Generator, Tensor

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.expression import Decode, decode_batches, decode_parameters
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.question_cells import BATCH_SIZE, Posterior, QuestionCells, name_cells


def slice_counts(
    run: TrainedRun,
    cells: QuestionCells,
    chosen: np.ndarray | None,
    generator: Generator,
    *,
    genes: Sequence[str] | None = None,
    transform_batch: Any = None,
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """(names, counts float32 [cells, genes]) drawn from the posterior predictive of the chosen cells.

    n_samples  draws per cell. If there are several, each cell has that many rows, numbered in the first column.
    The other arguments are as for `slice_expression`.
    """
    decode = decode_counts(run.model, generator, find_genes(run, genes, cells.path))
    batches = find_batches(run, transform_batch)
    options: dict[str, Any] = {"transform_batch": batches, "n_samples": n_samples, "batch_size": batch_size}
    parts = decode_batches(run.model, cells, generator, decode, chosen, **options)
    if n_samples == 1:
        yield from name_cells(cells, chosen, parts)
        return
    for names, draws in name_cells(cells, chosen, (draws.swapaxes(0, 1) for draws in parts)):
        which = np.tile(np.arange(n_samples, dtype=np.float32), len(names))[:, None]
        yield names.repeat(n_samples), np.concatenate([which, draws.reshape(len(which), -1)], axis=1)


def decode_counts(model: VAE, generator: Generator, columns: np.ndarray | slice = slice(None)) -> Decode:
    """Counts drawn from the posterior predictive, float32 [..., cells, genes]."""

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        expression = decode_parameters(model, posterior, z, library, batch)
        return model.settings.likelihood.sample(expression, generator)[..., columns]

    return decode
