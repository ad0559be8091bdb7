"""Names of categories on a map: where each category is densest, moved so that they do not cover each other."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

GRID = 96  # rows and columns of the grid on which cells are counted
WIDTH = 1.5  # of the Gaussian that smooths the counts, in fields of the grid
LEAST_SHARE = 0.3  # of the cells around a cell, on average, that are of its category if that has a name
MOST_COVERED = 0.16  # of the map, by names
ROUNDS = 300


@dataclass(frozen=True)
class Label:
    """A name on the map: its text, where its category is, and where the middle of the text is, in shares of the map."""

    code: int
    text: str
    anchor: tuple[float, float]
    place: tuple[float, float]


def find_anchors(shares: np.ndarray, codes: np.ndarray, n_categories: int) -> dict[int, tuple[float, float]]:
    """Where each category is densest and least mixed, in shares of the map, of categories whose cells lie together.

    shares  float [cells, 2]: column and row from the top left corner, from 0 to 1; codes [cells], -1: no category
    None at all if fewer than half of the categories have such a place, such as well-mixed batches.
    """
    inside = (codes >= 0) & np.isfinite(shares).all(axis=1) & (shares >= 0).all(axis=1) & (shares < 1).all(axis=1)
    columns, rows = (shares[inside] * GRID).astype(np.int64).T
    fields = (codes[inside].astype(np.int64) * GRID + rows) * GRID + columns
    counts = np.bincount(fields, minlength=n_categories * GRID**2).reshape(n_categories, GRID, GRID).astype(np.float32)
    smooth = np.stack([gaussian_filter(part, WIDTH) for part in counts]) if n_categories else counts
    total, found = smooth.sum(axis=0), dict[int, tuple[float, float]]()
    own = 1 / (2 * np.pi * WIDTH**2)  # what a cell adds to its own field
    for code, part in enumerate(smooth):
        row, column = np.unravel_index(int((part**2 / np.maximum(total, 1e-6)).argmax()), part.shape)
        around = np.maximum(part - own, 0) / np.maximum(total - own, own)
        if (around * counts[code]).sum() > LEAST_SHARE * counts[code].sum():
            found[code] = (float(column + 0.5) / GRID, float(row + 0.5) / GRID)
    return found if 2 * len(found) >= n_categories else {}


def spread_labels(
    texts: dict[int, str], anchors: dict[int, tuple[float, float]], sizes: dict[int, tuple[float, float]]
) -> list[Label] | None:
    """Labels that do not cover each other, near their anchors; None if there is no room for them.

    sizes  width and height of each text, in shares of the map
    """
    if not anchors:
        return []
    codes = sorted(anchors)
    home = np.array([anchors[code] for code in codes])
    half = np.array([sizes[code] for code in codes]) / 2
    if (half > 0.45).any() or (4 * half.prod(axis=1)).sum() > MOST_COVERED:
        return None
    places, is_free = np.clip(home, half, 1 - half), False
    for round_ in range(ROUNDS):
        apart = places[:, None] - places[None]
        overlap = half[:, None] + half[None] - np.abs(apart)
        covers = (overlap > 0).all(axis=2) & ~np.eye(len(codes), dtype=bool)
        if not covers.any():
            is_free = True
            break
        # the two of a pair move apart along the axis of the smaller overlap, each by half of it; equal places by order
        axis = overlap.argmin(axis=2)
        sign = np.sign(np.take_along_axis(apart, axis[..., None], 2)[..., 0])
        order = np.sign(np.arange(len(codes))[:, None] - np.arange(len(codes))[None])
        sign = np.where(sign == 0, order, sign)
        step = np.where(covers, sign * (np.take_along_axis(overlap, axis[..., None], 2)[..., 0] / 2 + 1e-3), 0)
        move = np.stack([np.where(axis == k, step, 0).sum(axis=1) for k in range(2)], axis=1)
        pull = 0.02 * (home - places) * (round_ < ROUNDS / 2)
        places = np.clip(places + 0.7 * move + pull, half, 1 - half)
    if not is_free:
        return None
    return [
        Label(code, texts[code], anchors[code], (float(place[0]), float(place[1])))
        for code, place in zip(codes, places)
    ]
