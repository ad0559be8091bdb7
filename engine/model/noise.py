"""Random draws for cells: from a generator, or a rank's rows of the draws for a whole global minibatch."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.loaders.batches.epoch_order import share_of
from atlasvi.loaders.identity import mix64

TRAINING_NOISE, EVALUATION_NOISE, INITIAL_WEIGHTS = range(3)
"""What a random stream is used for."""

LATENT_STREAM, LIBRARY_STREAM, VALUE_STREAM = range(3)
"""What normals that are drawn by a cell's number are for (see `kernels.draw_normals`)."""


@dataclass(frozen=True)
class SharedNoise:
    """Draws for the cells [first, first + cells) of a global minibatch that is split over ranks.

    generator  has the same state on every rank, seeded for this minibatch
    n_cells    number of cells of the global minibatch
    first      index of this rank's first cell
    Every rank draws for all cells and keeps its rows, so a cell gets the same draw on any number of ranks. The draws
    for 1,024 cells take a hundredth of the time of their step (benchmarks/RESULTS.md).
    """

    generator: Generator
    n_cells: int
    first: int


Noise = Generator | SharedNoise


def seed_draws(generator: Generator, seed: int, purpose: int, number: int) -> Generator:
    """Seed a generator, in place, for draw `number` of a run: its state then depends only on the arguments."""
    return generator.manual_seed(int(mix64(np.array([number]), seed * 8 + purpose)[0] >> np.uint64(1)))


def share_noise(generator: Generator, n_cells: int, rank: int, world_size: int) -> Noise:
    """The random draws for a rank's part of a minibatch of `n_cells`."""
    return generator if world_size == 1 else SharedNoise(generator, n_cells, share_of(n_cells, rank, world_size)[0])


def draw_normal(like: Tensor, noise: Noise | None) -> Tensor:
    """Standard normal values with the shape [cells, ...], dtype and device of `like`."""
    drawn = torch.empty(_whole_shape(like, noise), dtype=like.dtype, device=like.device)
    return _take_share(drawn.normal_(generator=_generator(noise)), like, noise)


def draw_dropout(like: Tensor, rate: float, noise: Noise | None) -> Tensor:
    """Factors for dropout: 0 with probability `rate`, else 1 / (1 - rate), so that means do not change.

    On the CPU torch draws one element after the other, so there four elements are made from one draw of 64 bits, and
    `rate` is rounded to a multiple of 2**-16.
    """
    shape, generator = _whole_shape(like, noise), _generator(noise)
    if like.device.type != "cpu":
        kept = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate, generator=generator)
        return _take_share(kept.div_(1 - rate), like, noise)
    n, dropped = math.prod(shape), min(round(rate * 2**16), 2**16 - 1)
    draws = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    kept = (draws.view(torch.int16)[:n].view(shape) >= dropped - 2**15).to(like.dtype)
    return _take_share(kept.mul_(2**16 / (2**16 - dropped)), like, noise)


def _whole_shape(like: Tensor, noise: Noise | None) -> tuple[int, ...]:
    return (noise.n_cells, *like.shape[1:]) if isinstance(noise, SharedNoise) else tuple(like.shape)


def _generator(noise: Noise | None) -> Generator | None:
    return noise.generator if isinstance(noise, SharedNoise) else noise


def _take_share(drawn: Tensor, like: Tensor, noise: Noise | None) -> Tensor:
    return drawn[noise.first : noise.first + len(like)] if isinstance(noise, SharedNoise) else drawn
