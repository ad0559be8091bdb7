import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atlasvi.engine.training import progress
from atlasvi.engine.training.progress import RunLog


def line(epoch: int) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "train_elbo": -321.5 - epoch,
        "validation_elbo": -322.5 - epoch,
        "cells_per_s": 4567.8,
        "seconds": 2.0 * (epoch + 1),
    }


def test_away_from_a_terminal_there_are_plain_lines_with_losses_speed_and_time_left(
    tmp_path: Path, capsys, monkeypatch
):
    with RunLog(tmp_path / "metrics.jsonl", 4, 10, []) as log:
        now = log._began
        monkeypatch.setattr(progress.time, "monotonic", lambda: now)
        for epoch in (0, 1, 3):
            now += 6 if epoch == 0 else 2  # so that the line of the second comes too soon
            log.epoch(line(epoch))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "epoch 1/4: ELBO -321.5  held out -322.5 nats per cell, 4,568 cells/s, 18 s left",
        "epoch 4/4: ELBO -324.5  held out -325.5 nats per cell, 4,568 cells/s, 0.0 s left",
    ]


def test_the_forecast_is_of_this_process_and_leaves_out_what_was_compiled(tmp_path: Path):
    with RunLog(tmp_path / "metrics.jsonl", 10, 10, [line(0), line(1)], done=2.5) as log:
        log._began -= 100.0
        log._compiling.seconds = 70.0
        assert log._forecast(4) == pytest.approx(30 / 1.5 * 6, rel=0.01)  # 1.5 epochs in 30 s, 6 are left


def test_it_is_said_once_that_kernels_are_compiled(tmp_path: Path, capsys):
    import numba

    with RunLog(tmp_path / "metrics.jsonl", 1, 10, []) as log:
        for add in (1, 2):
            numba.njit(lambda x, y=add: x + y)(1)
        assert log._compiling.seconds > 0
    assert capsys.readouterr().err.count("Kernels are compiled for this machine") == 1


def test_on_a_terminal_a_live_line_shows_losses_and_speed(tmp_path: Path, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    with RunLog(tmp_path / "metrics.jsonl", 4, 10, []) as log:
        log.epoch(line(0))
        log.step(1, 5, 15, {"train_elbo": -300.0}, 4567.8)
        log._bars.refresh()
    for text in ("epoch 2/4", "38%", "ELBO -300.0  held out -322.5", "4,568 cells/s"):
        assert text in screen.getvalue()


def test_the_metrics_file_begins_with_the_history_and_loses_what_came_after_its_checkpoint(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line(epoch)) + "\n" for epoch in range(3)) + '{"kind": "ep')
    with RunLog(metrics, 4, 10, [line(0)]) as log:
        log.epoch(line(1))
    assert [json.loads(text) for text in metrics.read_text().splitlines()] == [line(0), line(1)]


def test_long_epochs_are_logged_within(tmp_path: Path):
    with RunLog(tmp_path / "metrics.jsonl", 1, 1000, []) as log:
        log.step(0, 1, 1, {"train_elbo": -9.0}, 10.0)
        log._logged = -100.0
        log.step(0, 2, 2, {"train_elbo": -8.0}, 10.0)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "step", "epoch": 0, "step": 2, "train_elbo": -8.0, "cells_per_s": 10.0}]


def test_a_writer_that_fails_is_told_of_once_and_the_run_goes_on(tmp_path: Path, capsys):
    class Broken:
        name = "somewhere"

        def write(self, metrics, step):
            raise ConnectionError("no route to host")

        def close(self):
            raise AssertionError("it is left out by then")

    with RunLog(tmp_path / "metrics.jsonl", 4, 10, [], writers=[Broken()]) as log:
        log.epoch(line(0))
        log.epoch(line(1))
    said = capsys.readouterr().err
    assert said.count("somewhere gets no more metrics (ConnectionError: no route to host); training goes on.") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
