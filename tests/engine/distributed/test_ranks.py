"""Many ranks compute what one does: the same losses, history, weights; gradients are sums over all of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlasvi.engine.distributed.ranks import Ranks, join_ranks
from atlasvi.engine.training.checkpoint_files import list_checkpoints
from atlasvi.engine.training.step import StepTerms
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.manifest import read_json
from tests.engine.distributed.rank_processes import run_ranks
from tests.engine.training.small_runs import SMALL, write_cells


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")


def train_and_record(cells: Path, out: Path, options: dict[str, Any]) -> None:
    """Train, and write the losses of each step, the history and the weights that each rank sees."""
    losses: list[list[float]] = []
    count = Trainer._count

    def record(self: Trainer, found: StepTerms | None, kl_weight: float) -> bool:
        if found is not None:
            losses.append([found.terms.means()[name] for name in ("reconstruction_loss", "kl")])
        return count(self, found, kl_weight)

    Trainer._count = record  # type: ignore[method-assign]
    histories: list[list] = []
    end = Trainer._end_epoch

    def keep(self: Trainer, kl_weight: float) -> None:
        end(self, kl_weight)
        histories[:] = [list(self.state.history)]

    Trainer._end_epoch = keep  # type: ignore[method-assign]
    with join_ranks() as ranks:
        run = train(cells, out, **options)
        seen = {"losses": losses, "history": histories[0], "result": run.result}
        (out.parent / f"{out.name}.rank{ranks.rank}.json").write_text(json.dumps(seen))
        torch.save(run.model.state_dict(), out.parent / f"{out.name}.rank{ranks.rank}.pt")


def seen_by(out: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((out.parent / f"{out.name}.rank{rank}.json").read_text())


def weights_of(out: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(out.parent / f"{out.name}.rank{rank}.pt")


def run_on(world_size: int, cells: Path, out: Path, **options: Any) -> dict[str, Any]:
    run_ranks(train_and_record, world_size, out.parent / f"{out.name}.said", cells, out, options)
    return seen_by(out)


@pytest.mark.parametrize(("epochs", "world_sizes"), [(2, (1, 2)), pytest.param(9, (1, 2, 4), marks=pytest.mark.slow)])
def test_loss_curves_of_any_number_of_ranks_agree_at_all_steps(
    cells: Path, tmp_path: Path, epochs: int, world_sizes: tuple[int, ...]
):
    """With dropout and in float32: each cell draws the same noise wherever it is."""
    options: dict[str, Any] = {"batch_key": "batch", "epochs": epochs, "settings": {**SMALL, "batch_size": 8}}
    runs = {n: run_on(n, cells, tmp_path / f"run{n}", **options) for n in world_sizes}
    assert len(runs[1]["losses"]) >= 22 * epochs
    for n in world_sizes[1:]:
        np.testing.assert_allclose(runs[n]["losses"], runs[1]["losses"], rtol=1e-5)
        assert runs[n]["result"]["validation"]["elbo"] == pytest.approx(
            runs[1]["result"]["validation"]["elbo"], rel=1e-5
        )


@pytest.mark.parametrize(("steps", "world_sizes"), [(50, (1, 2)), pytest.param(200, (1, 2, 4), marks=pytest.mark.slow)])
def test_on_real_counts_in_float64_ranks_agree_to_the_last_digits(
    shared: Path, tmp_path: Path, steps: int, world_sizes: tuple[int, ...]
):
    """In float32 they part after some tens of steps: benchmarks/rank_losses.py shows why."""
    settings = {"precision": "float64", "batch_size": 32, "max_steps": steps, "evaluation_cells": 100}
    options: dict[str, Any] = {"batch_key": "indiv", "epochs": 100, "settings": settings}
    runs = {n: run_on(n, shared / "data" / "onek1k.h5ad", tmp_path / f"run{n}", **options) for n in world_sizes}
    assert len(runs[1]["losses"]) == steps
    for n in world_sizes[1:]:
        np.testing.assert_allclose(runs[n]["losses"], runs[1]["losses"], rtol=1e-12)
    assert all(weight.dtype == torch.float32 for weight in weights_of(tmp_path / "run1").values())


def test_with_batch_norm_and_a_latent_library_ranks_compute_what_one_process_does(cells: Path, tmp_path: Path):
    """Statistics of the minibatch are of all its cells, those of the other ranks too."""
    options = {"use_batch_norm": "both", "use_layer_norm": "none", "gene_likelihood": "zinb"}
    settings = {**SMALL, **options, "use_observed_lib_size": False}
    runs = {n: run_on(n, cells, tmp_path / f"run{n}", batch_key="batch", epochs=3, settings=settings) for n in (1, 3)}
    np.testing.assert_allclose(runs[3]["losses"], runs[1]["losses"], rtol=1e-5)
    assert runs[3]["result"]["validation"]["elbo"] == pytest.approx(runs[1]["result"]["validation"]["elbo"], rel=1e-5)


def test_initial_weights_from_a_sample_are_those_of_one_process(cells: Path, tmp_path: Path):
    settings = {**SMALL, "recipe": "atlas", "batch_size": 32, "max_steps": 5}
    runs = {n: run_on(n, cells, tmp_path / f"run{n}", batch_key="batch", epochs=3, settings=settings) for n in (1, 3)}
    np.testing.assert_allclose(runs[3]["losses"], runs[1]["losses"], rtol=1e-4)


def test_all_ranks_see_the_same_history_result_and_weights_and_only_the_first_speaks(cells: Path, tmp_path: Path):
    options: dict[str, Any] = {"epochs": 50, "settings": {**SMALL, "early_stopping_patience": 2, "learning_rate": 0.05}}
    ranks = run_ranks(train_and_record, 3, tmp_path / "said", cells, tmp_path / "run", options)
    first = seen_by(tmp_path / "run")
    assert first["result"]["epochs"] < 50
    assert first["result"]["ranks"] == 3
    assert first["result"] == read_json(tmp_path / "run" / "result.json")
    for rank in (1, 2):
        assert seen_by(tmp_path / "run", rank) == first
        for name, weight in weights_of(tmp_path / "run", rank).items():
            assert torch.equal(weight, weights_of(tmp_path / "run")[name])
        assert ranks[rank].said == ""


def test_a_rank_without_a_cell_in_any_minibatch_takes_every_step_and_changes_nothing(cells: Path, tmp_path: Path):
    options: dict[str, Any] = {"batch_key": "batch", "settings": {**SMALL, "batch_size": 3, "max_steps": 20}}
    alone = run_on(1, cells, tmp_path / "run1", **options)
    shared = run_on(4, cells, tmp_path / "run4", **options)
    np.testing.assert_allclose(shared["losses"], alone["losses"], rtol=1e-5)
    assert shared["history"][0]["n_cells"] == alone["history"][0]["n_cells"]


def test_accumulated_gradients_are_of_the_mean_over_all_cells_of_the_step(cells: Path, tmp_path: Path):
    options: dict[str, Any] = {
        "batch_key": "batch",
        "epochs": 2,
        "settings": {**SMALL, "batch_size": 24, "accumulate": 3},
    }
    alone = run_on(1, cells, tmp_path / "run1", **options)
    shared = run_on(2, cells, tmp_path / "run2", **options)
    n_cells = alone["history"][0]["n_cells"]
    assert len(alone["losses"]) == 2 * -(-n_cells // 72)
    np.testing.assert_allclose(shared["losses"], alone["losses"], rtol=1e-5)


def test_a_minibatch_of_one_cell_is_normalised_by_running_statistics_on_any_number_of_ranks(tmp_path: Path):
    cells = write_cells(tmp_path / "cells.h5ad", n_cells=33)
    norms = {"use_batch_norm": "both", "use_layer_norm": "none", "validation_fraction": 0.0, "precision": "float64"}
    options: dict[str, Any] = {"batch_key": "batch", "epochs": 3, "settings": {**SMALL, **norms}}  # 32 cells, and one
    alone = run_on(1, cells, tmp_path / "run1", **options)
    shared = run_on(2, cells, tmp_path / "run2", **options)
    assert len(alone["losses"]) == 6
    np.testing.assert_allclose(shared["losses"], alone["losses"], rtol=1e-10)
    for name, weight in weights_of(tmp_path / "run1").items():
        torch.testing.assert_close(weights_of(tmp_path / "run2")[name], weight)


@pytest.mark.slow  # what is summed is tested in test_data_parallel.py
def test_gradients_sent_in_half_the_bytes_train_about_as_well(cells: Path, tmp_path: Path):
    options: dict[str, Any] = {"epochs": 3, "settings": {**SMALL, "compress_gradients": "bf16"}}
    half = run_on(2, cells, tmp_path / "half", **options)
    options["settings"] = SMALL
    whole = run_on(2, cells, tmp_path / "whole", **options)
    assert half["result"]["bytes_reduced_a_step"] * 2 == whole["result"]["bytes_reduced_a_step"]
    np.testing.assert_allclose(half["losses"], whole["losses"], rtol=0.01)
    assert half["losses"] != whole["losses"]


def test_a_run_goes_on_with_another_number_of_ranks_where_it_was(cells: Path, tmp_path: Path):
    settings = {**SMALL, "checkpoint_steps": 1, "early_stopping": False}
    options: dict[str, Any] = {"batch_key": "batch", "epochs": 3, "settings": settings}
    whole = run_on(1, cells, tmp_path / "whole", **options)
    run_on(2, cells, tmp_path / "run", **{**options, "settings": settings})
    for name in ("model.pt", "result.json"):
        (tmp_path / "run" / name).unlink()
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")[:1]:
        checkpoint.unlink()  # the newest one: the one before is inside the last epoch
    on = run_on(4, cells, tmp_path / "run", resume=True)
    np.testing.assert_allclose(on["losses"], whole["losses"][-len(on["losses"]) :], rtol=1e-5)
    assert on["history"][-1]["train_elbo"] == pytest.approx(whole["history"][-1]["train_elbo"], rel=1e-5)


# what ranks say to each other


def test_one_process_is_a_group_of_its_own_and_sends_nothing():
    ranks = Ranks()
    assert (ranks.is_first, ranks.world_size) == (True, 1)
    assert ranks.from_first(lambda: {"a": 1}, "a test") == {"a": 1}
    assert ranks.start_sum(torch.ones(2)) is None


def test_what_the_first_rank_reads_all_know(tmp_path: Path):
    run_ranks(tell_others, 3, tmp_path / "said", tmp_path)
    for rank in range(3):
        assert (tmp_path / f"told{rank}").read_bytes() == b"\x00bytes\xff" + b'{"a": [1, null, 0.1]}'


def tell_others(folder: Path) -> None:
    with join_ranks() as ranks:
        content = ranks.bytes_from_first(lambda: b"\x00bytes\xff", "a test")
        value = ranks.from_first(lambda: {"a": [1, None, 0.1]}, "a test")
        empty = ranks.bytes_from_first(lambda: b"", "a test")
        (folder / f"told{ranks.rank}").write_bytes(content + json.dumps(value).encode() + empty)
