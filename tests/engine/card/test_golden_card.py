"""The card of scvi-tools' models beside what its own criticism report said of them (benchmarks/card.py repeats it)."""

import json
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.card import make_card as module
from atlasvi.engine.card.card_check import list_figures
from atlasvi.engine.card.make_card import make_card

GOLDEN = Path(__file__).parents[2] / "golden" / "criticism_report.json"
"""Figures of `create_criticism_report` of scvi-tools 1.5.1 with 5 draws, one per seed, on OneK1K's 7,811 cells."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onek1k_seed", "onek1k_zinb"])
def test_every_figure_of_the_hub_is_within_the_spread_of_its_seeds(shared: Path, name: str, monkeypatch):
    monkeypatch.setattr(module, "place_cells", lambda latent, seed: ("PCA", latent[:, :2].astype(float)))
    card = make_card(shared / "scvi_models" / name, shared / "data" / "onek1k.h5ad", labels_key="cell_type")
    ours, outside = list_figures(card), []
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(golden) == 36
    for figure, theirs in golden.items():
        value, error = ours[figure]
        one_draw = np.sqrt(card.provenance.n_draws) if "label" in figure else 1  # the hub tests one draw
        allowed = 4 * error * one_draw + 0.005 * abs(value)
        if not min(theirs) - allowed <= value <= max(theirs) + allowed:
            outside.append((figure, value, error, theirs))
    assert outside == []
