"""Two machines, as two network namespaces joined by a cable that can be pulled. Linux, as root."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlasvi.engine.distributed.launch import LaunchError, explain_end, find_address, find_interface, launch
from atlasvi.engine.training.checkpoint_files import list_checkpoints, read_newest_checkpoint, step_of
from tests.engine.distributed.rank_processes import wait_until
from tests.engine.training.small_runs import write_cells

ADDRESSES = ("10.77.0.1", "10.77.0.2")
SMALL = [
    f"--set={name}={value}" for name, value in {"n_hidden": 16, "n_latent": 4, "n_layers": 2, "batch_size": 32}.items()
]


def run_ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces; the cable is the interfaces of their names."""
    names = f"avi-a{os.getpid() % 1000}", f"avi-b{os.getpid() % 1000}"
    if not all(run_ip("netns", "add", name) for name in names):
        pytest.skip("needs to make network namespaces (ip netns, as root)")
    try:
        run_ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            run_ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            run_ip("-n", name, "link", "set", "lo", "up")
            run_ip("-n", name, "link", "set", name, "up")
        yield names
    finally:
        for name in names:
            run_ip("netns", "del", name)


def start_training(machines: tuple[str, str], folder: Path, *options: object) -> list[subprocess.Popen]:
    """The same command on both machines; what each says goes to a file of its name."""
    started = []
    for name in machines:
        launched = ["launch", "--nproc=1", "--nnodes=2", f"--rendezvous={ADDRESSES[0]}:29411", "--"]
        train = ["train", folder / "cells.h5ad", "--out", folder / "run", *SMALL, *options]
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "atlasvi.engine.cli.commands", *launched, *train]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(folder / f"{name}.txt", "w") as said:
            started.append(
                subprocess.Popen(
                    list(map(str, command)), stdout=said, stderr=said, env=environment, start_new_session=True
                )
            )
    return started


@pytest.mark.slow
@pytest.mark.parametrize(("timeout_s", "recovers"), [(150, True), (25, False)])
def test_a_cable_pulled_for_30_s_is_survived_or_ends_in_a_sentence_and_the_run_goes_on(
    machines, tmp_path: Path, timeout_s: int, recovers: bool
):
    write_cells(tmp_path / "cells.h5ad")
    checkpoints = tmp_path / "run" / "checkpoints"
    epochs = "--epochs=400"
    processes = start_training(machines, tmp_path, epochs, f"--rank-timeout={timeout_s}", "--set=max_steps=600")
    wait_until(lambda: checkpoints.is_dir() and step_of(list_checkpoints(checkpoints)[0]) > 20, 180)
    run_ip("-n", machines[0], "link", "set", machines[0], "down")
    cut = time.monotonic()
    if recovers:
        time.sleep(30)
        run_ip("-n", machines[0], "link", "set", machines[0], "up")
        assert [process.wait(300) for process in processes] == [0, 0]
    else:
        wait_until(lambda: "atlasvi:" in (tmp_path / f"{machines[0]}.txt").read_text(), timeout_s + 15)
        said = (tmp_path / f"{machines[0]}.txt").read_text()
        assert "rank 1" in said or "have waited for each other" in said, said
        time.sleep(max(30 - (time.monotonic() - cut), 0))
        run_ip("-n", machines[0], "link", "set", machines[0], "up")
        assert all(process.wait(120) != 0 for process in processes)
        assert read_newest_checkpoint(checkpoints)[1]["step"] > 20
        processes = start_training(machines, tmp_path, "--resume", "--rank-timeout=150")
        assert [process.wait(300) for process in processes] == [0, 0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 600


def test_a_place_to_meet_is_needed_and_must_be_one():
    with pytest.raises(LaunchError, match="pass the same --rendezvous"):
        launch(["train"], 1, n_nodes=2)
    with pytest.raises(LaunchError, match="use HOST:PORT"):
        find_address("nowhere")


def test_the_interface_of_an_address_is_found():
    assert find_address("127.0.0.1:1") == "127.0.0.1"
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.7") is None


class Failure:
    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode


def test_the_end_of_a_launch_is_that_of_its_processes(capsys):
    assert explain_end({0: Failure(75), 1: Failure(-15)}) == 75
    assert explain_end({0: Failure(1), 1: Failure(-15)}) == 1
    assert capsys.readouterr().err == ""
    assert explain_end({1: Failure(-9)}) == 1
    assert "rank 1 was ended by SIGKILL" in capsys.readouterr().err
