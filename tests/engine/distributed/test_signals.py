import os
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from atlasvi.engine.cli.commands import main
from atlasvi.engine.distributed.launch import launch, launch_prefix
from atlasvi.engine.distributed.signals import TrainingInterrupted, stop_on_signals
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools, save_scvi_tools
from atlasvi.engine.simulation import simulate
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.damage import reading

TINY = {"n_hidden": 4, "n_latent": 2, "n_layers": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with counts, a finished run on them, and the same model as scvi-tools keeps it."""
    folder = tmp_path_factory.mktemp("files")
    simulate(folder / "a.h5ad", n_cells=60, n_genes=10, n_batches=1, n_types=2, seed=0)
    save_scvi_tools(train(folder / "a.h5ad", folder / "run", epochs=1, settings=TINY), folder / "theirs")
    return folder


def raise_sigterm(*arguments: object, **options: object) -> None:
    """Stands in the place of a library's function while the signal comes."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("place", "name", "read"),
    [
        (torch, "load", lambda files: load_run(files / "run")),
        (torch, "load", lambda files: minify(files / "run", files / "a.h5ad", files / "mini")),
        (np, "frombuffer", lambda files: load_scvi_tools(files / "theirs")),
        (h5py, "File", lambda files: open_cells(files / "a.h5ad")),
    ],
    ids=["our model", "minify", "model of scvi-tools", "counts"],
)
def test_sigterm_while_a_file_is_read_is_not_called_damage(files: Path, monkeypatch, place, name, read):
    monkeypatch.setattr(place, name, raise_sigterm)
    expected = pytest.raises(TrainingInterrupted, match="stopped by SIGTERM: run the same command again")
    with expected, stop_on_signals():
        read(files)
    assert not (files / "mini").exists()
    assert not (files / ".mini.unfinished").exists()


def test_no_handler_of_exceptions_swallows_sigterm():
    """A library may do this anywhere; so may a function of ours that reads damaged files."""
    with pytest.raises(TrainingInterrupted), stop_on_signals(), reading("a file"):
        try:
            raise_sigterm()
        except Exception:
            pytest.fail("the signal was taken for an error")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["minify", "export", "info"])
def test_a_command_that_is_stopped_ends_with_the_status_of_the_signal(
    files: Path, monkeypatch, capfd, command: str, number: int, status: int
):
    monkeypatch.setattr(torch, "load", lambda *a, **k: os.kill(os.getpid(), number))
    monkeypatch.setattr(h5py, "File", lambda *a, **k: os.kill(os.getpid(), number))
    rest = {"minify": ["run", "a.h5ad", "--out", "mini"], "export": ["run", "out"], "info": ["a.h5ad"]}[command]
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "argv", ["atlasvi", command, *rest])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert "damaged" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sorted(os.listdir(files)) == ["a.h5ad", "run", "theirs"]


@pytest.mark.parametrize(
    ("asked", "prefix"),
    [
        ({}, "atlasvi launch --nproc 2 --"),
        ({"max_restarts": 3}, "atlasvi launch --nproc 2 --max-restarts 3 --"),
        (
            {"n_nodes": 2, "rendezvous": "localhost:29400"},
            "atlasvi launch --nproc 2 --nnodes 2 --rendezvous localhost:29400 --",
        ),
    ],
)
def test_processes_know_how_they_were_launched(monkeypatch, asked: dict, prefix: str):
    """So that a run that is stopped can say how to go on."""
    seen: list[str] = []
    start = lambda config, entrypoint: lambda *arguments: seen.append(launch_prefix())  # noqa: E731
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert launch(["train"], 2, **asked) == 0
    assert seen == [prefix]
    assert launch_prefix() == "atlasvi"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch_prefix() == "torchrun ... -m atlasvi.engine.cli.commands"
