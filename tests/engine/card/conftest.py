"""A small run, its data and its card, which the tests of the card share."""

from pathlib import Path

import pytest

from atlasvi.engine.card import make_card as module
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.training.train import train
from tests.engine.card.small_atlas import make_adata


@pytest.fixture(autouse=True)
def _quick_picture(monkeypatch):
    """Without UMAP, which numba compiles for a long time."""
    monkeypatch.setattr(module, "place_cells", lambda latent, seed: ("PCA", latent[:, :2].astype(float)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A run and its data."""
    at = tmp_path_factory.mktemp("card")
    make_adata().write_h5ad(at / "data.h5ad")
    settings = {"n_hidden": 8, "n_latent": 3, "validation_fraction": 0.2}
    options = {"batch_key": "batch", "epochs": 2, "batch_size": 32, "device": "cpu", "settings": settings}
    train(at / "data.h5ad", at / "run", **options)
    return at


@pytest.fixture(scope="session")
def whole(folder: Path) -> ModelCard:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "place_cells", lambda latent, seed: ("PCA", latent[:, :2].astype(float)))
        return make_card(folder / "run", folder / "data.h5ad", folder / "card", labels_key="type")
