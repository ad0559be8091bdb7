"""The losses of a run, finished or not, as a picture of what the run recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine import plot_losses, simulate, train
from atlasvi.engine.plots.loss_plot import read_losses
from atlasvi.engine.plots.style import Style
from atlasvi.loaders.errors import OutputError, SourceError
from tests.engine.cli.test_commands import atlasvi

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    simulate(folder / "a.h5ad", 100, 10, 2, 2, 0)
    settings = {"n_hidden": 8, "n_latent": 2, "n_layers": 1}
    train(folder / "a.h5ad", folder / "run", epochs=3, batch_size=32, settings=settings)
    return folder / "run"


def copy_unfinished(run: Path, to: Path, text: str) -> Path:
    to.mkdir()
    (to / "config.json").write_bytes((run / "config.json").read_bytes())
    (to / "metrics.jsonl").write_text(text)
    return to


def test_the_lines_are_the_losses_of_the_epochs_and_the_kept_one_is_marked(run: Path, tmp_path: Path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = plot_losses(run, tmp_path / "a.svg", style=Style(dpi=60))
    top = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(top["training"].get_ydata(), [-line["train_elbo"] for line in epochs])
    np.testing.assert_allclose(top["held out"].get_ydata(), [-line["validation_elbo"] for line in epochs])
    assert top["held out"].get_xdata().tolist() == [1, 2, 3]
    low = {line.get_label(): line for line in figure.axes[1].get_lines()}
    np.testing.assert_allclose(low["held out"].get_ydata(), [line["validation_kl"] for line in epochs])
    text = (tmp_path / "a.svg").read_text()
    kept = json.loads((run / "result.json").read_text())["kept_epoch"] + 1
    for words in (f"kept: epoch {kept}", "training", "held out", "nats per cell", f"{epochs[-1]['step']} steps in all"):
        assert f">{words}" in text or words in text


def test_steps_lie_between_the_ends_of_the_epochs_around_them(run: Path, tmp_path: Path):
    def write(kind: str, epoch: int, step: int) -> str:
        return json.dumps({"kind": kind, "epoch": epoch, "step": step, "train_elbo": -step, "train_kl": 1.0})

    # a run that was started from another with 100 steps, whose last line is being written
    lines = [write("step", 0, 105), write("epoch", 0, 110), write("step", 1, 115), write("epoch", 1, 120)]
    lines += [write("step", 2, 122), '{"kind": "st']
    found = read_losses(copy_unfinished(run, tmp_path / "run", "\n".join(lines)))
    assert [line["at"] for line in found.steps] == pytest.approx([0.5, 1.5, 2.2])
    assert [line["train_loss"] for line in found.epochs] == [110, 120]
    assert found.kept is None


def test_what_is_no_run_or_has_no_epoch_yet_is_a_sentence(run: Path, forms: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="has not finished an epoch yet"):
        plot_losses(copy_unfinished(run, tmp_path / "run", ""))
    with pytest.raises(SourceError, match=r"this is a minified store: .* atlasvi query .* plot draws these cells"):
        plot_losses(forms / "x.mini")
    with pytest.raises(SourceError, match="this is none"):
        plot_losses(tmp_path / "nothing")


def test_the_command_writes_beside_the_run_and_keeps_a_file_that_is_there(run: Path, tmp_path: Path):
    assert atlasvi("plot", run, "--dpi", 60).stdout == f"{run}.losses.png: written.\n"
    assert "exists already" in atlasvi("plot", run, "--dpi", 60, ok=False).stderr
    atlasvi("plot", run, "--dpi", 60, "--replace", "--dark", "--title", "a run")
    with pytest.raises(OutputError, match="exists already"):
        plot_losses(run, f"{run}.losses.png")
