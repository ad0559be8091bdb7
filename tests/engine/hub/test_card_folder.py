"""A card's folder is what `HubModel` opens, with the figures, the page and the README of the same card."""

from pathlib import Path

import pytest

from atlasvi.engine import SCVI
from atlasvi.engine.card import make_card
from atlasvi.engine.card.card_check import check_card, read_card
from atlasvi.engine.hub import card_folder
from atlasvi.engine.hub.card_folder import write_card_folder
from atlasvi.engine.hub.hub_files import LIST
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from tests.engine.hub.hub_folders import FILES, make_minified
from tests.engine.scvi_tools.test_model_directories import MODELS

OPTIONS = {"n_draws": 2, "device": "cpu"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    make_minified(tmp_path)
    return f"{tmp_path}/counts.h5ad::layer=X"


def test_the_folder_has_the_files_of_a_hub_and_its_card_holds(tmp_path: Path, data: str):
    card = write_card_folder(MODELS / "plain", data, tmp_path / "card", data_url="https://lab.org/cells", **OPTIONS)
    assert sorted(file.name for file in (tmp_path / "card").iterdir()) == sorted([*FILES, LIST])
    assert read_card(tmp_path / "card") == card
    n_cells = card.provenance.n_cells
    readme, page = ((tmp_path / "card" / name).read_text() for name in ("README.md", "card.html"))
    assert f"holds all {n_cells:,} cells, minified." in readme
    assert "https://lab.org/cells" in readme
    assert "Can generated counts be used?" in page
    assert SCVI.load(tmp_path / "card").get_latent_representation().shape == (n_cells, card_latents(tmp_path))
    assert "nothing moved" in " ".join(check_card(tmp_path / "card", data, device="cpu"))
    assert not list(tmp_path.glob(".*"))


def card_latents(folder: Path) -> int:
    return open_minified(folder / "cells.mini").n_latent


def test_an_interrupted_card_goes_on_without_encoding_again(tmp_path: Path, data: str, monkeypatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(card_folder, "fill_hub_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            write_card_folder(MODELS / "plain", data, tmp_path / "card", **OPTIONS)
    assert not (tmp_path / "card").exists()
    monkeypatch.setattr(make_card, "measure_part", stop)
    write_card_folder(MODELS / "plain", data, tmp_path / "card", **OPTIONS)
    assert open_minified(tmp_path / "card" / "adata.h5ad").n_cells == read_card(tmp_path / "card").provenance.n_cells
    assert not list(tmp_path.glob(".*"))


def test_cells_that_were_minified_already_are_used(tmp_path: Path, data: str, monkeypatch):
    monkeypatch.delattr(make_card, "CardPosterior")
    write_card_folder(MODELS / "plain", data, tmp_path / "card", minified=tmp_path / "cells.mini", **OPTIONS)
    card = write_card_folder(MODELS / "plain", tmp_path / "cells.mini", tmp_path / "without", **OPTIONS)
    assert (tmp_path / "without" / "adata.h5ad").is_file()
    assert any(note.subject == "counts" for note in card.notes)
