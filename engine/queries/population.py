"""Draws for a population of cells as a whole: from cells chosen at random, or with importance weights."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.draw_comparison import draw_integers
from atlasvi.engine.queries.expression import Batches, Drawn, decode_drawn, draw_posterior, read_library_size
from atlasvi.engine.queries.importance_weights import weigh_draws
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.question_cells import QueryError, QuestionCells, need_at_least, need_counts, take_chosen
from atlasvi.loaders.errors import AtlasviWarning


def population_expression(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    indices: np.ndarray,
    n: int,
    *,
    columns: np.ndarray | slice = slice(None),
    transform_batch: Batches = (None,),
    library_size: float | Literal["latent", "observed"] = 1,
    importance: dict[str, Any] | None = None,
) -> np.ndarray:
    """Normalised expression float32 [n, genes] at n draws of the posterior of these cells as a whole.

    indices       int64 indices of the cells
    columns, transform_batch, library_size  as for `decode_expression` and `decode_batches`
    importance    options of `weigh_draws`, to choose draws by importance weights; None: choose cells at random
    Raises QueryError for importance weights of minified cells, or over several batches.
    """
    need_at_least(1, n_samples_overall=n)
    if importance is None:
        drawn = draw_posterior(model, cells, generator, indices[draw_integers(len(indices), n, generator)])
    elif len(transform_batch) > 1:
        raise QueryError("Importance weights can be used with one batch only: transform_batch names several.")
    else:
        drawn = draw_weighed(model, cells, generator, indices, n, **importance)
    own_library = library_size in ("latent", "observed")  # a draw has one library size
    decoded = []
    for batch in transform_batch:
        parts = (part.mean if own_library else part.proportions for part in decode_drawn(model, drawn, batch))
        decoded.append(np.concatenate([part[:, columns].cpu().numpy() for part in parts]))
    values = np.mean(decoded, axis=0) if len(decoded) > 1 else decoded[0]
    return values if isinstance(library_size, str) else values * np.float32(library_size)


def check_weights(weights: str | None, n: int | None, options: Mapping[str, Any]) -> None:
    """Raise QueryError for unknown weights or options; warn of those that have no effect (scvi-tools ignores them too).

    n        number of draws from all cells together; None: each cell is decoded by itself
    options  of `weigh_draws`
    """
    if weights not in (None, "uniform", "importance"):
        raise QueryError(f"weights {weights!r}: use 'uniform' or 'importance'.")
    known = [name for name, each in inspect.signature(weigh_draws).parameters.items() if each.kind == each.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in known]:
        raise QueryError(f"There is no argument {unknown[0]!r}; the options of weights are {', '.join(known)}.")
    if options and weights != "importance":
        unused = f"{', '.join(options)}: only weights='importance' uses this"
    elif weights == "importance" and n is None:
        unused = "weights='importance': weights choose among draws from all cells together (n_samples_overall)"
    else:
        return
    warnings.warn(f"An argument has no effect: {unused}.", AtlasviWarning, stacklevel=4)


def slice_population(
    run: TrainedRun,
    cells: QuestionCells,
    chosen: np.ndarray | None,
    generator: Generator,
    n: int,
    *,
    genes: Sequence[str] | None = None,
    transform_batch: Any = None,
    library_size: float | str = 1.0,
    weights: Literal["uniform", "importance"] = "uniform",
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """(indices of the draws, expression float32 [n, genes]) of `population_expression`, by names, as one slice.

    The arguments are those of `slice_expression`. Raises its errors, and QueryError if there are no cells.
    """
    check_weights(weights, n, {})
    indices = take_chosen(chosen, 0, cells.n_cells)
    if not len(indices):
        raise QueryError(f"{cells.path}: no cell was chosen.")
    values = population_expression(
        run.model,
        cells,
        generator,
        indices,
        n,
        columns=find_genes(run, genes, cells.path),
        transform_batch=find_batches(run, transform_batch),
        library_size=read_library_size(library_size),
        importance={} if weights == "importance" else None,
    )
    yield pd.RangeIndex(n), values


def draw_weighed(
    model: VAE, cells: QuestionCells, generator: Generator, indices: np.ndarray, n: int, **options: Any
) -> Drawn:
    """n draws of the posterior of these cells, chosen by importance weights (`options` of `weigh_draws`).

    Raises QueryError for minified cells.
    """
    counted = need_counts(cells, "weights='importance'")
    drawn = draw_posterior(model, counted, generator, np.tile(indices, n // len(indices) + 1))
    probabilities = weigh_draws(model, counted, generator, indices, drawn, **options)
    return drawn.take(choose_weighed(probabilities, n, generator))


def choose_weighed(probabilities: np.ndarray, n: int, generator: Generator) -> torch.Tensor:
    """int64 [n]: indices drawn with these probabilities, with replacement."""
    edges = np.cumsum(probabilities)
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64).cpu().numpy()
    return torch.from_numpy(np.searchsorted(edges / edges[-1], uniform, side="right").clip(max=len(edges) - 1))
