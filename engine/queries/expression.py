"""Decoded expression, and the decoding in minibatches that other questions use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, Expression
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.question_cells import (
    BATCH_SIZE,
    Posterior,
    QueryError,
    QuestionCells,
    name_cells,
    need_at_least,
)

SMALLEST_SIZE, LARGEST_SIZE = 1e-12, 1e30  # library sizes that expression can be scaled to
Batches = Sequence[int | None]
"""Codes of batches to decode cells as, one after the other; None: the cell's own batch."""
Decode = Callable[[Posterior, Tensor, Tensor, int | None], Tensor]
"""(cells, z, library, batch to decode as) -> [cells, columns], or [samples, cells, columns] for several samples."""


@torch.inference_mode()
def decode_batches(
    model: VAE,
    cells: QuestionCells,
    generator: Generator | None,
    decode: Decode,
    chosen: np.ndarray | None,
    *,
    transform_batch: Batches = (None,),
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """The result of `decode` for each cell, averaged over the batches; yielded by minibatch, in the order of the cells.

    chosen     ascending int64 indices of the cells; None: all
    n_samples  draws of z (and of a latent library) per cell; 0: use the mean of the posterior instead
    """
    need_at_least(0, n_samples=n_samples)
    size = max(batch_size // max(n_samples, 1), 1)
    for posterior in cells.read_posteriors(model, chosen, size, means=n_samples == 0):
        total = None
        for batch in transform_batch:
            if n_samples == 0:
                z, library = posterior.mean(model)
            else:
                assert generator is not None, "draws need a generator"
                z, library = posterior.draw(model, generator, n_samples)
            part = decode(posterior, z, library, batch)
            total = part if total is None else total + part
        assert total is not None
        yield (total / len(transform_batch)).cpu().numpy()


def decode_cells(
    model: VAE,
    cells: QuestionCells,
    generator: Generator | None,
    decode: Decode,
    *,
    indices: np.ndarray,
    transform_batch: Batches = (None,),
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """`decode_batches` of all of `indices` (int64, in any order) in one array [..., cells, columns]."""
    wanted, places = in_order(indices, cells.n_cells)
    out, at = np.empty(0, np.float32), 0
    options: dict[str, Any] = {"transform_batch": transform_batch, "n_samples": n_samples, "batch_size": batch_size}
    for values in decode_batches(model, cells, generator, decode, wanted, **options):
        if not out.size:
            n_cells = cells.n_cells if wanted is None else len(wanted)
            out = np.empty((*values.shape[:-2], n_cells, values.shape[-1]), values.dtype)
        out[..., at : at + values.shape[-2], :] = values
        at += values.shape[-2]
    return out if places is None else out[..., places, :]


def decode_parameters(model: VAE, posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Expression:
    """Parameters of the likelihood of the cells, decoded as `batch` (None: their own).

    Raises QueryError if the model would have to infer library sizes from counts that were not kept.
    """
    posterior.check_library(model)
    return model.decode(z, posterior.codes, library, transform_batch=batch)


def decode_expression(
    model: VAE,
    columns: np.ndarray | slice = slice(None),
    library_size: float | Literal["latent", "observed"] = 1,
    mean_of_samples: bool = False,
) -> Decode:
    """Normalised expression, [..., cells, genes]: proportions of the genes, or counts at a library size.

    columns          indices of the genes
    library_size     multiplied with the proportions. 'observed': the cell's own library size (its size factor, if the
                     model has one), which gives expected counts; 'latent': the same, but the inferred library size if
                     the model infers it
    mean_of_samples  average over the first axis, that of samples
    """
    # indexing with a numpy array takes twenty times longer than this, and half as long as decoding
    places = None if isinstance(columns, slice) else torch.from_numpy(np.asarray(columns, np.int64))

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        proportions = model.proportions(z, posterior.codes, transform_batch=batch)
        if places is None:
            proportions = proportions[..., columns]
        else:
            proportions = proportions.index_select(-1, places.to(proportions.device))
        if not isinstance(library_size, str):
            values = proportions * library_size
        elif model.settings.use_size_factor:
            values = proportions * posterior.codes["size_factor"][..., None]
        elif library_size == "observed":
            values = proportions * posterior.library[..., None]
        else:
            posterior.check_library(model)
            values = proportions * library[..., None]
        return values.mean(0) if mean_of_samples else values

    return decode


def slice_expression(
    run: TrainedRun,
    cells: QuestionCells,
    chosen: np.ndarray | None = None,
    generator: Generator | None = None,
    *,
    genes: Sequence[str] | None = None,
    transform_batch: Any = None,
    library_size: float | str = 1.0,
    n_samples: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """(names, normalised expression float32 [cells, genes]) of the chosen cells, by minibatch, in their order.

    chosen           ascending int64 indices; None: all
    genes            names; None: all of the model
    transform_batch  names of batches to decode as, over which the result is averaged; None: each cell's own batch
    library_size     a number (or its text), 'observed' or 'latent' (see `decode_expression`)
    n_samples        draws per cell, over which the result is averaged; 0: use the mean of the posterior instead
    Raises GeneError for an unknown gene, QueryError for an unknown batch or an invalid library size.
    """
    size = read_library_size(library_size)
    decode = decode_expression(run.model, find_genes(run, genes, cells.path), size, mean_of_samples=n_samples > 1)
    batches = find_batches(run, transform_batch)
    options: dict[str, Any] = {"transform_batch": batches, "n_samples": n_samples, "batch_size": batch_size}
    return name_cells(cells, chosen, decode_batches(run.model, cells, generator, decode, chosen, **options))


def read_library_size(text: float | str) -> Any:
    """A library size in the form that `decode_expression` takes. Raises QueryError for an invalid one."""
    if isinstance(text, str) and text in ("observed", "latent"):
        return text
    try:
        size = float(text)
    except (TypeError, ValueError):
        size = np.nan
    # counts are float32: a larger size would give infinity, a smaller one zero
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise QueryError(
            f"library size {text!r}: use a number from {SMALLEST_SIZE:g} to {LARGEST_SIZE:g} (counts per cell), "
            "'observed' or 'latent'."
        )
    return size


@dataclass
class Drawn:
    """One draw of the posterior for each of many requests, on the CPU, ready to be decoded.

    z  float32 [requests, latent]; library float32 [requests]; codes as in `Batch.codes`
    """

    z: Tensor
    library: Tensor
    codes: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.z)

    def take(self, rows: slice | Tensor) -> "Drawn":
        """Some of the draws."""
        return Drawn(self.z[rows], self.library[rows], {name: values[rows] for name, values in self.codes.items()})


@torch.inference_mode()
def draw_posterior(
    model: VAE, cells: QuestionCells, generator: Generator, indices: np.ndarray, batch_size: int = BATCH_SIZE
) -> Drawn:
    """One draw for each of `indices` (int64, in any order, with repeats), in one pass over the cells."""
    order = np.argsort(indices, kind="stable")
    unique, n_draws = np.unique(indices, return_counts=True)
    parts: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    at = 0
    for posterior in cells.read_posteriors(model, unique, batch_size):
        repeats = torch.from_numpy(n_draws[at : at + len(posterior)]).to(posterior.library.device)
        at += len(posterior)
        rows = torch.repeat_interleave(torch.arange(len(repeats), device=repeats.device), repeats)
        chosen = Posterior(
            posterior.qzm[rows],
            posterior.qzv[rows],
            posterior.library[rows],
            {name: values[rows] for name, values in posterior.codes.items()},
            None if posterior.qlm is None else posterior.qlm[rows],
            None if posterior.qlv is None else posterior.qlv[rows],
        )
        z, library = chosen.draw(model, generator)
        parts.append((z.cpu(), library.cpu(), {name: values.cpu() for name, values in chosen.codes.items()}))
    back = torch.from_numpy(np.argsort(order))
    codes = {name: torch.cat([part[2][name] for part in parts])[back] for name in parts[0][2]}
    return Drawn(torch.cat([part[0] for part in parts])[back], torch.cat([part[1] for part in parts])[back], codes)


@torch.inference_mode()
def draw_at_once(
    model: VAE, cells: QuestionCells, generator: Generator, indices: np.ndarray, batch_size: int = BATCH_SIZE
) -> Drawn:
    """As `draw_posterior`, with other random numbers: all posteriors are read first, and then drawn in one call.

    It is many times faster for a few cells of each slice of a large atlas; memory is that of all posteriors.
    """
    unique, places = np.unique(indices, return_inverse=True)
    parts = [replace(posterior, counts=None) for posterior in cells.read_posteriors(model, unique, batch_size)]
    rows = torch.from_numpy(places).to(parts[0].library.device)

    def gather(values: list[Any]) -> Any:
        return None if values[0] is None else torch.cat(values)[rows]

    names = ("qzm", "qzv", "library", "qlm", "qlv")
    joined = {name: gather([getattr(part, name) for part in parts]) for name in names}
    codes = {name: gather([part.codes[name] for part in parts]) for name in parts[0].codes}
    z, library = Posterior(**joined, codes=codes).draw(model, generator)
    return Drawn(z.cpu(), library.cpu(), {name: values.cpu() for name, values in codes.items()})


@torch.inference_mode()
def decode_drawn(
    model: VAE, drawn: Drawn, transform_batch: int | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[Expression]:
    """Parameters of the likelihood for each draw, by minibatch."""
    device = model.encoder.mean.weight.device
    for at in range(0, len(drawn), batch_size):
        part = drawn.take(slice(at, at + batch_size))
        codes = {name: values.to(device) for name, values in part.codes.items()}
        yield model.decode(part.z.to(device), codes, part.library.to(device), transform_batch=transform_batch)
