"""A run that was stopped or killed anywhere resumes to the same end, to the bit, or is refused in a sentence."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import pytest

from atlasvi.engine.cli.checking import DamageError, check
from atlasvi.engine.cli.describe import describe
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.model import trained_run
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.training import checkpoint_files, run_parts
from atlasvi.engine.training.checkpoint_files import list_checkpoints, read_newest_checkpoint, write_checkpoint
from atlasvi.engine.training.resuming import read_data_spec
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.open_cells import open_cells, select_genes
from atlasvi.loaders.errors import OutputError, SourceError
from tests.engine.training.small_runs import (
    ATLAS,
    FREQUENT,
    SCHEDULE,
    STEPS_AN_EPOCH,
    Killed,
    assert_same_run,
    at_step,
    write_cells,
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("step", [1, 7, STEPS_AN_EPOCH, 3 * STEPS_AN_EPOCH])
def test_a_signal_is_answered_with_a_checkpoint_and_the_resumed_run_is_the_same(
    cells: Path, tmp_path: Path, monkeypatch, step: int, name: str
):
    whole = train(cells, tmp_path / "whole", **SCHEDULE)
    assert whole.result["steps"] == 3 * STEPS_AN_EPOCH
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(TrainingInterrupted, match=rf"{name} after step {step}.*atlasvi train .* --resume"):
        train(cells, tmp_path / "run", **SCHEDULE)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


@pytest.mark.parametrize("schedule", [SCHEDULE, FREQUENT, ATLAS], ids=["at epoch ends", "at each step", "atlas"])
@pytest.mark.parametrize("step", [1, 4, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1, 17])
def test_a_run_killed_inside_an_epoch_resumes_to_the_same_end(
    cells: Path, tmp_path: Path, monkeypatch, step: int, schedule: dict
):
    def kill() -> None:
        raise Killed

    whole = train(cells, tmp_path / "whole", **schedule)
    at_step(monkeypatch, step, kill)
    with pytest.raises(Killed):
        train(cells, tmp_path / "run", **schedule)
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


def test_a_run_whose_last_checkpoint_is_damaged_resumes_from_the_one_before(cells: Path, tmp_path: Path, monkeypatch):
    whole = train(cells, tmp_path / "whole", **FREQUENT)
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(cells, tmp_path / "run", **FREQUENT)
    newest, before = list_checkpoints(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert read_newest_checkpoint(tmp_path / "run" / "checkpoints")[0] == before
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


def test_a_checkpoint_of_other_content_is_refused_in_a_sentence(cells: Path, tmp_path: Path, monkeypatch):
    def kill() -> None:
        raise Killed

    at_step(monkeypatch, 1, kill)
    with pytest.raises(Killed):
        train(cells, tmp_path / "run", **SCHEDULE)
    path, state = read_newest_checkpoint(tmp_path / "run/checkpoints")
    path.unlink()
    write_checkpoint(path.parent, 0, {**state, "history": state["seconds"]}, kept=1)
    with pytest.raises(SourceError, match=r"run/checkpoints: it is damaged .* history is 0.0"):
        train(cells, tmp_path / "run", resume=True)


def test_a_run_stopped_in_a_validation_resumes_there_in_a_new_process_and_trains_on(cells: Path, tmp_path: Path):
    """The new process begins with the validation: what that leaves in memory must serve the training after it."""
    whole = train(cells, tmp_path / "whole", **SCHEDULE)
    program = f"""
import os, signal
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.engine.training.train import train
evaluate = Trainer._evaluate
def stop(self, *rest):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, *rest)
if RESUME is False:
    Trainer._evaluate = stop
train({str(cells)!r}, {str(tmp_path / "run")!r}, resume=RESUME, **{SCHEDULE!r})
"""
    first = subprocess.run([sys.executable, "-c", program.replace("RESUME", "False")], capture_output=True, text=True)
    assert f"SIGTERM after step {STEPS_AN_EPOCH}" in first.stderr
    subprocess.run([sys.executable, "-c", program.replace("RESUME", "True")], check=True)
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


@pytest.mark.slow
def test_a_process_killed_at_any_moment_resumes_to_the_same_end(cells: Path, tmp_path: Path):
    schedule = {**FREQUENT, "epochs": 60}
    whole = train(cells, tmp_path / "whole", **schedule)
    program = f"from atlasvi.engine import train; train({str(cells)!r}, {str(tmp_path / 'run')!r}, "
    arguments = f"**{schedule!r})"
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program + arguments], stderr=subprocess.DEVNULL)
        steps = len(list_checkpoints(tmp_path / "run" / "checkpoints")) and newest_step(tmp_path)
        while process.poll() is None and newest_step(tmp_path) < steps + 13:
            time.sleep(0.003)
        process.kill()
        process.wait()
        arguments = "resume=True)"
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


def newest_step(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in list_checkpoints(folder / "run" / "checkpoints")), default=0)


def test_a_finished_run_resumes_to_itself(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", **SCHEDULE)
    assert_same_run(run, train(cells, tmp_path / "run", resume=True, **SCHEDULE))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 4}, "epochs = 3, and now it is 4"),
        ({"batch_key": "type"}, "batch_key = 'batch', and now it is 'type'"),
        ({"seed": 1}, "seed = 0, and now it is 1"),
        ({"settings": {"n_latent": 5}}, "n_latent = 4, and now it is 5"),
        ({"config": "other.toml"}, "n_hidden = 16, and now it is 17"),
    ],
)
def test_resuming_with_another_configuration_is_refused(
    cells: Path, tmp_path: Path, monkeypatch, changed: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    Path("other.toml").write_text("n_hidden = 17\n")
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(cells, "run", **SCHEDULE)
    with pytest.raises(SettingError, match=f"run: the run was started with {message}"):
        train(cells, "run", resume=True, **changed)


@pytest.mark.parametrize(
    ("other", "sizes"), [({"n_cells": 201}, (201, 30)), ({"n_genes": 31}, (200, 31)), ({"seed": 1}, (200, 30))]
)
def test_resuming_on_other_data_is_refused(cells: Path, tmp_path: Path, monkeypatch, other: dict, sizes: tuple):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(cells, tmp_path / "run", **SCHEDULE)
    sentence = (
        r"with .*cells.h5ad as it was then, of 200 cells and 30 genes; now it is .*other.h5ad, of {} cells and {}"
    )
    with pytest.raises(SettingError, match=sentence.format(*sizes)):
        train(write_cells(tmp_path / "other.h5ad", **other), tmp_path / "run", resume=True)


def test_a_resumed_run_opens_its_data_with_the_options_that_it_was_started_with(
    cells: Path, tmp_path: Path, monkeypatch
):
    table = anndata.read_h5ad(cells)
    table.layers["counts"], table.X = table.X, table.X[::-1].copy()
    table.var["symbol"] = [f"s{k}" for k in range(30)]
    table.layers["counts"][3] = 0
    table.write_h5ad(cells)
    opened = f"{cells}::layer=counts,gene_column=symbol,empty_cells=keep"
    whole = train(opened, tmp_path / "whole", **SCHEDULE)
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(opened, tmp_path / "run", **SCHEDULE)
    with pytest.raises(SettingError, match=r"with .*layer=counts.* as it was then.*; now it is .*layer=X,gene_column"):
        train(f"{cells}::layer=X", tmp_path / "run", resume=True)
    table.layers["late"] = table.layers["counts"].copy()
    table.layers["late"][-1] += 1  # what the run has seen of it is the same
    table.write_h5ad(tmp_path / "late.h5ad")
    with pytest.raises(SettingError, match="the layer, the genes, or the counts of the first or last cells differ"):
        train(f"{tmp_path}/late.h5ad::layer=late", tmp_path / "run", resume=True)
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))
    further = train(cells, tmp_path / "further", start=tmp_path / "run", epochs=1)
    assert (further.data, further.genes[0]) == (whole.data, "s0")


def test_a_layer_of_the_model_is_that_of_the_data_only_in_runs_of_format_1(tmp_path: Path):
    """A run that began from a model with a layer may have been trained on data that has none."""
    setup = {"layer": "counts"}
    assert read_data_spec(tmp_path, {"data": "a.h5ad", "setup": setup}).layer == "counts"
    assert read_data_spec(tmp_path, {"data": {"path": "10x", "format": "mtx"}, "setup": setup}).layer is None


@pytest.mark.parametrize("name", ["config.json", "checkpoints", "model.pt"])
def test_a_run_of_a_newer_format_is_refused(cells: Path, tmp_path: Path, monkeypatch, name: str):
    for module in (trained_run, checkpoint_files, run_parts):
        monkeypatch.setattr(module, "RUN_FORMAT", 3)
    run = train(cells, tmp_path / "run", **SCHEDULE)
    monkeypatch.undo()
    sentence = rf"{name}.*: this (run|model|checkpoint) is of format 3, and this atlasvi reads up to 2: upgrade it"
    with pytest.raises(SourceError, match=sentence):
        if name == "config.json":
            train(cells, tmp_path / "run", resume=True)
        elif name == "model.pt":
            load_run(tmp_path / "run")
        else:
            assert run.path is not None
            read_newest_checkpoint(run.path / "checkpoints")
    with pytest.raises(DamageError, match="is of format 3, and this atlasvi reads up to 2"):
        list(check(tmp_path / "run"))
    with pytest.raises(SourceError, match=r"config.json: this run is of format 3"):
        list(describe(tmp_path / "run"))


def test_resuming_what_is_not_there_is_refused(cells: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="there is no run to resume"):
        train(cells, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_new_run_at_the_place_of_another_says_how_to_go_on_with_that(cells: Path, tmp_path: Path, monkeypatch):
    def kill() -> None:
        raise Killed

    at_step(monkeypatch, 2, kill)
    with pytest.raises(Killed):
        train(cells, tmp_path / "run", **SCHEDULE)
    with pytest.raises(OutputError, match=r"run: this is an unfinished run already: resume it with .* --resume"):
        train(cells, tmp_path / "run", **SCHEDULE)
    train(cells, tmp_path / "run", resume=True)
    with pytest.raises(OutputError, match=r"run: this is a finished run already: .* --start .*run --out OTHER"):
        train(cells, tmp_path / "run", **SCHEDULE)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="other exists already"):
        train(cells, tmp_path / "other", **SCHEDULE)


def test_resuming_a_finished_run_says_that_it_is_finished(cells: Path, tmp_path: Path, capsys):
    run = train(cells, tmp_path / "run", **SCHEDULE)
    capsys.readouterr()
    assert_same_run(run, train(cells, tmp_path / "run", resume=True))
    assert capsys.readouterr().err.strip().endswith("run: the run is finished already, so there is nothing to resume.")


def test_how_to_go_on_is_a_command_that_opens_the_data_as_it_was_opened(cells: Path, tmp_path: Path, monkeypatch):
    table = anndata.read_h5ad(cells)
    table.layers["raw counts"] = table.X
    table.var["symbol"] = [f"s{k}" for k in range(30)]
    table.X[3] = 0
    table.write_h5ad(tmp_path / "my cells.h5ad")
    options = {"layer": "raw counts", "gene_column": "symbol", "empty_cells": "keep"}
    data = select_genes(open_cells(tmp_path / "my cells.h5ad", **options), ["s1", "s2"])
    monkeypatch.setenv("ATLASVI_LAUNCH", "atlasvi launch --nproc 1 --max-restarts 3 --")
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted) as stopped:
        train(data, tmp_path / "run", device="cpu", **SCHEDULE)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert kept == {"path": str(tmp_path / "my cells.h5ad"), **options, "format": "h5ad"}
    opened = f"{tmp_path / 'my cells.h5ad'}::layer=raw counts,gene_column=symbol,empty_cells=keep"
    command = shlex.split(str(stopped.value).partition("Resume with: ")[2])
    assert command[:7] == ["atlasvi", "launch", "--nproc", "1", "--max-restarts", "3", "--"]
    assert command[7:] == [
        "train",
        opened,
        "--out",
        str(tmp_path / "run"),
        "--device=cpu",
        "--resume",
    ]
