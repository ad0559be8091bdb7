"""Forty categories have colours that are told apart, by colour-blind readers too."""

import numpy as np
import pytest

from atlasvi.engine.plots.palettes import MORE, OKABE_ITO, choose_colours, find_map
from atlasvi.engine.queries.question_cells import QueryError

pytest.importorskip("matplotlib")

TO_LMS = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
TO_LAB = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
WITHOUT_CONES = {  # Machado, Oliveira and Fernandes 2009: what is seen without red, or green, cones, of linear RGB
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "none": np.eye(3),
}


def least_distance(colours: list, cones: str) -> float:
    """The least distance in OKLab between two of the colours."""
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(WITHOUT_CONES[cones]), 0, 1)
    lab = np.cbrt(seen @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)
    away = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    np.fill_diagonal(away, np.inf)
    return float(away.min())


@pytest.mark.parametrize("cones", WITHOUT_CONES)
def test_forty_colours_are_told_apart_with_and_without_red_or_green_cones(cones: str) -> None:
    import matplotlib

    ours = [least_distance(choose_colours(n), cones) for n in (8, 20, 40)]
    assert ours[2] > 0.045
    assert ours[1] > 0.065
    tab = [*matplotlib.colormaps["tab20"].colors, *matplotlib.colormaps["tab20b"].colors]  # type: ignore[attr-defined]
    assert ours[2] > 2.5 * least_distance(tab, cones)


@pytest.mark.parametrize("n_colours", [0, 1, 3, 8, 9, 20, 40])
def test_colours_are_distinct_and_up_to_eight_are_okabe_and_itos(n_colours: int) -> None:
    colours = choose_colours(n_colours)
    assert len(set(colours)) == len(colours) == n_colours
    assert tuple(colours[:8]) == OKABE_ITO[:n_colours]
    assert len({*OKABE_ITO, *MORE}) == 40


def test_on_a_dark_ground_the_colours_that_are_seen_there_come_first() -> None:
    from matplotlib.colors import to_rgb

    def contrast(colour: str) -> float:
        rgb = np.array(to_rgb(colour))
        luminance = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        return float((luminance + 0.05) / (0.008 + 0.05))

    dark = choose_colours(40, dark=True)
    assert set(dark) == set(choose_colours(40))
    assert min(map(contrast, dark[:20])) > 2.5 > min(map(contrast, choose_colours(20)))
    for cones in WITHOUT_CONES:
        assert least_distance(dark[:20], cones) > 0.045


def test_an_unknown_colour_map_is_refused_with_near_ones() -> None:
    assert find_map("cividis").name == "cividis"
    with pytest.raises(QueryError, match=r"no colour map 'virids' .* Did you mean 'viridis'"):
        find_map("virids")
