"""What a run promises, from its first step to a resumed end.

The file is long because all of it is of one function, `train`, whose many options meet in a run.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine.cli.checking import DamageError, check
from atlasvi.engine.cli.describe import describe
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.model import trained_run
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.loss_terms import CellLosses, LossTerms
from atlasvi.engine.model.noise import EVALUATION_NOISE, seed_draws
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training import checkpoint_files, run_parts
from atlasvi.engine.training.checkpoint_files import list_checkpoints, read_newest_checkpoint, write_checkpoint
from atlasvi.engine.training.evaluation import INFORMATIVE_KL, Evaluation
from atlasvi.engine.training.progress import RunLog
from atlasvi.engine.training.resuming import read_data_spec
from atlasvi.engine.training.run_parts import prepare_run
from atlasvi.engine.training.settings import SettingError, resolve_settings
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.cells.open_cells import open_cells, select_genes
from atlasvi.loaders.errors import ColumnError, CountsError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import read_json

SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4, "n_layers": 2, "batch_size": 32}


def write_cells(path: Path, n_cells: int = 200, n_genes: int = 30, seed: int = 0, scale: float = 1.0) -> Path:
    """An h5ad of two types of cell in three batches, with columns that can and can't be covariates."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 2, n_cells)
    profile = rng.gamma(1.0, 2.0, (2, n_genes))
    counts = rng.poisson(profile[types] * rng.gamma(5, 0.2, (n_cells, 1))).astype(np.float32) * scale
    counts[:, 0] += scale
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b1", "b2", "b3"], n_cells), categories=["b1", "b2", "b3", "unused"]),
            "lane": rng.integers(3, 6, n_cells),
            "type": np.array(["B", "T"])[types],
            "one": "same",
            "gaps": pd.Categorical(np.where(np.arange(n_cells) == 4, None, "x")),
            "split": np.array(["train", "train", "validation", "test"])[np.arange(n_cells) % 4],
        },
        index=[f"c{k}" for k in range(n_cells)],
    )
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(n_genes)])).write_h5ad(path)
    return path


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")


def read_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    """Epochs without their times; lines of steps are written by the clock."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return [{key: value for key, value in line.items() if key not in ("seconds", "cells_per_s")} for line in epochs]


def assert_same_run(one: TrainedRun, other: TrainedRun) -> None:
    """Weights to the bit, and all that was reported but the times."""
    for (name, first), second in zip(one.model.state_dict().items(), other.model.state_dict().values()):
        assert torch.equal(first, second), name
    assert one.path is not None
    assert other.path is not None
    assert without_times(read_lines(one.path)) == without_times(read_lines(other.path))
    for part in ("train", "validation", "best_epoch", "epochs", "steps"):
        assert one.result[part] == other.result[part]


# a run and what it reports


@pytest.mark.parametrize("as_store", [False, True])
def test_a_run_learns_and_leaves_its_model_result_and_metrics(cells: Path, tmp_path: Path, as_store: bool):
    data = cells
    if as_store:
        data = tmp_path / "store"
        ingest(cells, data)
    settings = {**SMALL, "learning_rate": 0.01}
    run = train(data, tmp_path / "run", batch_key="batch", labels_key="type", epochs=12, settings=settings)
    lines = [line for line in read_lines(tmp_path / "run") if line["kind"] == "epoch"]
    assert [line["epoch"] for line in lines] == list(range(12))
    assert lines[-1]["validation_reconstruction_loss"] < lines[0]["validation_reconstruction_loss"] - 2
    result = read_json(tmp_path / "run" / "result.json")
    assert result == run.result
    for part in ("train", "validation"):
        losses = result[part]
        assert losses["elbo"] == pytest.approx(-losses["reconstruction_loss"] - losses["kl"])
    assert result["train"]["n_cells"] + result["validation"]["n_cells"] == 200
    assert (result["epochs"], result["seed"], result["stopped_early"]) == (12, 0, False)
    assert (run.setup.batch_categories, run.setup.labels_categories) == (["b1", "b2", "b3"], ["B", "T"])
    assert run.genes[:2] == ["g0", "g1"]
    assert not run.model.training


def test_numbers_as_batches_are_taken_in_their_order(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", batch_key="lane", epochs=1, settings=SMALL)
    assert run.setup.batch_categories == [3, 4, 5]


def test_reported_losses_weigh_each_cell_the_same_whatever_minibatch_it_was_in(cells: Path, tmp_path: Path):
    """50 held-out cells in minibatches of 32 and 18."""
    run = train(cells, tmp_path / "run", split_column="split", epochs=1, settings=SMALL)
    asked = {"batch_key": None, "labels_key": None, "split_column": "split", "seed": 0}
    settings = resolve_settings(None, {**SMALL, "epochs": 1})
    parts = prepare_run(open_cells(cells), tmp_path / "other", Setup(), asked, settings, "cpu")
    parts.model.load_state_dict(run.model.state_dict())
    parts.model.eval()
    per_cell, generator = [], torch.Generator()
    with torch.no_grad():
        for number, batch in enumerate(parts.loaders["validation"]):
            seed_draws(generator, parts.seed, EVALUATION_NOISE, number)
            per_cell.append(parts.model(batch, generator)[0])
    assert [len(part) for part in per_cell] == [32, 18]
    mean = torch.cat(per_cell).double().mean().item()
    assert run.result["validation"]["reconstruction_loss"] == pytest.approx(mean, rel=1e-9)
    assert run.result["validation"]["n_cells"] == 50


def test_the_kl_weight_rises_by_epochs_to_one(cells: Path, tmp_path: Path):
    for warmup, expected in ((4, [0, 0.25, 0.5, 0.75, 1]), (0, [1] * 5), (None, [0, 0.5, 1, 1, 1])):
        out = tmp_path / f"run-{warmup}"
        train(cells, out, epochs=5, settings={**SMALL, "kl_warmup_epochs": warmup})
        assert [line["kl_weight"] for line in read_lines(out)] == expected


def test_in_a_run_of_one_epoch_the_kl_weight_rises_by_steps_to_nearly_one(cells: Path, tmp_path: Path):
    one = train(cells, tmp_path / "one", epochs=1, settings={**SMALL, "validation_fraction": 0})
    assert one.result["steps"] == 7  # 200 cells in minibatches of 32
    assert read_lines(tmp_path / "one")[-1]["kl_weight"] == pytest.approx(6 / 7)
    two = train(cells, tmp_path / "two", epochs=2, settings={**SMALL, "validation_fraction": 0})
    weights = [line["kl_weight"] for line in read_lines(tmp_path / "two") if line["kind"] == "epoch"]
    assert weights == pytest.approx([6 / 14, 13 / 14])
    assert two.result["steps"] == 14


def test_the_recipe_atlas_starts_from_a_sample_and_lets_the_rate_rise_and_fall(cells: Path, tmp_path: Path):
    settings = {**SMALL, "learning_rate": 0.01, "learning_rate_decay": 0.5}
    first = {}
    for recipe in ("scvi-tools", "atlas"):
        out = tmp_path / recipe
        train(cells, out, batch_key="batch", epochs=4, settings={**settings, "recipe": recipe})
        lines = [line for line in read_lines(out) if line["kind"] == "epoch"]
        first[recipe] = lines[0]["train_elbo"]
        config = json.loads((out / "config.json").read_text())["settings"]
        assert config["initial_weights"] == {"scvi-tools": "random", "atlas": "sample"}[recipe]
        rates = [line["learning_rate"] for line in lines]
    assert first["atlas"] > first["scvi-tools"]
    assert rates[:2] == [0.01, 0.01]
    assert 0 < rates[3] < rates[2] < 0.01


def test_the_recipe_atlas_decays_weights_alone(cells: Path, tmp_path: Path):
    settings = {**SMALL, "recipe": "atlas", "learning_rate": 0.01, "initial_weights": "random"}
    norms = {}
    for decay in (0.0, 10.0):
        model = train(cells, tmp_path / str(decay), epochs=4, settings={**settings, "weight_decay": decay}).model
        norms[decay] = [float(part.norm()) for part in (model.encoder.first.weight, model.log_theta)]
    assert norms[10.0][0] < 0.8 * norms[0.0][0]
    assert norms[10.0][1] > 0.8 * norms[0.0][1]


def test_the_result_holds_the_kl_of_each_latent_dimension(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", epochs=12, settings={**SMALL, "learning_rate": 0.01})
    for part in ("train", "validation"):
        assert len(run.result[part]["kl_by_dimension"]) == 4
        assert sum(run.result[part]["kl_by_dimension"]) == pytest.approx(run.result[part]["kl"], rel=1e-6)
    informative = [kl for kl in run.result["train"]["kl_by_dimension"] if kl >= INFORMATIVE_KL]
    assert run.result["informative_latents"] == len(informative) >= 1


def test_a_run_whose_latents_have_collapsed_says_so_and_what_to_set(cells: Path, tmp_path: Path, capsys):
    """A KL term of this weight leaves nothing of any posterior; without it there is no reason to lose a dimension."""
    fast = {**SMALL, "learning_rate": 0.01, "kl_warmup_epochs": 0}
    collapsed = train(cells, tmp_path / "a", epochs=12, settings={**fast, "max_kl_weight": 100})
    assert collapsed.result["informative_latents"] == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("Warning: 0 of 4 latent dimensions carry information")
    assert "kl_warmup_steps" in said
    assert "recipe=atlas" in said
    used = train(cells, tmp_path / "b", epochs=12, settings={**fast, "max_kl_weight": 0})
    assert used.result["informative_latents"] == 4
    assert "Warning" not in capsys.readouterr().err


def test_the_split_column_decides_and_test_cells_are_reported(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", split_column="split", epochs=1, settings=SMALL)
    assert {part: run.result[part]["n_cells"] for part in ("train", "validation", "test")} == {
        "train": 100,
        "validation": 50,
        "test": 50,
    }


def test_training_on_all_cells_reports_no_validation(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", epochs=2, settings={**SMALL, "validation_fraction": 0})
    assert "validation" not in run.result
    assert run.result["best_epoch"] is None
    assert run.result["train"]["n_cells"] == 200


def test_the_best_weights_are_kept_and_the_last_reported_beside_them(cells: Path, tmp_path: Path, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 6.0])
    measured = Trainer._evaluate

    def evaluate(trainer: Trainer, part: str, most: int | None = None) -> Evaluation:
        found = measured(trainer, part, most)
        if part == "validation" and (loss := next(losses, None)):
            return replace(found, terms=LossTerms(n_cells=1.0, reconstruction=loss))
        return found

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    best = train(cells, tmp_path / "best", epochs=4, settings=SMALL)
    assert (best.result["best_epoch"], best.result["kept_epoch"]) == (1, 1)
    losses = iter([5.0, 3.0, 4.0, 6.0])
    last = train(cells, tmp_path / "last", epochs=4, settings={**SMALL, "keep": "last"})
    assert (last.result["best_epoch"], last.result["kept_epoch"]) == (1, 3)
    assert best.result["last"]["validation"] == last.result["validation"]
    assert "last" not in last.result
    losses = iter([5.0, 3.0, 4.0, 6.0])
    two = train(cells, tmp_path / "two", epochs=2, settings={**SMALL, "kl_warmup_epochs": 2})
    assert all(torch.equal(a, b) for a, b in zip(best.model.parameters(), two.model.parameters()))


def test_training_stops_early_when_the_validation_does_not_improve(cells: Path, tmp_path: Path):
    settings = {**SMALL, "learning_rate": 1e-12, "early_stopping_patience": 3, "early_stopping_min_delta": 1.0}
    run = train(cells, tmp_path / "run", epochs=50, settings=settings)
    assert (run.result["epochs"], run.result["best_epoch"], run.result["stopped_early"]) == (4, 0, True)
    settings["early_stopping"] = False
    assert train(cells, tmp_path / "whole", epochs=6, settings=settings).result["epochs"] == 6


def test_max_steps_ends_a_run_inside_an_epoch(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", epochs=5, settings={**SMALL, "max_steps": 8, "validation_fraction": 0})
    assert (run.result["steps"], run.result["epochs"]) == (8, 2)  # of 7 minibatches
    assert [line["n_cells"] for line in read_lines(tmp_path / "run")] == [200, 32]


def test_the_training_loss_is_measured_on_as_many_cells_as_asked(cells: Path, tmp_path: Path):
    run = train(cells, tmp_path / "run", epochs=1, settings={**SMALL, "evaluation_cells": 60})
    assert run.result["train"]["n_cells"] == 64  # whole minibatches


# the same again


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cells: Path, tmp_path: Path):
    runs = [
        train(cells, tmp_path / f"run{k}", batch_key="batch", epochs=2, seed=seed, settings=SMALL)
        for k, seed in enumerate((3, 3, 4))
    ]
    assert_same_run(runs[0], runs[1])
    assert not torch.equal(runs[0].model.log_theta, runs[2].model.log_theta)


def test_large_minibatches_on_several_threads_give_the_same_run_too(tmp_path: Path):
    cells = write_cells(tmp_path / "cells.h5ad", n_cells=1500, n_genes=50)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [
            train(cells, tmp_path / f"run{k}", batch_key="batch", epochs=2, settings={"batch_size": 700})
            for k in range(2)
        ]
    finally:
        torch.set_num_threads(threads)
    assert_same_run(*runs)


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL would."""


def at_step(monkeypatch, step: int, act: Callable[[], None]) -> None:
    """Act once, right after that optimizer step."""
    log, done = RunLog.step, []

    def log_and_act(self: RunLog, epoch: int, batch: int, number: int, *rest: Any) -> None:
        log(self, epoch, batch, number, *rest)
        if number == step and not done:
            done.append(number)
            act()

    monkeypatch.setattr(RunLog, "step", log_and_act)


SCHEDULE: dict[str, Any] = {"batch_key": "batch", "epochs": 3, "settings": {**SMALL, "validation_fraction": 0.2}}
FREQUENT: dict[str, Any] = {**SCHEDULE, "settings": {**SCHEDULE["settings"], "checkpoint_minutes": 1e-9}}
ATLAS: dict[str, Any] = {**SCHEDULE, "settings": {**FREQUENT["settings"], "recipe": "atlas"}}
STEPS_AN_EPOCH = 6  # 162 cells in minibatches of 32


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


# bad input


def test_resuming_what_is_not_there_is_refused(cells: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="there is no run to resume"):
        train(cells, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"batch_key": "donor"}, ColumnError, r"no column 'donor' \(it has: batch, lane, type"),
        ({"batch_key": "one"}, ColumnError, r"'one' has one value \('same'\)"),
        ({"batch_key": "gaps"}, ColumnError, r"'gaps' has missing values \(1 cells, first: cell 4\)"),
        ({"labels_key": "kind"}, ColumnError, "no column 'kind'"),
        ({"split_column": "type"}, ColumnError, "holds 'B'|holds 'T'"),
        ({"settings": {"n_latnet": 3}}, SettingError, "did you mean n_latent"),
        ({"settings": {"n_latent": -3}}, SettingError, "n_latent = -3"),
        ({"device": "tpu"}, SettingError, "use auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    cells: Path, tmp_path: Path, asked: dict, error: type, message: str
):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message) as raised:
        train(cells, tmp_path / "run", **asked)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_normalised_data_is_refused_before_anything_is_written(tmp_path: Path):
    cells = write_cells(tmp_path / "normalised.h5ad", scale=0.37)
    with pytest.raises(CountsError, match=r"normalised\.h5ad"):
        train(cells, tmp_path / "run", settings=SMALL)
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_is_left_as_it_is(cells: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        train(cells, tmp_path / "run", settings=SMALL)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_an_output_that_cannot_be_made_is_said(cells: Path, tmp_path: Path):
    with pytest.raises(OutputError, match=r"cells\.h5ad/run"):
        train(cells, cells / "run", settings=SMALL)


@pytest.mark.parametrize("cause", ["loss", "gradient", "the last gradient"])
def test_nan_stops_with_step_terms_and_the_last_good_checkpoint_intact(
    cells: Path, tmp_path: Path, monkeypatch, cause: str
):
    step = {"loss": 8, "gradient": 7, "the last gradient": 18}[cause]
    forward = VAE.forward

    def poisoned(model: Any, batch: Any, *rest: Any) -> Any:
        reconstruction, kl, kl_library = forward(model, batch, *rest)
        if model.training:
            calls.append(0)
            if len(calls) == step:
                if cause == "loss":
                    return CellLosses(reconstruction * torch.nan, kl, kl_library)
                reconstruction.register_hook(lambda grad: grad * torch.nan)
        return CellLosses(reconstruction, kl, kl_library)

    calls: list[int] = []
    monkeypatch.setattr(VAE, "forward", poisoned)
    with pytest.raises(TrainingError) as raised:
        train(cells, tmp_path / "run", **SCHEDULE)
    message = str(raised.value)
    path, state = read_newest_checkpoint(tmp_path / "run" / "checkpoints")
    last = cause == "the last gradient"  # no later loss tells of it: the weights do
    assert f"epoch {3 if last else 2}, step {18 if last else 8}, the {'weights' if last else 'loss'}" in message
    assert f"{path} (step {12 if last else 6})" in message
    if not last:
        assert "reconstruction nan" in message
        assert "KL weight 0.388889" in message  # 7 of 18 steps
    assert all(torch.isfinite(tensor).all() for tensor in state["weights"].values())
    assert not (tmp_path / "run" / "model.pt").exists()
    monkeypatch.setattr(VAE, "forward", forward)
    assert train(cells, tmp_path / "run", resume=True).result["epochs"] == 3


def test_a_learning_rate_that_explodes_is_stopped(cells: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="Try a lower learning_rate"):
        train(cells, tmp_path / "run", epochs=3, settings={**SMALL, "learning_rate": 1e30})


# places that are taken, and what goes on


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


def test_a_seed_below_zero_is_refused_before_anything_is_written(cells: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="seed -1: use a whole number from 0"):
        train(cells, tmp_path / "run", seed=-1)
    assert not (tmp_path / "run").exists()
