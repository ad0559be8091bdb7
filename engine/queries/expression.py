"""Decoded expression: what the model says a cell expresses, its likelihood's parameters, counts drawn from it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE, Expression
from atlasvi.engine.queries.question_cells import BATCH_SIZE, AskedCells, Posterior, in_order

Batches = Sequence[int | None]
"""Codes of batches to decode cells as if they were of, one after the other; None: the batch that each has."""


@torch.inference_mode()
def decode_cells(
    model: VAE,
    cells: AskedCells,
    generator: Generator,
    take: Callable[[Expression, Posterior], Tensor],
    *,
    numbers: np.ndarray,
    transform_batch: Batches = (None,),
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """What `take` makes of the decoded parameters of each cell, averaged over the batches; z (and library) drawn anew.

    take     -> [cells, columns], or [samples, cells, columns] of several samples
    numbers  int64 [n]: cells in any order
    Returns an array of that shape; memory is that of the answer, and of a minibatch.
    """
    wanted, places = in_order(numbers, cells.n_cells)
    out, at = np.empty(0, np.float32), 0
    for posterior in cells.read_posteriors(model, wanted, _fit(batch_size, n_samples)):
        part = None
        for batch in transform_batch:
            z, library = posterior.draw(model, generator, n_samples)
            taken = take(model.decode(z, posterior.codes, library, transform_batch=batch), posterior)
            part = taken if part is None else part + taken
        assert part is not None
        values = (part / len(transform_batch)).cpu().numpy()
        if not out.size:
            n_cells = cells.n_cells if wanted is None else len(wanted)
            out = np.empty((*values.shape[:-2], n_cells, values.shape[-1]), values.dtype)
        out[..., at : at + len(posterior), :] = values
        at += len(posterior)
    return out if places is None else out[..., places, :]


def _fit(batch_size: int, n_samples: int) -> int:
    """Cells of a minibatch whose samples are together no more than a plain minibatch."""
    return max(batch_size // max(n_samples, 1), 1)


def normalized_expression(
    model: VAE,
    cells: AskedCells,
    generator: Generator,
    *,
    numbers: np.ndarray,
    columns: np.ndarray | slice = slice(None),
    transform_batch: Batches = (None,),
    library_size: float | Literal["latent"] = 1,
    n_samples: int = 1,
    return_mean: bool = True,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Shares of the library float32 [cells, genes], or counts at a library size; z drawn for each cell.

    library_size  that shares are multiplied with; 'latent': the cell's own, so that these are means of the counts
    return_mean   over the samples; else [samples, cells, genes]
    """

    def take(expression: Expression, posterior: Posterior) -> Tensor:
        if library_size == "latent":
            values = expression.mean[..., columns]
        else:
            values = expression.shares[..., columns] * library_size
        return values.mean(0) if n_samples > 1 and return_mean else values

    return decode_cells(
        model,
        cells,
        generator,
        take,
        numbers=numbers,
        transform_batch=transform_batch,
        n_samples=n_samples,
        batch_size=batch_size,
    )


@dataclass
class Drawn:
    """One draw of the posterior for each of many requests, on the CPU: what expression is decoded from.

    z  float32 [requests, latent]; library float32 [requests]; codes as `Batch.codes`
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
    model: VAE, cells: AskedCells, generator: Generator, numbers: np.ndarray, batch_size: int = BATCH_SIZE
) -> Drawn:
    """A draw for each of `numbers` (int64, in any order, a cell as often as wanted), in one pass over the cells."""
    order = np.argsort(numbers, kind="stable")
    unique, n_draws = np.unique(numbers, return_counts=True)
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
def decode_drawn(
    model: VAE, drawn: Drawn, transform_batch: int | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[Expression]:
    """Parameters of the likelihood of each draw, a minibatch at a time."""
    device = model.encoder.mean.weight.device
    for at in range(0, len(drawn), batch_size):
        part = drawn.take(slice(at, at + batch_size))
        codes = {name: values.to(device) for name, values in part.codes.items()}
        yield model.decode(part.z.to(device), codes, part.library.to(device), transform_batch=transform_batch)


def likelihood_parameters(
    model: VAE,
    cells: AskedCells,
    generator: Generator,
    *,
    numbers: np.ndarray,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int = BATCH_SIZE,
) -> dict[str, np.ndarray]:
    """`mean` and where the likelihood has them `dispersions` and `dropout` (probability of a zero that is no draw).

    All float32 [cells, genes], or [samples, cells, genes] of several samples that are not averaged; dispersions keep
    the shape [cells, genes] where they do not depend on z.
    """
    settings, n_genes = model.settings, model.settings.n_genes

    def take(expression: Expression, posterior: Posterior) -> Tensor:
        parts = [expression.mean]
        if expression.theta is not None:
            parts.append(expression.theta.expand_as(expression.mean))
        if expression.dropout is not None:
            parts.append(torch.sigmoid(expression.dropout))
        values = torch.cat(parts, dim=-1)
        return values.mean(0) if n_samples > 1 and give_mean else values

    values = decode_cells(model, cells, generator, take, numbers=numbers, n_samples=n_samples, batch_size=batch_size)
    parts = [values[..., at : at + n_genes] for at in range(0, values.shape[-1], n_genes)]
    said = {"mean": parts.pop(0)}
    if settings.likelihood.has_dropout:
        said["dropout"] = parts.pop()
    if parts:
        same = not settings.decodes_theta and parts[0].ndim == 3
        said["dispersions"] = parts[0][0] if same else parts[0]
    return said


@torch.inference_mode()
def predictive_counts(
    model: VAE,
    cells: AskedCells,
    generator: Generator,
    *,
    numbers: np.ndarray,
    columns: np.ndarray | slice = slice(None),
    transform_batch: Batches = (None,),
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Counts float32 [cells, genes] drawn from the posterior predictive, or [samples, cells, genes]."""

    def take(expression: Expression, posterior: Posterior) -> Tensor:
        return model.settings.likelihood.sample(expression, generator)[..., columns]

    return decode_cells(
        model,
        cells,
        generator,
        take,
        numbers=numbers,
        transform_batch=transform_batch,
        n_samples=n_samples,
        batch_size=batch_size,
    )
