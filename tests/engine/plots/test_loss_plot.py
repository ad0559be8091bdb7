"""Pictures of losses hold what a run wrote, of runs that are finished and of runs that are not."""

import json
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine import plot_losses
from atlasvi.engine.plots.loss_plot import draw_losses, read_losses
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import OutputError, SourceError

pytest.importorskip("matplotlib")


def write_run(folder: Path, epochs: int = 5, steps_an_epoch: int = 3, validation: bool = True, kept: int = 3) -> Path:
    """The metrics of a run, with a line after each step of the first epoch."""
    folder.mkdir()
    lines = [describe("step", 0, step + 1, 900 - step, False) for step in range(steps_an_epoch - 1)]
    lines = lines if steps_an_epoch > 2 else []
    lines += [
        describe("epoch", epoch, (epoch + 1) * steps_an_epoch, 800 / (epoch + 1), validation) for epoch in range(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"kept_epoch": kept}))
    return folder


def describe(kind: str, epoch: int, step: int, loss: float, validation: bool) -> dict[str, float | str]:
    line: dict[str, float | str] = {"kind": kind, "epoch": epoch, "step": step, "cells_per_s": 9.0}
    for part, add in [("train", 0), ("validation", 10)][: 1 + validation]:
        line |= {f"{part}_reconstruction_loss": loss + add, f"{part}_kl": 5.0, f"{part}_elbo": -loss - add - 5}
    return line


def test_the_curves_are_the_losses_of_the_epochs(tmp_path: Path):
    found = read_losses(write_run(tmp_path / "run"))
    assert found.name == "run"
    assert found.kept == 4
    for part, add in (("train", 0), ("validation", 10)):
        places, values = found.curves[part, "reconstruction_loss"]
        np.testing.assert_array_equal(places, [1, 2, 3, 4, 5])
        np.testing.assert_allclose(values, 800 / places + add)
        np.testing.assert_allclose(found.curves[part, "elbo"][1], -values - 5)


def test_over_steps_the_losses_inside_long_epochs_are_there_too(tmp_path: Path):
    places, values = read_losses(write_run(tmp_path / "long", epochs=1), "steps").curves["train", "reconstruction_loss"]
    np.testing.assert_array_equal(places, [1, 2, 3])
    np.testing.assert_array_equal(values, [900, 899, 800])
    short = read_losses(write_run(tmp_path / "short", epochs=5), "steps")
    np.testing.assert_array_equal(short.curves["train", "elbo"][0], [3, 6, 9, 12, 15])
    assert short.kept == 12


def test_a_run_that_is_training_is_drawn_as_far_as_it_is(tmp_path: Path):
    run = write_run(tmp_path / "run", epochs=2, validation=False)
    (run / "result.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epoch", "epo')
    found = read_losses(run)
    assert found.kept is None
    assert list(found.curves) == [("train", "elbo"), ("train", "reconstruction_loss"), ("train", "kl")]
    out = tmp_path / "a.svg"
    plot_losses(run, out, style=Style(dpi=60))
    assert ">weights kept<" not in out.read_text()


def test_the_picture_names_runs_terms_and_units(tmp_path: Path):
    runs = [write_run(tmp_path / "first", kept=1), write_run(tmp_path / "second", epochs=1, steps_an_epoch=1, kept=0)]
    out = tmp_path / "a.svg"
    plot_losses(runs, out, style=Style(title="Two runs", width=7, dark=True))
    text = out.read_text()
    for word in ("Two runs", "ELBO", "reconstruction loss", "KL divergence", "nats per cell", "training", "held out"):
        assert f">{word}<" in text
    for word in ("first", "second", "epoch", "weights kept"):
        assert f">{word}<" in text
    with pytest.raises(OutputError, match="exists"):
        plot_losses(runs, out)


def test_the_first_losses_do_not_set_the_scale_and_the_last_ones_are_all_inside(tmp_path: Path):
    run = write_run(tmp_path / "run", epochs=40)
    with drawing(Style()):
        axes = draw_losses([read_losses(run)], "epochs", Style()).axes[1]
    low, high = axes.get_ylim()
    assert low < 800 / 40
    assert 800 / 4 + 10 < high < 800
    assert axes.get_xlim()[0] < 1 < 40 < axes.get_xlim()[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no metrics.jsonl"),
        ("", "no epoch is finished yet"),
        ('{"kind": "epoch"}\n', "line 1 does not hold the metrics of a run"),
        ("[1]\n[2]\n", "line 1 does not hold"),
    ],
)
def test_a_folder_without_losses_is_refused_in_a_sentence(tmp_path: Path, content: str | None, said: str):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SourceError, match=said):
        plot_losses(tmp_path)


def test_what_can_not_be_drawn_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with pytest.raises(QueryError, match="1 to 8 runs; 9 are named"):
        plot_losses([run] * 9)
    with pytest.raises(QueryError, match="over is 'hours': use one of epochs, steps"):
        plot_losses(run, over="hours")  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="too little for three panels"):
        plot_losses(run, style=Style(width=1.5))
    with pytest.raises(QueryError, match=r"ends in \.png"):
        plot_losses(run, tmp_path / "a.gif")
