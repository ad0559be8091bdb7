"""`--dry-run` of the commands that work long: sizes, memory and time, what is wrong, and nothing written."""

import re
from pathlib import Path

import pytest

from tests.engine.cli.test_commands import atlasvi


def list_all(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def read_bytes(said: str) -> float:
    """The size that a dry run named, in bytes."""
    number, unit = re.search(r"size: about ([\d.,]+) (\w+)", said).groups()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


def folder_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def test_ingest_and_minify_say_the_size_that_they_then_write(forms: Path, tmp_path: Path):
    for words in (["ingest", forms / "cells.h5ad"], ["minify", forms / "model", forms / "cells.h5ad"]):
        out, before = tmp_path / str(words[0]), list_all(forms)
        said = atlasvi(*words, "--out", out, "--dry-run").stdout
        assert "60 cells x " in said
        assert "Nothing was written." in said
        assert re.search(r"memory: about [\d.]+ [MG]B a process\n  time: about [\d.]+ s, from 60 that were tried", said)
        assert list_all(forms) == before
        assert not out.exists()
        after = atlasvi(*words, "--out", out).stdout
        assert "next: atlasvi" in after
        assert read_bytes(said) == pytest.approx(folder_bytes(out), rel=0.1, abs=30_000)  # of lists of files
        assert "exists already" in atlasvi(*words, "--out", out, "--dry-run", ok=False).stderr
    said = atlasvi(
        "minify", forms / "model", forms / "cells.h5ad", "--out", tmp_path / "x", "--source-order", "--dry-run"
    )
    assert "beside it until it is done" in said.stdout


def test_a_card_and_coordinates_are_checked_before_they_are_computed(forms: Path, tmp_path: Path):
    before = list_all(forms)
    said = atlasvi("card", forms / "model", forms / "cells.h5ad", "--out", tmp_path / "card", "--dry-run").stdout
    assert "60 cells x " in said
    assert "from 60 that were tried" in said
    assert "half a minute more" in said
    pytest.importorskip("umap")
    said = atlasvi("embed", forms / "x.mini", "--sample", 40, "--dry-run").stdout
    assert "UMAP would lay out 40 of the cells." in said
    assert "obs has no column 'x'" in atlasvi("embed", forms / "x.mini", "--strata", "x", "--dry-run", ok=False).stderr
    assert list_all(forms) == before
    assert list(tmp_path.iterdir()) == []


def test_an_answer_is_computed_in_part_and_its_size_is_said(forms: Path, tmp_path: Path):
    for out in (tmp_path / "x.csv", tmp_path / "x.npz"):
        words = ["query", forms / "x.mini", "expression", "--out", out]
        said = atlasvi(*words, "--dry-run").stdout
        assert said.startswith(f"{out}: 60 cells. Nothing was written.\n")
        assert not out.exists()
        atlasvi(*words)
        assert read_bytes(said) == pytest.approx(folder_bytes(out), rel=0.1)
        assert "exists already" in atlasvi(*words, "--dry-run", ok=False).stderr
    said = atlasvi("query", forms / "x.mini", "latent", "--limit", 7, "--dry-run").stdout
    assert said.startswith("the screen: 7 cells.")
    said = atlasvi("query", forms / "x.mini", "expression", "--genes", "x", "--dry-run", ok=False).stderr
    assert "no gene 'x'" in said


def test_a_mapping_says_what_it_would_train(forms: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("atlasvi.engine.training.epoch_estimate.WARM_UP", 1)
    monkeypatch.setattr("atlasvi.engine.training.epoch_estimate._time", lambda act, *others: 0.01)
    words = ["map", forms / "model", forms / "cells.h5ad", "--out", tmp_path / "run", "--epochs", 2]
    said = atlasvi(*words, "--dry-run").stdout
    assert "The whole run: 2 epochs" in said
    assert "nothing was written" in said
    assert list(tmp_path.iterdir()) == []
