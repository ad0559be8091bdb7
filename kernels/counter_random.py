"""Random numbers that are a pure function of (seed, cell, draw, gene): Philox 4x32-10 (Salmon et al. 2011), in torch.

No state is kept and no order matters: a cell gets the same numbers in whatever tile, minibatch, thread or rank it is.
The key is the seed. The counter has four words of 32 bits:

    word 0  the cell's counter, its low 32 bits
    word 1  the high 16 bits of the cell's counter, and above them the number of the block (see `draw_words`)
    word 2  the number of the draw
    word 3  a position: a gene, or a dimension of the latent

The compiled backends compute the same numbers; `count_position` says which of them decides whether a count is zero.
"""

import math

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF
LANES = 64  # genes that take the same word of consecutive counters, so that vector code needs no shuffles
CHUNK = 4 * LANES
CELL_BITS = 48
FIRST_BLOCK, REST_BLOCK = 0, 1  # of counts; later blocks are for the attempts of rejection
NORMAL_BLOCK = 2**16 - 1  # of normals; streams count downwards from it

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, seed: int) -> Words:
    """Four random words of 32 bits (int64 tensors) from a counter of four words, which are broadcast."""
    a, b, c, d = counter
    key = split_seed(seed)
    for _ in range(ROUNDS):
        # the product wraps modulo 2**64, and its sign bit is masked away
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32) & WORD ^ b ^ key[0],
            second & WORD,
            (first >> 32) & WORD ^ d ^ key[1],
            first & WORD,
        )
        key = (key[0] + KEY_STEPS[0]) & WORD, (key[1] + KEY_STEPS[1]) & WORD
    return a, b, c, d


def split_seed(seed: int) -> tuple[int, int]:
    """The two words of a seed, whose bits above 64 are dropped."""
    return seed & WORD, (seed >> 32) & WORD


def draw_words(seed: int, cells: Tensor, draw: int, block: Tensor | int, position: Tensor) -> Words:
    """The four words of block number `block` (0 to 65,535) at a position (0 to 2**32 - 1); tensors are broadcast.

    cells  int64, counters of cells from 0 to 2**48 - 1
    """
    shape = torch.broadcast_shapes(cells.shape, position.shape)
    high = (cells >> 32) + (block << 16)
    words = (cells & WORD, high, torch.full_like(position, draw), position)
    return philox(tuple(word.expand(shape) for word in words), seed)  # type: ignore[arg-type]


def count_position(genes: Tensor) -> tuple[Tensor, Tensor]:
    """(position in FIRST_BLOCK, which of its four words) of the number that decides whether a gene's count is zero."""
    return genes // CHUNK * LANES + genes % LANES, genes % CHUNK // LANES


def to_uniform(high: Tensor, low: Tensor) -> Tensor:
    """float64 in (0, 1] from two words of 32 bits, with all its digits also near 0."""
    return high.double() * 2.0**-32 + (low.double() + 0.5) * 2.0**-64


def to_angle(word: Tensor) -> Tensor:
    """float64 in (0, 2 pi) from one word."""
    return (word.double() + 0.5) * (2.0**-32 * 2 * math.pi)


def draw_normals(seed: int, cells: Tensor, draw: int, n: int, stream: int = 0) -> Tensor:
    """Standard normal numbers for each cell, float64 [cells, n]: by Box and Muller, two from each block.

    stream  0, 1, ...: streams of numbers for different purposes
    """
    position = torch.arange((n + 1) // 2, device=cells.device)
    words = draw_words(seed, cells[:, None], draw, NORMAL_BLOCK - stream, position[None, :])
    radius, angle = (-2 * to_uniform(words[0], words[1]).log()).sqrt(), to_angle(words[2])
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)[:, :n]
