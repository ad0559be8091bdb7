"""The command line as a user meets it: real processes, what they print and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from tests.engine.rank_processes import run_command

SMALL = ["--set", "n_hidden=16", "--set", "n_latent=4", "--set", "n_layers=1"]


def atlasvi(*arguments: object, ok: bool = True) -> subprocess.CompletedProcess:
    """Run a command; `ok` says whether it must end well."""
    done = run_command(*arguments)
    assert (done.returncode == 0) == ok, done.stderr + done.stdout
    return done


def test_the_main_job_end_to_end(tmp_path: Path):
    counts, store, run, mini = (tmp_path / name for name in ("atlas.h5ad", "atlas.store", "run", "atlas.mini"))
    atlasvi("simulate", counts, "--cells", 400, "--genes", 60, "--batches", 2, "--types", 3, "--seed", 1)
    said = atlasvi("ingest", counts, "--out", store).stdout
    assert "400 cells x 60 genes from 1 source," in said
    atlasvi("train", store, "--out", run, "--batch-key", "batch", "--labels-key", "cell_type", "--epochs", 3, *SMALL)
    result = json.loads((run / "result.json").read_text())
    for part in ("train", "validation"):
        losses = result[part]
        assert losses["elbo"] == pytest.approx(-(losses["reconstruction_loss"] + losses["kl"]))
    atlasvi("minify", run, store, "--out", mini, "--source-order")
    assert anndata.read_zarr(mini).obs["source_row"].tolist() == list(range(400))

    latent = atlasvi("query", mini, "latent", "--limit", 2).stdout.splitlines()
    assert latent[0] == "cell,z0,z1,z2,z3"
    assert len(latent) == 3
    genes = anndata.read_zarr(mini).var_names[:2]
    answer = tmp_path / "answer.csv"
    atlasvi("query", mini, "expression", "--genes", ",".join(genes), "--where", "batch=batch_1", "--out", answer)
    assert pd.read_csv(answer, index_col=0).shape == (
        (anndata.read_h5ad(counts).obs["batch"] == "batch_1").sum(), 2
    )  # fmt: skip
    for path, kind in ((store, "cell store"), (mini, "minified store"), (run, "run"), (counts, "400 cells x 60 genes")):
        assert kind in atlasvi("info", path).stdout
    assert "4 latent dimensions" in atlasvi("query", mini, "info").stdout
    assert "atlasvi:" in atlasvi("train", store, "--out", run, ok=False).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "missing.h5ad", "--out", "x"], "missing.h5ad"),
        (["train", "missing.store", "--out", "x"], "missing.store"),
        (["info", "missing"], "missing"),
        (["minify", "missing", "missing", "--out", "x"], "missing"),
        (["query", "missing", "info"], "missing is not a minified store"),
    ],
)
def test_a_users_error_is_one_sentence_without_a_traceback(tmp_path: Path, arguments, message):
    done = atlasvi(*arguments, ok=False)
    assert done.stdout == ""
    assert done.stderr.startswith("atlasvi: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path("x").exists()


def test_bad_settings_and_keys_are_said_in_a_sentence_and_leave_nothing(tmp_path: Path):
    counts = tmp_path / "atlas.h5ad"
    atlasvi("simulate", counts, "--cells", 50, "--genes", 20, "--batches", 2, "--types", 2)
    for arguments, message in (
        (["--batch-key", "donor"], "obs has no column 'donor' (it has: batch, cell_type"),
        (["--set", "latent=3"], "There is no setting 'latent'; did you mean n_latent"),
        (["--set", "n_latent=-3"], "n_latent = -3"),
        (["--split-column", "cell_type"], "as a split it must say train, validation"),
    ):
        done = atlasvi("train", counts, "--out", tmp_path / "run", *arguments, ok=False)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "cells.h5ad", "--out", "run", "--epoch", "2"], "No such option: --epoch"),
        (["train", "cells.h5ad"], "Missing option '--out'"),
        (["ingest", "cells.h5ad", "--out", "store"], "'ingest' can't"),
    ],
)
def test_a_mistake_in_a_launched_command_is_said_once_before_anything_starts(command, message):
    done = atlasvi("launch", "--nproc", 2, "--max-restarts", 2, "--", *command, ok=False)
    assert done.stderr.count(message) == 1
    assert done.stderr.count("Usage: atlasvi ") == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    """A limit on the size of files stands for the disk: writes beyond it fail as they do there."""
    counts = tmp_path / "atlas.h5ad"
    rng = np.random.default_rng(0)
    anndata.AnnData(rng.poisson(5.0, (2_000, 100)).astype(np.float32)).write_h5ad(counts)
    script = f"ulimit -f 64; exec {sys.executable} -m atlasvi.engine.commands ingest {counts} --out {tmp_path}/store"
    ignore = "import os, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.execvp('bash', sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", ignore, "bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stderr
    assert os.listdir(tmp_path) == ["atlas.h5ad"]


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_says_how_to_go_on_and_does(tmp_path: Path):
    counts = tmp_path / "atlas.h5ad"
    atlasvi("simulate", counts, "--cells", 3_000, "--genes", 100, "--batches", 2, "--types", 3)
    options = ["train", counts, "--out", tmp_path / "run", "--batch-key", "batch", "--epochs", "400", *SMALL]
    command = [sys.executable, "-m", "atlasvi.engine.commands", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("run/checkpoints/step-0000[1-9]*")) and not list(
        tmp_path.glob("run/checkpoints/step-00000[1-9]*")
    ):
        if process.poll() is not None:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 75
    assert "stopped by SIGTERM" in said
    assert "--resume" in said
    done = atlasvi("train", counts, "--out", tmp_path / "run", "--resume", "--set", "epochs=400", ok=True)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] > 0
