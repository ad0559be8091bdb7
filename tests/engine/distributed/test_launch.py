"""`atlasvi launch` as a user meets it: real processes, killed and told to stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.training.checkpoint_files import list_checkpoints, step_of
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.distributed.rank_processes import wait_until
from tests.engine.training.small_runs import SMALL, assert_same_run, write_cells
from tests.faulty_proxy import run_proxy
from tests.s3_server import Bucket

pytestmark = pytest.mark.slow


def start(folder: Path, *options: object, data: object = None, more: Sequence[object] = ()) -> subprocess.Popen:
    """Launch a training of `data`, or cells.h5ad in the folder; `more` are further words of `train`."""
    settings = [f"--set={name}={value}" for name, value in {**SMALL, "checkpoint_steps": 2}.items()]
    train = ["train", data or folder / "cells.h5ad", "--out", folder / "run", "--batch-key=batch", *settings, *more]
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


def test_two_ranks_share_a_cache_of_the_bucket_and_end_with_the_weights_of_local_data(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    ingest(write_cells(tmp_path / "cells.h5ad", n_cells=2000), tmp_path / "store", workers=1)
    address = bucket.put(tmp_path / "store", "store")
    cache, requests = ["--cache", tmp_path / "cache", "--cache-gb", 1], []
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        for name, data, more in (
            ("local", tmp_path / "store", []),
            ("first", address, cache),
            ("second", address, cache),
        ):
            (tmp_path / name).mkdir()
            before = proxy.requests
            launched = start(tmp_path / name, data=data, more=["--epochs=2", *more])
            said = launched.communicate(timeout=180)[1]
            assert launched.returncode == 0, said
            requests.append(proxy.requests - before)
    local, first, second = (load_run(tmp_path / name / "run") for name in ("local", "first", "second"))
    assert_same_run(local, first)
    assert_same_run(local, second)
    assert requests[0] == 0
    assert requests[2] < requests[1] / 2  # lists of what there is, which each rank asks for
