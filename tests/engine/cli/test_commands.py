"""The command line as a user meets it: real processes, what they print and how they end."""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
from atlasvi.engine.scvi_tools.model_directories import open_model, save_scvi_tools
from atlasvi.loaders.errors import OutputError
from tests.engine.distributed.rank_processes import run_command

SMALL = ["--set", "n_hidden=16", "--set", "n_latent=4", "--set", "n_layers=1"]


def atlasvi(*arguments: object, ok: bool = True) -> subprocess.CompletedProcess:
    """Run a command; `ok` says whether it must end well."""
    done = run_command(*arguments)
    assert (done.returncode == 0) == ok, done.stderr + done.stdout
    return done


def store_names(store: Path) -> list[str]:
    return anndata.read_zarr(store).obs_names.tolist()


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
    atlasvi("minify", run, store, "--out", mini, "--source-order", "--latents", "float16")
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
    labels = tmp_path / "labels.csv"
    labels.write_text("cell,cluster\n" + "".join(f"{name},{k % 3}\n" for k, name in enumerate(store_names(store))))
    for place in (store, mini):
        assert "added to obs: cluster" in atlasvi("annotate-obs", place, labels, "--key", "cell").stdout
        assert anndata.read_zarr(place).obs["cluster"].loc[store_names(store)].tolist()[:4] == [0, 1, 2, 0]
    assert "has a column 'cluster' already" in atlasvi("annotate-obs", store, labels, ok=False).stderr
    for path, kind in ((store, "cell store"), (mini, "minified store"), (run, "run"), (counts, "400 cells x 60 genes")):
        assert kind in atlasvi("info", path).stdout
    assert "4 latent dimensions (float16)" in atlasvi("query", mini, "info").stdout
    assert "atlasvi:" in atlasvi("train", store, "--out", run, ok=False).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "missing.h5ad", "--out", "x"], "missing.h5ad"),
        (["train", "missing.store", "--out", "x"], "missing.store"),
        (["info", "missing"], "missing"),
        (["minify", "missing", "missing", "--out", "x"], "missing"),
        (["query", "missing", "info"], "missing is not a minified store"),
        (["annotate-obs", "missing", "missing.csv"], "missing.csv: the table can't be read"),
        (["annotate-obs", "missing", "missing.xlsx"], "missing.xlsx: the table must be a file whose name ends in .csv"),
    ],
)
def test_a_users_error_is_one_sentence_without_a_traceback(tmp_path: Path, arguments, message):
    done = atlasvi(*arguments, ok=False)
    assert done.stdout == ""
    assert done.stderr.startswith("atlasvi: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path("x").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each thing that a command makes, and files that a user may give by mistake."""
    folder = tmp_path_factory.mktemp("made")
    atlasvi("simulate", folder / "a.h5ad", "--cells", 60, "--genes", 10, "--batches", 2, "--types", 2)
    atlasvi("train", folder / "a.h5ad", "--out", folder / "run", "--batch-key", "batch", "--epochs", 1, *SMALL)
    atlasvi("minify", folder / "run", folder / "a.h5ad", "--out", folder / "mini")
    atlasvi("export", folder / "mini", folder / "mini.h5ad")
    atlasvi("export", folder / "run", folder / "theirs")
    atlasvi("ingest", folder / "a.h5ad", "--out", folder / "store")
    shutil.copytree(folder / "run", folder / "half")
    (folder / "half" / "model.pt").unlink()
    (folder / "half" / "result.json").unlink()
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "blank").write_text("\n \n")
    (folder / "table.toml").write_text("[model]\nn_latent = 3\n")
    (folder / "[bold]").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # places that can't be written; nobody can write into /sys, not even root
        ("simulate /sys/a.h5ad", "/sys/a.h5ad: can't be written there"),
        ("ingest {}/a.h5ad --out /sys/store", "/sys/store: can't be written there"),
        ("train {}/a.h5ad --out /sys/run", "/sys/run: can't be written there"),
        ("minify {}/run {}/a.h5ad --out /sys/mini", "/sys/mini: can't be written there"),
        ("export {}/run /sys/theirs", "/sys/theirs: can't be written there"),
        ("export {}/mini /sys/mini.h5ad", "/sys/mini.h5ad: can't be written there"),
        ("query {}/mini latent --out /sys/z.npz", "/sys/z.npz: can't be written there"),
        ("query {}/mini latent --out {}/none/z.csv", "there is no folder"),
        ("query {}/mini latent --out {}/z.xlsx", "ends in .csv, .tsv"),
        ("query {}/mini latent --out {}/a.h5ad.csv/z.csv", "there is no folder"),
        # what is there already
        ("simulate {}/a.h5ad", "a.h5ad exists already"),
        ("export {}/run {}/mini", "mini exists already"),
        ("train {}/a.h5ad --out {}/run", "this is a finished run already: choose another --out"),
        ("train {}/a.h5ad --out {}/half", "and --resume"),
        ("minify {}/half {}/a.h5ad --out {}/m", "the run is not finished: resume it with atlasvi train"),
        ("train {}/a.h5ad --out {}/none --resume", "there is no run to resume: start it without --resume"),
        # one thing given for another
        ("query {}/run latent", "run is a run, not minified data: make some with atlasvi minify RUN DATA --out"),
        ("query {}/theirs latent", "theirs is a model, not minified data"),
        ("query {}/store latent", "store is a cell store, not minified data"),
        ("query {}/a.h5ad latent", "a.h5ad is not minified data"),
        ("query {}/mini.h5ad expression", "name the model's directory: atlasvi query {}/mini.h5ad --model DIR"),
        ("query {}/mini.h5ad --model {}/a.h5ad latent", "a.h5ad"),
        ("minify {}/a.h5ad {}/run --out {}/m", "a.h5ad is not a run directory"),
        ("train {}/mini.h5ad --out {}/r", "it was minified by scVI"),
        ("info {}/[bold]", "[bold]: a folder of no known format"),
        # files of names and of settings
        ("query {}/mini expression --genes @{}/binary", "binary: not a text file: it must have one name per line"),
        ("query {}/mini expression --genes @{}/blank", "blank: it holds no names"),
        ("query {}/mini latent --cells @{}", "can't be read (Is a directory)"),
        ("query {}/mini latent --cells @{}/none", "none: the file can't be read (No such file or directory)"),
        ("train {}/a.h5ad --out {}/r --config {}/binary", "binary: not a TOML file"),
        ("train {}/a.h5ad --out {}/r --config {}/table.toml", "There is no setting 'model'"),
        ("train {}/a.h5ad --out {}/r --config {}", "can't be read (Is a directory)"),
        ("train {}/a.h5ad --out {}/r --set n_latent", "write it as KEY=VALUE"),
        ("train {}/a.h5ad --out {}/r --set n_latent=[1]", "n_latent = [1]"),
        ("train {}/a.h5ad --out {}/r --set learning_rate=inf", "learning_rate = inf"),
        # values
        ("query {}/mini expression --library-size 0", "library size '0': use a number from 1e-12 to 1e+30"),
        ("query {}/mini expression --library-size nan", "library size 'nan': use a number"),
        ("query {}/mini expression --library-size many", "library size 'many': use a number"),
        ("query {}/mini expression --genes MALAT1", "no gene 'MALAT1' in the model"),
        ("query {}/mini latent --where batch", "write it as COLUMN=VALUE"),
        ("query {}/mini latent --where donor=1", "obs has no column 'donor'"),
        ("query {}/mini latent --cells nobody", "1 of the cells do not exist (first: 'nobody')"),
    ],
)
def test_a_mistake_with_files_that_are_there_is_one_sentence_and_changes_nothing(made: Path, command, message):
    before = sorted(path.relative_to(made) for path in made.rglob("*"))
    done = atlasvi(*(word.replace("{}", str(made)) for word in command.split()), ok=False)
    assert message.replace("{}", str(made)) in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("atlasvi: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.relative_to(made) for path in made.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train {}/a.h5ad --out {}/r --seed -1", "Invalid value for '--seed'"),
        ("ingest {}/a.h5ad --out {}/s --seed -1", "Invalid value for '--seed'"),
        ("train {}/a.h5ad --out {}/r --epochs many", "Invalid value for '--epochs'"),
        ("query {}/mini differential --groupby batch --mode change --fdr 7", "Invalid value for '--fdr'"),
        ("query {}/mini differential --groupby batch --mode change --delta nan", "Invalid value for '--delta'"),
        ("query {}/mini abundance --sample-key batch --dof inf", "inf is not a finite number"),
        ("query {}/mini latent --model", "--model"),
        ("query {}/mini neighbors", "No such command 'neighbors'"),
        ("info {}/a.h5ad [/red]", "[/red]"),
    ],
)
def test_a_mistake_in_the_words_of_a_command_shows_its_usage(made: Path, command, message):
    done = atlasvi(*(word.replace("{}", str(made)) for word in command.split()), ok=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("Usage: atlasvi ") == 1
    assert "Traceback" not in done.stderr


def test_what_export_wrote_is_described_and_asked_as_the_documents_say(made: Path):
    mini, model = made / "mini.h5ad", ["--model", made / "theirs"]
    said = atlasvi("info", mini).stdout
    assert "60 cells x 10 genes, 4 latent dimensions (float32), no counts" in said
    assert "batch: see its model" in said
    assert atlasvi("query", mini, "info").stdout == said
    orders = [[mini, *model, "info"], [*model, mini, "info"], [mini, "info", *model]]
    said = {atlasvi("query", *words).stdout for words in orders}
    assert len(said) == 1
    assert "batch: batch" in said.pop()
    asked = ["expression", "--limit", 3, "--library-size", 100]
    assert atlasvi("query", mini, *asked, *model).stdout == atlasvi("query", made / "mini", *asked).stdout
    assert atlasvi("query", mini, "latent").stdout == atlasvi("query", made / "mini", "latent").stdout


def test_many_damaged_members_of_a_zarr_are_one_sentence(tmp_path: Path):
    """Zarr reads them at once, and asyncio has a traceback for each whose exception nobody waits for."""
    obs = pd.DataFrame({f"column{k}": np.arange(20) for k in range(12)}, index=[f"c{k}" for k in range(20)])
    with anndata.settings.override(zarr_write_format=3):
        anndata.AnnData(np.ones((20, 5), np.float32), obs).write_zarr(tmp_path / "a.zarr")
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    root.pop("consolidated_metadata", None)  # it would be read instead of the members'
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(root))
    for file in (tmp_path / "a.zarr" / "obs").glob("column*/zarr.json"):
        file.write_text('{"zarr_format": 3, "node_type": [')
    command = [sys.executable, "-m", "atlasvi.engine.cli.commands", "info", tmp_path / "a.zarr"]
    said = subprocess.run(command, capture_output=True, text=True).stderr  # to its end, where asyncio speaks
    assert said.splitlines()[-1].startswith(f"atlasvi: {tmp_path / 'a.zarr'}: it is damaged")
    assert "Traceback" not in said


def test_paths_that_look_like_markup_are_taken_and_shown_as_they_are(made: Path, tmp_path: Path):
    strange = tmp_path / "[/red]x"
    for command in (
        ["ingest", made / "a.h5ad", "--out", f"{strange}.store"],
        ["train", made / "a.h5ad", "--out", f"{strange}.run", "--epochs", 1, *SMALL],
        ["minify", f"{strange}.run", made / "a.h5ad", "--out", f"{strange}.mini"],
        ["export", f"{strange}.run", f"{strange}.model"],
        ["query", f"{strange}.mini", "latent", "--out", f"{strange}.csv"],
        ["info", f"{strange}.run"],
    ):
        done = atlasvi(*command)
        assert (str(strange) in done.stdout) or command[0] == "train"


def test_names_that_would_steer_the_terminal_are_shown_as_escapes(tmp_path: Path):
    names = ["\x1b[2J", "\x1b]0;title\x07", "plain"]
    obs = pd.DataFrame({"batch\x1b[1m": pd.Categorical(names)}, index=["\x1b[5m1", "c2", "c3"])
    var = pd.DataFrame(index=["\x1b[31mgene", "g2"])
    anndata.AnnData(np.ones((3, 2), np.float32), obs=obs, var=var).write_h5ad(tmp_path / "a.h5ad")
    atlasvi("ingest", tmp_path / "a.h5ad", "--out", tmp_path / "store")
    for path in (tmp_path / "a.h5ad", tmp_path / "store"):
        said = atlasvi("info", path).stdout
        assert "\x1b" not in said
        assert r"obs batch\x1b[1m: 3 categories (\x1b[2J, \x1b]0;title\x07, plain)" in said
    done = atlasvi("train", tmp_path / "a.h5ad", "--out", tmp_path / "run", "--batch-key", "donor", ok=False)
    assert "\x1b" not in done.stderr
    assert r"it has: batch\x1b[1m" in done.stderr


def test_bad_settings_and_keys_are_said_in_a_sentence_and_leave_nothing(tmp_path: Path):
    counts = tmp_path / "atlas.h5ad"
    atlasvi("simulate", counts, "--cells", 50, "--genes", 20, "--batches", 2, "--types", 2)
    for arguments, message in (
        (["--batch-key", "donor"], "obs has no column 'donor' (it has: batch, cell_type"),
        (["--set", "latent=3"], "There is no setting 'latent'; did you mean n_latent"),
        (["--set", "n_latent=-3"], "n_latent = -3"),
        (["--split-column", "cell_type"], "as a split it must hold train, validation"),
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
    command = f"{sys.executable} -m atlasvi.engine.cli.commands ingest {counts} --out {tmp_path}/store"
    script = f"ulimit -f 64; exec {command}"
    ignore = "import os, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.execvp('bash', sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", ignore, "bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stderr
    assert os.listdir(tmp_path) == ["atlas.h5ad"]


def test_a_full_disk_while_minified_data_is_exported_leaves_nothing(made: Path, tmp_path: Path):
    """HDF5, left to itself on a full disk, prints a page of errors and ends the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OutputError, match=r"m\.h5ad: the disk is full"):
            write_minified_h5ad(made / "mini", tmp_path / "m.h5ad")
        with pytest.raises(OutputError, match=r"theirs: the disk is full"):
            save_scvi_tools(open_model(made / "run"), tmp_path / "theirs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []
    gc.collect()  # of the errors and the frames that they came from; this has crashed Python 3.12.1


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_says_how_to_go_on_and_does(tmp_path: Path):
    counts = tmp_path / "atlas.h5ad"
    atlasvi("simulate", counts, "--cells", 3_000, "--genes", 100, "--batches", 2, "--types", 3)
    options = ["train", counts, "--out", tmp_path / "run", "--batch-key", "batch", "--epochs", "400", *SMALL]
    command = [sys.executable, "-m", "atlasvi.engine.cli.commands", *map(str, options)]
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
