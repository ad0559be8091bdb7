import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlasvi.engine.cli.describe import describe
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.provenance import Provenance, find_commit, make_provenance, name_command
from atlasvi.loaders.errors import SourceError
from tests.engine.cli.test_commands import SMALL, atlasvi


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_of_a_folder_is_said_and_whether_files_differ_from_it(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    assert find_commit(tmp_path / "plain") is None
    git(tmp_path, "init", "--quiet")
    assert find_commit(tmp_path) is None  # there is no commit yet
    (tmp_path / "job.toml").write_text("epochs = 3\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "v1")  # a tag does not stand for the commit
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert find_commit(tmp_path) == commit
    (tmp_path / "job.toml").write_text("epochs = 4\n")
    assert find_commit(tmp_path) == f"{commit}-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_commit(Path.cwd()) is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["/usr/bin/atlasvi", "train", "my counts.h5ad"], "atlasvi launch --nproc 2 -- train 'my counts.h5ad'"),
        (["/lib/engine/cli/commands.py", "info", "x"], "atlasvi launch --nproc 2 -- info x"),
        (["analysis.py", "--fast"], "python analysis.py --fast"),
        (["/lib/ipykernel_launcher", "-f", "/home/me/secret.json"], "python"),
        (["/usr/bin/atlasvi", "info", "s3://me:secret@host/a"], "atlasvi launch --nproc 2 -- info s3://host/a"),
        (["/usr/bin/atlasvi", "info", "https://me:p@ss@host/a@b"], "atlasvi launch --nproc 2 -- info https://host/a@b"),
    ],
)
def test_the_command_is_what_was_typed_without_passwords(typed: list[str], said: str, monkeypatch):
    monkeypatch.setattr(sys, "argv", typed)
    assert name_command("atlasvi launch --nproc 2 --") == said


def test_plain_values_and_back_with_the_provenance_of_the_model():
    model = make_provenance("atlasvi", note="first try", seed=3)
    store = make_provenance("atlasvi", of=model, counts="abcd")
    record = json.loads(json.dumps(store.to_record()))
    assert Provenance.from_record(record) == store
    assert Provenance.from_record({**record, "added_later": 1}) == store
    assert Provenance.from_record(None) is None
    with pytest.raises(ValueError, match="not what atlasvi writes"):
        Provenance.from_record(["a"])


def test_a_run_its_model_its_minified_store_and_its_card_say_where_they_come_from(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlasvi("simulate", "a.h5ad", "--cells", 60, "--genes", 10, "--batches", 2, "--types", 2)
    atlasvi("ingest", "a.h5ad", "--out", "store")
    words = ["train", "store", "--out", "run", "--batch-key", "batch", "--epochs", 1, "--seed", 4, *SMALL]
    atlasvi(*words, "--note", "all donors")
    trained = load_run("run").provenance
    assert trained is not None
    assert trained.to_record() == json.loads(Path("run/config.json").read_text())["provenance"]
    assert (trained.note, trained.seed, trained.split) == (
        "all donors",
        4,
        "0.1 of the cells held out by a hash of each",
    )
    assert len(trained.counts or "") == len(trained.genes or "") == 16
    assert trained.command.startswith("atlasvi train store --out run")
    atlasvi("minify", "run", "store", "--out", "mini")
    atlasvi("card", "run", "store", "--labels-key", "cell_type", "--draws", 1, "--out", "card")
    for place in ("run", "mini", "card"):
        said = atlasvi("info", place).stdout
        for known in ("note: all donors", f"counts: {trained.counts}", f"genes: {trained.genes}", "trained "):
            assert known in said, place
        assert f"{os.uname().nodename} " not in said
    assert f"minified {trained.created[:10]}" in atlasvi("info", "mini").stdout
    said = atlasvi("train", "store", "--out", "run", "--resume", "--note", "another", ok=False).stderr
    assert "was started with the note 'all donors', and it is kept" in said


def test_a_provenance_that_is_damaged_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlasvi("simulate", "a.h5ad", "--cells", 40, "--genes", 10, "--batches", 2, "--types", 2)
    atlasvi("train", "a.h5ad", "--out", "run", "--epochs", 1, *SMALL)
    config = json.loads(Path("run/config.json").read_text())
    assert "counts" not in config["provenance"]  # only a cell store has checksums
    del config["crc32c"]
    Path("run/config.json").write_text(json.dumps({**config, "provenance": [1]}))
    with pytest.raises(SourceError, match="provenance is not what atlasvi writes"):
        list(describe("run"))
