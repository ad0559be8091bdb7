"""What a run learns, reports and keeps, and what it refuses."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.loss_terms import CellLosses, LossTerms
from atlasvi.engine.model.noise import EVALUATION_NOISE, seed_draws
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training import checkpoint_files
from atlasvi.engine.training.checkpoint_files import read_newest_checkpoint
from atlasvi.engine.training.evaluation import INFORMATIVE_KL, Evaluation
from atlasvi.engine.training.run_parts import prepare_run
from atlasvi.engine.training.settings import SettingError, resolve_settings
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import ColumnError, CountsError, OutputError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import read_json
from tests.engine.training.small_runs import (
    SCHEDULE,
    SMALL,
    assert_same_run,
    read_lines,
    write_cells,
)

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
    said = capsys.readouterr().err
    assert "\nWarning: 0 of 4 latent dimensions carry information" in said
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


@pytest.mark.parametrize(("min_delta", "kept"), [(0.0, 2), (1e3, 0)])  # the last weights are kept, or others
def test_held_out_cells_are_not_evaluated_again_for_the_result(
    min_delta: float, kept: int, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured, parts = Trainer._evaluate, []

    def evaluate(trainer: Trainer, part: str, most: int | None = None) -> Evaluation:
        parts.append(part)
        return measured(trainer, part, most)

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    settings = {**SMALL, "learning_rate": 0.01, "kl_warmup_epochs": 0, "early_stopping_min_delta": min_delta}
    run = train(cells, tmp_path / "run", epochs=3, settings=settings)
    lines = [line for line in read_lines(tmp_path / "run") if line["kind"] == "epoch"]
    assert parts.count("validation") == 3
    assert run.result["kept_epoch"] == kept
    assert run.result["validation"]["elbo"] == lines[kept]["validation_elbo"]
    (tmp_path / "run" / MODEL).unlink()  # a process that stopped before it wrote the model: another one evaluates anew
    again = train(cells, tmp_path / "run", resume=True)
    assert parts.count("validation") == 3 + (1 if kept == 2 else 2)
    assert all(again.result.get(part) == run.result.get(part) for part in ("train", "validation", "last"))


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

    write = checkpoint_files.write_checkpoint

    def write_slowly(*rest: Any) -> Any:
        time.sleep(0.2)  # the run fails while its last checkpoint is being written
        return write(*rest)

    calls: list[int] = []
    monkeypatch.setattr(VAE, "forward", poisoned)
    monkeypatch.setattr(checkpoint_files, "write_checkpoint", write_slowly)
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


def test_a_seed_below_zero_is_refused_before_anything_is_written(cells: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="seed -1: use a whole number from 0"):
        train(cells, tmp_path / "run", seed=-1)
    assert not (tmp_path / "run").exists()
