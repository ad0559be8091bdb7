"""Random draws for cells: of a generator, or this rank's rows of the draws for the whole minibatch."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class SharedNoise:
    """Draws for the cells [first, first + cells) of a minibatch that several ranks share.

    generator  in the same state on every rank, and seeded for this minibatch
    n_cells    of the whole minibatch
    first      where this rank's share begins
    Every rank draws for all cells and keeps its rows, so a cell gets the same noise on any number of ranks. Drawing for
    1,024 cells takes a hundredth of their step (benchmarks/RESULTS.md).
    """

    generator: Generator
    n_cells: int
    first: int


Noise = Generator | SharedNoise


def draw_normal(like: Tensor, noise: Noise | None) -> Tensor:
    """Standard normal values of the shape [cells, ...], dtype and device of `like`."""
    drawn = torch.empty(_whole_shape(like, noise), dtype=like.dtype, device=like.device)
    return _take_share(drawn.normal_(generator=_generator(noise)), like, noise)


def draw_bernoulli(like: Tensor, probability: float, noise: Noise | None) -> Tensor:
    """Ones with that probability, else zeros, of the shape [cells, ...], dtype and device of `like`."""
    drawn = torch.empty(_whole_shape(like, noise), dtype=like.dtype, device=like.device)
    return _take_share(drawn.bernoulli_(probability, generator=_generator(noise)), like, noise)


def _whole_shape(like: Tensor, noise: Noise | None) -> tuple[int, ...]:
    return (noise.n_cells, *like.shape[1:]) if isinstance(noise, SharedNoise) else tuple(like.shape)


def _generator(noise: Noise | None) -> Generator | None:
    return noise.generator if isinstance(noise, SharedNoise) else noise


def _take_share(drawn: Tensor, like: Tensor, noise: Noise | None) -> Tensor:
    return drawn[noise.first : noise.first + len(like)] if isinstance(noise, SharedNoise) else drawn
