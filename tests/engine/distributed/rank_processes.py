"""Ranks, which meet as those of torchrun do, as processes forked from a warm one; and commands, run in this process."""

import contextlib
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.warm_ranks"])


@dataclass
class Rank:
    """One of the processes; `said` is what it wrote to standard output and error."""

    process: BaseProcess
    written: Path

    @property
    def said(self) -> str:
        return self.written.read_text()


def start_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> list[Rank]:
    """Start `function(*arguments)`, of a module, on so many ranks; errors end them as the command line does."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        written = folder / f"rank{rank}.txt"
        started = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        process = CONTEXT.Process(target=_enter, args=(function, arguments, started, written))
        process.start()
        ranks.append(Rank(process, written))
    return ranks


def end_ranks(ranks: Sequence[Rank], within_s: float = 300) -> list[int]:
    """Wait for all to end; their exit statuses. Kills what has not ended in time, so that its status is -9."""
    until = time.monotonic() + within_s
    for rank in ranks:
        rank.process.join(max(until - time.monotonic(), 0.01))
    for rank in ranks:
        rank.process.kill()
        rank.process.join()
    return [rank.process.exitcode for rank in ranks]  # type: ignore[misc]


def run_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> list[Rank]:
    """The same from start to end; all must end well."""
    ranks = start_ranks(function, world_size, folder, *arguments)
    statuses = end_ranks(ranks)
    assert statuses == [0] * world_size, "\n".join(rank.said for rank in ranks)
    return ranks


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    """`atlasvi ARGUMENTS...` in this process, which has imported everything: what it prints and its exit status."""
    from atlasvi.engine.cli.commands import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["atlasvi", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                status = main() or 0
            except SystemExit as end:
                status = end.code or 0
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


def wait_until(condition: Callable[[], Any], within_s: float = 60) -> None:
    """Until something has come about that other processes do."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it has not come about"
        time.sleep(0.01)


def _enter(function: Callable[..., None], arguments: Sequence[Any], started: dict[str, int], written: Path) -> None:
    import torch

    from atlasvi.engine.cli.commands import explain_errors
    from atlasvi.loaders.errors import AtlasviError

    os.environ.update({name: str(value) for name, value in started.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    with open(written, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), explain_errors():
            try:
                function(*arguments)
            except (SystemExit, AtlasviError):
                raise
            except BaseException:
                traceback.print_exc()
                sys.exit(1)
