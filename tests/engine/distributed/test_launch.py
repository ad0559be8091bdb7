"""`atlasvi launch` as a user meets it: real processes, killed and told to stop."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlasvi.engine.training.checkpoint_files import list_checkpoints, step_of
from tests.engine.distributed.rank_processes import wait_until
from tests.engine.training.small_runs import SMALL, write_cells

pytestmark = pytest.mark.slow


def start(folder: Path, *options: object) -> subprocess.Popen:
    settings = [f"--set={name}={value}" for name, value in {**SMALL, "checkpoint_steps": 2}.items()]
    train = ["train", folder / "cells.h5ad", "--out", folder / "run", "--batch-key=batch", *settings]
    command = [sys.executable, "-m", "atlasvi.engine.cli.commands", "launch", "--nproc=2", *options, "--", *train]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def has_begun(folder: Path) -> bool:
    checkpoints = folder / "run" / "checkpoints"
    return checkpoints.is_dir() and step_of(list_checkpoints(checkpoints)[0]) > 4


def test_a_killed_worker_brings_the_group_back_at_the_last_checkpoint(tmp_path: Path):
    write_cells(tmp_path / "cells.h5ad")
    launched = start(tmp_path, "--max-restarts=1")
    wait_until(lambda: has_begun(tmp_path), 120)
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    said = launched.communicate(timeout=180)[1]
    assert launched.returncode == 0, said
    assert "rank 1" in said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["ranks"] == 2


def test_sigterm_ends_it_with_a_checkpoint_and_a_status_to_requeue_on(tmp_path: Path):
    write_cells(tmp_path / "cells.h5ad")
    launched = start(tmp_path)
    wait_until(lambda: has_begun(tmp_path), 120)
    launched.send_signal(signal.SIGTERM)
    said = launched.communicate(timeout=60)[1]
    assert launched.returncode == 75, said
    assert "--resume" in said
    assert not (tmp_path / "run" / "model.pt").exists()
