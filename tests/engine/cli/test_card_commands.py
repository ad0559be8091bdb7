"""`atlasvi card` and `atlasvi info` on a card; what a card holds is tested in tests/engine/card."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from atlasvi.engine.card import card_check
from atlasvi.engine.card.model_card import METRICS, ModelCard
from atlasvi.engine.cli.commands import app
from atlasvi.engine.cli.describe import describe
from atlasvi.engine.hub import card_folder
from tests.engine.card.cards import make_card

runner = CliRunner()


@pytest.fixture
def asked(monkeypatch) -> list:
    """The arguments that the command passes on."""
    found: list = []

    def compute(run, data, out, **options) -> ModelCard:
        options.pop("progress")
        found.append((str(run), str(data), str(out), options))
        return make_card()

    monkeypatch.setattr(card_folder, "write_card_folder", compute)
    return found


def test_the_command_passes_its_options_on_and_says_what_it_found(asked: list):
    done = runner.invoke(app, ["card", "run", "atlas.h5ad", "--out", "card", "--labels-key", "type", "--draws", "3"])
    assert done.exit_code == 0, done.output
    options = {"labels_key": "type", "batch_key": None, "n_draws": 3, "seed": 0, "batch_size": 1024, "device": "auto"}
    assert asked == [("run", "atlas.h5ad", "card", {**options, "dask": None, "minified": None, "data_url": None})]
    assert "card: 1,000 cells, 5 draws each (80 cells/s, at most 500 MB)." in done.output
    assert "training, variation of cells: squared Pearson 0.71: good" in done.output
    assert "validation, variation of genes: squared Pearson 0.35: do not use generated data" in done.output
    assert "differential expression: Label 'lonely cell' has one cell" in done.output
    assert "Open card/card.html in a browser; all figures are in card/metrics.json." in done.output


def test_out_is_needed_and_options_without_effect_are_refused(asked: list):
    done = runner.invoke(app, ["card", "run", "atlas.h5ad"])
    assert done.exit_code == 2
    assert "--out" in done.output
    for words in (["--check", "--draws", "3"], ["--out", "card", "--run", "run"]):
        done = runner.invoke(app, ["card", "card", "atlas.h5ad", *words])
        assert done.exit_code == 1
        assert "would have no effect" in str(done.exception)
    assert asked == []


def test_check_prints_what_was_compared(monkeypatch):
    monkeypatch.setattr(card_check, "check_card", lambda run, data, model, device: iter([f"{run} {data} {model}"]))
    done = runner.invoke(app, ["card", "--check", "card", "atlas.h5ad", "--run", "run"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == "card atlas.h5ad run"


def test_training_may_end_with_a_card(asked: list, monkeypatch):
    from atlasvi.engine.training import train

    monkeypatch.setattr(train, "train", lambda *arguments, **options: None)
    done = runner.invoke(app, ["train", "atlas.h5ad", "--out", "run", "--card", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert asked == [("run", "atlas.h5ad", str(Path("run/card")), {"device": "cpu"})]


@pytest.mark.parametrize("with_labels", [True, False])
def test_info_shows_the_figures_of_a_card(tmp_path: Path, with_labels: bool):
    (tmp_path / METRICS).write_text(make_card(with_labels).to_json())
    said = "\n".join(describe(tmp_path))
    assert "card of SCVI of atlasvi (format 1)" in said
    assert "data atlas.h5ad::layer=counts: 1,000 cells x 200 genes, counts fedcba9876543210" in said
    assert "training: 900 cells" in said
    assert "coefficient of variation by cell: mae 1.27 ± 0.01, pearson 0.84 ± 0.008" in said
    assert "zero fraction by gene: mae 1.27 ± 0.01, pearson undefined" in said
    assert "counts inside credible intervals (33%: 31.0%, 67%: 64.0%)" in said
    assert ("B cell (450 cells), Welch: gene_f1 0.95 ± 0.009" in said) == with_labels
    assert "validation, variation of genes: squared Pearson 0.35 ± 0.01: do not use generated data" in said
    assert "integration (atlasvi, 500 cells): silhouette_label 0.55 ± 0.01, batch_entropy 0.8" in said
