"""A card is computed again: what moved, what is other data, and what minified cells can say."""

from dataclasses import replace
from pathlib import Path

import pytest

from atlasvi.engine.card import card_check
from atlasvi.engine.card.card_check import CardChangedError, check_card
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import METRICS, ModelCard
from atlasvi.engine.hub.card_folder import write_card_folder
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.trained_run import load_run
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.data_spec import parse_source
from tests.engine.card.small_atlas import make_adata


def test_a_card_is_checked_by_computing_it_again(folder: Path, whole: ModelCard):
    lines = list(check_card(folder / "card", folder / "data.h5ad", folder / "run"))
    assert lines[-1].endswith("nothing moved beyond its error")
    changed = folder / "changed"
    changed.mkdir()
    text = whole.to_json().replace(f'"value": {whole.parts["training"].losses["kl"].value!r}', '"value": 99.0', 1)
    assert text != whole.to_json()
    (changed / METRICS).write_text(text)
    with pytest.raises(CardChangedError, match=r"training loss kl was 99 and is"):
        list(check_card(changed, folder / "data.h5ad", folder / "run"))
    with pytest.raises(SourceError, match="has no model beside it"):
        list(check_card(folder / "card", folder / "data.h5ad"))
    with pytest.raises(SourceError, match="there is no card"):
        list(check_card(folder / "run", folder / "data.h5ad"))


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory) -> Path:
    """The folder of the card, with its model and minified cells; and a minified store beside it."""
    at = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlasvi.engine.card.make_card.place_cells", lambda latent, seed: ("PCA", latent[:, :2]))
        write_card_folder(folder / "run", folder / "data.h5ad", at / "card", labels_key="type", n_draws=3)
        minify(folder / "run", folder / "data.h5ad", at / "mini")
        make_card(folder / "run", at / "mini", at / "minified-card", labels_key="type", n_draws=3)
    return at


def test_minified_cells_repeat_what_needs_no_counts(folder: Path, hub: Path):
    for cells in (hub / "mini", hub / "card" / "adata.h5ad"):
        said = list(check_card(hub / "card", parse_source(cells)))
        assert "9 figures computed again" in said[0]  # four of library sizes, KL, four of integration
        assert "figures not compared: they need the counts" in said[1]
        assert said[-1].endswith("nothing moved beyond its error")
    said = list(check_card(hub / "minified-card", hub / "mini", folder / "run"))  # of minified cells from the start
    assert len(said) == 2
    assert said[-1].endswith("nothing moved beyond its error")
    said = list(check_card(hub / "minified-card", folder / "data.h5ad", folder / "run"))
    assert "figures not compared: they need the counts" in said[1]


def test_figures_of_minified_cells_that_moved_are_named(hub: Path):
    card = card_check.read_card(hub / "minified-card")
    figures = {**card.parts["all"].losses, "kl": card.parts["all"].losses["kl"]._replace(value=99.0)}
    changed = replace(card, parts={"all": replace(card.parts["all"], losses=figures)})
    (hub / "moved").mkdir()
    (hub / "moved" / METRICS).write_text(changed.to_json())
    with pytest.raises(CardChangedError, match=r"no longer holds: all loss kl was 99 and is .*\(error 0\)\.$"):
        list(check_card(hub / "moved", hub / "mini", hub / "card"))


def test_other_data_or_another_model_is_refused_in_a_sentence(folder: Path, hub: Path, tmp_path: Path):
    make_adata()[:50].write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(CardChangedError, match=r"few\.h5ad: it has 50 cells, and the card in .* is of 120"):
        list(check_card(hub / "card", tmp_path / "few.h5ad"))
    adata = make_adata()
    adata.X[5, 3] += 1
    adata.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(CardChangedError, match=r"other\.h5ad: these are not the cells .* hash of their counts was"):
        list(check_card(hub / "card", tmp_path / "other.h5ad"))
    minify(folder / "run", tmp_path / "other.h5ad", tmp_path / "mini")
    for card in (hub / "card", hub / "minified-card"):
        with pytest.raises(CardChangedError, match=r"these are not the cells .* hash of their library sizes was"):
            list(check_card(card, tmp_path / "mini", hub / "card"))
    run = load_run(folder / "run")
    run.model.encoder.mean.bias.data += 1
    with pytest.raises(CardChangedError, match=r"this is not the model .* hash of its weights was"):
        list(check_card(hub / "card", folder / "data.h5ad", run))


def test_cells_in_another_order_have_other_draws_which_are_not_compared(folder: Path, hub: Path):
    ingest(folder / "data.h5ad", hub / "store")
    minify(folder / "run", hub / "store", hub / "shuffled.mini")
    for data, n in ((hub / "store", 7), (hub / "shuffled.mini", 5)):  # KL of each part, and integration
        said = list(check_card(hub / "card", data, folder / "run"))
        assert f"{n} figures computed again" in said[0]
        assert any("figures not compared: the cells are in another order" in line for line in said)
        assert said[-1].endswith("nothing moved beyond its error")


def test_integration_by_another_library_is_not_compared(hub: Path, monkeypatch):
    made = make_card

    def by_another(*given, **options):
        card = made(*given, **options)
        return replace(card, integration=replace(card.integration, computed_by="scib-metrics 0", figures={}))

    monkeypatch.setattr(card_check, "make_card", by_another)
    said = list(check_card(hub / "card", hub / "mini"))
    assert any("integration was computed by atlasvi, and now by scib-metrics 0" in line for line in said)


def test_the_data_is_opened_with_the_options_of_the_card(folder: Path, tmp_path: Path):
    adata = make_adata()
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"id{k}" for k in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "ids.h5ad")
    run = load_run(folder / "run")
    run.path = None
    write_card_folder(run, f"{tmp_path / 'ids.h5ad'}::gene_column=symbol", tmp_path / "card", n_draws=2)
    assert list(check_card(tmp_path / "card", tmp_path / "ids.h5ad"))[-1].endswith("nothing moved beyond its error")


def test_a_card_with_a_sample_and_an_address_is_checked_with_its_data(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("atlasvi.engine.hub.hub_folder.LARGEST_DATA_BYTES", 1)
    options = {"n_draws": 2, "data_url": "https://example.org/data.h5ad"}
    write_card_folder(folder / "run", folder / "data.h5ad", tmp_path / "card", **options)
    said = list(check_card(tmp_path / "card", folder / "data.h5ad"))
    assert said[-1].endswith("nothing moved beyond its error")
