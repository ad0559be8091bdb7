import itertools

import numpy as np
import pytest

from atlasvi.engine.card.page.palette import (
    CATEGORIES,
    LEVELS,
    SURFACES,
    TEXTS,
    THEMES,
    VERDICTS,
    colour_rules,
    contrast,
    css_variables,
)

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def _to_lab(colour: str, sight: str) -> np.ndarray:
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    x = to_xyz @ seen / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_every_surface(theme: str) -> None:
    for surface in ("page", "panel"):
        for colour in (*TEXTS[theme].values(), *VERDICTS[theme].values()):
            assert contrast(colour, SURFACES[theme][surface]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_marks_stand_out_from_the_page(theme: str) -> None:
    for colour in (*CATEGORIES[theme], *LEVELS[theme]):
        assert contrast(colour, SURFACES[theme]["page"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("sight", SIGHTS)
def test_categories_are_told_apart_by_all_kinds_of_colour_vision(theme: str, sight: str) -> None:
    distances = [
        np.linalg.norm(_to_lab(one, sight) - _to_lab(other, sight))
        for one, other in itertools.combinations(CATEGORIES[theme], 2)
    ]
    assert min(distances) > 17  # 2.3 is just noticeable side by side


@pytest.mark.parametrize("theme", THEMES)
def test_a_density_grows_steadily_away_from_the_page(theme: str) -> None:
    contrasts = [contrast(colour, SURFACES[theme]["page"]) for colour in LEVELS[theme]]
    assert contrasts == sorted(contrasts)


def test_the_dark_theme_is_for_screens_and_has_the_same_variables() -> None:
    light, dark = ({each.split(":")[0] for each in css_variables(theme).split("; ")} for theme in THEMES)
    assert light == dark
    assert "@media screen and (prefers-color-scheme: dark)" in colour_rules()
