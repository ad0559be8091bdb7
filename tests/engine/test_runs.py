import errno
import os
from pathlib import Path

import pytest
import torch

from atlasvi.engine import runs
from atlasvi.engine.covariates import Setup
from atlasvi.engine.model import SCVI, ModelSettings
from atlasvi.engine.runs import TrainedRun, load_run, write_json, write_whole
from atlasvi.loaders.errors import OutputError, SourceError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    model = SCVI(ModelSettings(n_genes=5, n_batches=2, n_hidden=8, n_latent=3), torch.Generator().manual_seed(0)).eval()
    run = TrainedRun(model, list("vwxyz"), Setup("donor", ["d1", "d2"], "type", ["B", "T"]), {"epochs": 3})
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "config.json", {"data": "cells.h5ad"})
    write_json(folder / "result.json", run.result)
    run.save(folder)
    return folder


def test_a_run_is_read_back_ready_for_inference(saved: Path):
    run = load_run(saved)
    assert (run.genes, run.result) == (list("vwxyz"), {"epochs": 3})
    assert run.setup == Setup("donor", ["d1", "d2"], "type", ["B", "T"])
    assert run.path == saved
    assert not run.model.training
    z, codes = torch.ones(2, 3), {"batch": torch.tensor([0, 1])}
    drawn = SCVI(run.model.settings, torch.Generator().manual_seed(0)).eval()
    assert torch.equal(run.model.shares(z, codes), drawn.shares(z, codes))


def test_a_run_that_is_not_finished_says_how_to_go_on(saved: Path):
    (saved / "model.pt").unlink()
    with pytest.raises(SourceError, match=r"not finished: go on with .*--resume"):
        load_run(saved)


def test_what_is_no_run_is_said(tmp_path: Path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="is not a run directory"):
            load_run(place)


@pytest.mark.parametrize("file", ["model.pt", "result.json"])
def test_a_damaged_run_is_said(saved: Path, file: str):
    (saved / file).write_bytes((saved / file).read_bytes()[:-20])
    with pytest.raises(SourceError, match="damaged"):
        load_run(saved)


def test_a_model_file_runs_no_code_when_it_is_read(saved: Path):
    class RunsCommand:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {saved / 'ran'}",)

    torch.save({"settings": RunsCommand()}, saved / "model.pt")
    with pytest.raises(SourceError, match="damaged"):
        load_run(saved)
    assert not (saved / "ran").exists()


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch):
    path = tmp_path / "config.json"
    write_whole(path, b"before")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.os, "fsync", fail)
    with pytest.raises(OutputError, match=r"config\.json: the disk is full"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
