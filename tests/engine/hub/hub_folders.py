"""A small hub folder, as the tests of this folder use it."""

from pathlib import Path

from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.hub.hub_folder import HubData, write_hub_folder
from atlasvi.engine.minified.minify import minify
from tests.engine.card.cards import make_card
from tests.engine.scvi_tools.test_model_directories import MODELS, make_data

FILES = ["README.md", "_scvi_required_metadata.json", "adata.h5ad", "card.html", "metrics.json", "model.pt"]


def write_pages(folder: Path, held: HubData) -> None:
    """The texts of a card, in short."""
    front = "---\nlibrary_name: scvi-tools\nlicense: mit\n---\n"
    (folder / "README.md").write_text(f"{front}# A model\n\n{held.describe()}\n")
    (folder / "card.html").write_text("<!doctype html><title>A model</title>")


def make_minified(folder: Path, model: str = "plain") -> Path:
    """The cells of the golden models, minified with one of them."""
    make_data().write_h5ad(folder / "counts.h5ad")
    minify(MODELS / model, f"{folder}/counts.h5ad::layer=X", folder / "cells.mini")
    return folder / "cells.mini"


def make_hub_folder(folder: Path, model: str = "plain", card: ModelCard | None = None) -> Path:
    """The folder `hub` of that model, with a made-up card."""
    write_hub_folder(folder / "hub", make_minified(folder, model), write_pages, card=card or make_card())
    return folder / "hub"
