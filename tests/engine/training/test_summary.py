from pathlib import Path
from typing import Any

import pytest

from atlasvi.engine.training.settings import Settings
from atlasvi.engine.training.summary import name_next_steps, summarise_run, write_seconds
from atlasvi.engine.training.train import train
from atlasvi.loaders.sources.data_spec import DataSpec
from tests.engine.training.small_runs import SCHEDULE, write_cells

LOSSES = {"elbo": -12.5, "reconstruction_loss": 12.0, "kl": 0.5}
RESULT: dict[str, Any] = {
    "train": LOSSES,
    "validation": {**LOSSES, "elbo": -13.0},
    "kept_epoch": 19,
    "epochs": 65,
    "steps": 650,
    "stopped_early": True,
    "seconds": 200.0,
    "cells_per_s": 4321.0,
}


def test_the_summary_says_losses_time_the_weights_kept_and_why_it_stopped():
    assert list(summarise_run(RESULT, Settings().model_dump())) == [
        "finished after 65 epochs, 650 steps in 3 min 20 s: 4,321 cells/s",
        "training cells: ELBO -12.50 nats per cell (reconstruction 12.00, KL 0.50)",
        "held-out cells: ELBO -13.00 nats per cell (reconstruction 12.00, KL 0.50)",
        "weights kept: those after epoch 20 (the best of the held-out cells)",
        "stopped early: validation_elbo had not improved for 45 epochs",
    ]


def test_a_run_of_one_epoch_of_one_step_to_its_end_is_said_in_the_singular():
    result = {**RESULT, "epochs": 1, "steps": 1, "kept_epoch": 0, "stopped_early": False}
    del result["validation"]
    assert list(summarise_run(result, {})) == [
        "finished after 1 epoch, 1 step in 3 min 20 s: 4,321 cells/s",
        "training cells: ELBO -12.50 nats per cell (reconstruction 12.00, KL 0.50)",
        "weights kept: those after epoch 1 (the last one)",
    ]


def test_the_next_command_names_the_data_as_it_was_opened(tmp_path: Path):
    lines = list(name_next_steps(tmp_path / "my run", DataSpec("a.h5ad", layer="raw, 2020", format="h5ad")))
    mini = f"'{tmp_path}/my run' 'a.h5ad::layer=\"raw, 2020\"' --out '{tmp_path}/my run.mini'"
    assert lines[1:] == [f"next: atlasvi minify {mini}"]
    assert "tensorboard" not in lines[0]
    assert len(list(name_next_steps(tmp_path, DataSpec("memory", format="memory")))) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599.6, "1 h"),
        (7_560, "2 h 6 min"),
    ],
)
def test_times_are_said_as_a_person_says_them(seconds: float, said: str):
    assert write_seconds(seconds) == said


def test_a_finished_training_ends_with_its_summary_and_a_resumed_one_counts_epochs_as_its_lines_do(tmp_path, capsys):
    data = write_cells(tmp_path / "a.h5ad")
    short = {**SCHEDULE, "settings": {**SCHEDULE["settings"], "max_steps": 7}}
    train(data, tmp_path / "run", **short)
    said = capsys.readouterr().err.splitlines()
    (at,) = [
        k for k, line in enumerate(said) if line.startswith(f"{tmp_path / 'run'}: finished after 2 epochs, 7 steps in ")
    ]
    assert said[at + 1].startswith("  training cells: ELBO -")
    assert said[-1].startswith(f"  next: atlasvi minify {tmp_path / 'run'} {data} --out ")
    train(data, tmp_path / "more", start=tmp_path / "run", epochs=2)
    said = capsys.readouterr().err
    assert "30 genes, epochs 3 to 4, after step 7, minibatches of" in said
    train(data, tmp_path / "run", resume=True)
    assert "the run is finished already, so there is nothing to resume" in capsys.readouterr().err
