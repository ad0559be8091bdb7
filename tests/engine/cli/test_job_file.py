"""`--config FILE`: the same as what is typed, for one command and for several, and a run's own configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from atlasvi.engine.cli.commands import app
from atlasvi.engine.cli.job_file import Job, JobError, read_job
from atlasvi.engine.model.trained_run import load_run
from tests.engine.cli.test_commands import SMALL, atlasvi
from tests.engine.training.small_runs import assert_same_run

GROUP: Any = get_command(app)
COMMANDS = list(GROUP.commands)


def read(folder: Path, text: str, *words: str) -> Job:
    (folder / "job.toml").write_text(text)
    command = GROUP
    for word in words:
        command = command.commands[word]
    return read_job(folder / "job.toml", command, words, COMMANDS)


def test_options_are_named_as_on_the_command_line_and_settings_are_kept_apart(tmp_path: Path):
    job = read(
        tmp_path,
        'data = "a.store"\nout = "run"\nbatch-key = "donor"\ncategorical-covariate-keys = ["site", "a,b"]\nseed = 3\n'
        "card = true\nepochs = 4\nn_latent = 5\n[settings]\nkeep = 'last'\n",
        "train",
    )
    assert job.options == {
        "data": "a.store",
        "out": "run",
        "batch_key": "donor",
        "categorical_covariate_keys": ["site", "a,b"],
        "seed": 3,
        "with_card": True,
    }
    assert job.settings == {"epochs": 4, "n_latent": 5, "keep": "last"}


def test_a_file_of_several_commands_has_a_table_for_each(tmp_path: Path):
    text = '[ingest]\nsources = ["a.h5ad"]\nround = true\n[query.expression]\ngenes = ["CD3E", "a,b"]\nwhere = "x=1"\n'
    assert read(tmp_path, text, "ingest").options == {"sources": ["a.h5ad"], "rounded": True}
    assert read(tmp_path, text, "query", "expression").options == {"genes": 'CD3E,"a,b"', "where": ["x=1"]}
    assert read(tmp_path, '[map]\nnew = "b.h5ad"\nn_latent = 3\n', "map").options == {"data": "b.h5ad"}
    with pytest.raises(JobError, match=r"no table \[train\] \(it has: ingest, query\): add one"):
        read(tmp_path, text, "train")
    with pytest.raises(JobError, match=r"no table \[query.latent\]"):
        read(tmp_path, text, "query", "latent")


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("gene = 3", "ingest", r"ingest has no option 'gene'; did you mean genes"),
        ("config = 'other.toml'", "ingest", "ingest has no option 'config'"),
        ("seed = true", "ingest", "seed = true: it must be a number, text or a list"),
        ("round = 1", "ingest", "round = 1: it must be true or false"),
        ("out = {path = 1}", "ingest", "it must be a number, text or a list"),
        ("seed = 1\n[train]\nseed = 1", "train", "'seed' stands outside of the tables train: move it"),
        ("seed = ", "train", "not a TOML file"),
        ('{"a": 1}', "train", "this JSON is no config.json of a run"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, text: str, words: str, message: str):
    with pytest.raises(JobError, match=message):
        read(tmp_path, text, words)


def test_a_whole_job_runs_from_one_file_and_what_is_typed_wins(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(
        '[simulate]\n[ingest]\nsources = ["a.h5ad"]\nout = "store"\n'
        '[train]\ndata = "store"\nout = "run"\nbatch-key = "batch"\nepochs = 3\n'
        "[train.settings]\nn_hidden = 16\nn_latent = 4\nn_layers = 1\n"
        '[minify]\nrun = "run"\ndata = "store"\nout = "mini"\nsource-order = true\n'
        '[query.latent]\nlimit = 3\nwhere = "batch=batch_1"\n'
    )
    atlasvi("simulate", "a.h5ad", "--cells", 60, "--genes", 10, "--batches", 2, "--types", 2)
    for command in (["ingest"], ["train", "--set", "n_latent=3", "--epochs", 2], ["minify"]):
        atlasvi(*command, "--config", "job.toml")
    config = json.loads(Path("run/config.json").read_text())
    assert (config["batch_key"], config["settings"]["n_latent"], config["settings"]["epochs"]) == ("batch", 3, 2)
    said = atlasvi("query", "mini", "latent", "--config", "job.toml").stdout.splitlines()
    assert (said[0], len(said)) == ("cell,z0,z1,z2", 4)
    assert len(atlasvi("query", "mini", "latent", "--config", "job.toml", "--limit", 5).stdout.splitlines()) == 6


def test_a_runs_own_configuration_gives_the_same_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlasvi("simulate", "a.h5ad", "--cells", 80, "--genes", 10, "--batches", 2, "--types", 2)
    atlasvi("train", "a.h5ad", "--out", "one", "--batch-key", "batch", "--epochs", 2, "--seed", 5, *SMALL)
    atlasvi("train", "--config", "one/config.json", "--out", "other")
    assert_same_run(load_run("one"), load_run("other"))
    atlasvi("train", "a.h5ad", "--out", "more", "--start", "one", "--epochs", 1)
    said = atlasvi("train", "--config", "more/config.json", "--out", "again", ok=False).stderr
    assert "was started from another one (--start)" in said
    config = json.loads(Path("one/config.json").read_text())
    Path("one/config.json").write_text(json.dumps({**config, "seed": 6}))
    said = atlasvi("train", "--config", "one/config.json", "--out", "again", ok=False).stderr
    assert "is damaged or was changed by hand" in said


def test_a_dry_run_says_sizes_memory_time_and_what_is_wrong_and_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlasvi("simulate", "a.h5ad", "--cells", 60, "--genes", 10, "--batches", 2, "--types", 2)
    before = sorted(tmp_path.rglob("*"))
    words = ["train", "a.h5ad", "--out", "run", "--batch-key", "batch", "--epochs", 2, *SMALL, "--dry-run"]
    monkeypatch.setattr("atlasvi.engine.training.epoch_estimate.WARM_UP", 1)
    said = atlasvi(*words).stdout
    assert "The whole run: 2 epochs, " in said
    assert "MB of memory a process" in said
    assert "obs has no column 'donor'" in atlasvi(*words, "--batch-key", "donor", ok=False).stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_options_typed_after_launch_are_added_to_the_command_of_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(
        '[launch]\nnproc = 2\ncommand = ["train", "--config", "job.toml"]\n[train]\ndata = "a.h5ad"\nout = "run"\n'
    )
    launched: list[list[str]] = []
    monkeypatch.setattr(
        "atlasvi.engine.distributed.launch.launch", lambda command, *others, **more: launched.append(command) or 0
    )
    atlasvi("launch", "--config", "job.toml")
    atlasvi("launch", "--config", "job.toml", "--resume")
    atlasvi("launch", "--config", "job.toml", "--", "train", "--config", "job.toml", "--epochs", 3)
    words = ["train", "--config", "job.toml"]
    assert launched == [words, [*words, "--resume"], [*words, "--epochs", "3"]]
    assert "No such option: --resum" in atlasvi("launch", "--config", "job.toml", "--resum", ok=False).stderr
