"""What `faults.py` kills: ranks that say where they are, which cells they train on, which checkpoints are on disk.

They are forked from a process that has imported everything, so that a run takes seconds; from there on each is a
process like any other, and SIGKILL is SIGKILL. What they report goes through files and shared memory, which outlive
them.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import warm_context

PHASES = ("ingest", "epoch", "checkpoint", "validation", "minify")
LONGEST_S = 120.0
TIMEOUT_S = 12.0  # of a rank


@dataclass
class Group:
    """Ranks that were started together. `entered` counts, for each phase, how often rank 0 has come to it."""

    processes: list[Any]
    entered: Any
    said: list[Path]

    def wait_for(self, phase: str, times: int) -> bool:
        """Until rank 0 has come to that phase so often; False if it has ended before."""
        place, until = PHASES.index(phase), time.monotonic() + LONGEST_S
        while self.entered[place] < times:
            if not self.processes[0].is_alive() or time.monotonic() > until:
                return False
            time.sleep(0.0005)
        return True

    def kill(self, victims: Sequence[int]) -> None:
        """SIGKILL some of them."""
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[victim].pid, signal.SIGKILL)

    def join(self) -> list[int]:
        """Until all have ended; their exit statuses. One that does not end in time is killed and has status None."""
        until = time.monotonic() + LONGEST_S
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0.1))
        hung = [process.is_alive() for process in self.processes]
        self.kill([rank for rank, is_hung in enumerate(hung) if is_hung])
        for process in self.processes:
            process.join()
        return [None if is_hung else process.exitcode for process, is_hung in zip(self.processes, hung)]

    def text(self) -> str:
        """What they wrote."""
        return "\n".join(path.read_text() for path in self.said if path.exists())


def start(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> Group:
    """Start a function of this module on so many ranks; one by itself is no group."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entered = warm_context().Array("i", len(PHASES), lock=False)
    said = [folder / f"rank{rank}.txt" for rank in range(world_size)]
    processes = []
    for rank in range(world_size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
        process = warm_context().Process(
            target=_enter,
            args=(
                function,
                arguments,
                environment if world_size > 1 else {},
                said[rank],
                entered if rank == 0 else None,
            ),
        )
        process.start()
        processes.append(process)
    return Group(processes, entered, said)


def _enter(
    function: Callable[..., None], arguments: Sequence[Any], environment: dict[str, str], said: Path, entered: Any
) -> None:
    import torch

    from atlasvi.engine.cli.commands import explain_errors
    from atlasvi.loaders.errors import AtlasviError

    os.environ.update(environment)
    torch.set_num_threads(1)
    note = (lambda phase: None) if entered is None else (lambda phase: _count(entered, phase))
    with open(said, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        with explain_errors():
            try:
                function(note, *arguments)
            except (AtlasviError, SystemExit):
                raise
            except BaseException:
                traceback.print_exc()
                sys.exit(1)


def _count(entered: Any, phase: str) -> None:
    entered[PHASES.index(phase)] += 1


def ingest(note: Callable[[str], None], source: Path, out: Path) -> None:
    """Write a cell store."""
    from atlasvi.loaders.ingestion.ingest import ingest as run

    note("ingest")
    run(source, out, workers=1, progress=lambda stage, done, total: note("ingest"))


def train(note: Callable[[str], None], store: Path, out: Path, options: dict[str, Any], log: Path) -> None:
    """Train; `log` gets, a line each, the cells of every step of this rank and the checkpoints that are on disk."""
    from atlasvi.engine.distributed.ranks import join_ranks
    from atlasvi.engine.training import checkpoint_files
    from atlasvi.engine.training.step import Step
    from atlasvi.engine.training.train import train as run
    from atlasvi.engine.training.training_loop import Trainer

    attempt = time.time()
    take, evaluate, write = Step.take, Trainer._evaluate, checkpoint_files.write_checkpoint

    def take_noting(self: Step, batch: Any, number: int, step: int, *rest: Any) -> Any:
        note("epoch")
        epoch = self._loader.state_dict()["epoch"]
        seen = {"attempt": attempt, "epoch": epoch, "step": step, "cells": batch.rows.tolist()}
        _append(log.with_suffix(f".{self.ranks.rank}"), seen)
        return take(self, batch, number, step, *rest)

    def evaluate_noting(self: Trainer, *rest: Any) -> Any:
        note("validation")
        return evaluate(self, *rest)

    def write_noting(folder: Path, step: int, *rest: Any) -> Path:
        note("checkpoint")
        path = write(folder, step, *rest)
        _append(log.with_suffix(".committed"), {"step": step})
        return path

    Step.take, Trainer._evaluate = take_noting, evaluate_noting  # type: ignore[method-assign]
    checkpoint_files.write_checkpoint = write_noting
    resume = (out / "config.json").is_file()
    with join_ranks(TIMEOUT_S):
        run(store, out, resume=resume, **({} if resume else options))


def minify(note: Callable[[str], None], run: Path, store: Path, out: Path) -> None:
    """Write a minified store, in parts small enough that some are done before others."""
    from atlasvi.engine.minified import minify as posterior
    from atlasvi.engine.minified import minify_parts

    minify_parts.choose_part_cells = lambda n_cells, batch_size: batch_size
    encode, order = minify_parts.encode_parts, minify_parts.run_order_task

    def encode_noting(scratch: str, parts: list[int]) -> Any:
        for part in encode(scratch, parts):
            note("minify")
            yield part

    def order_noting(scratch: str, part: int) -> None:
        note("minify")
        order(scratch, part)

    minify_parts.encode_parts, minify_parts.run_order_task = encode_noting, order_noting
    note("minify")
    posterior.minify(run, store, out, source_order=True, batch_size=64, rank_timeout_s=TIMEOUT_S)


def _append(path: Path, line: dict[str, Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())  # one call: whole lines or none
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def collect_course(log: Path, world_size: int) -> dict[int, np.ndarray]:
    """For each epoch the cells that the steps of the final course saw: of each step, what its last attempt saw."""
    last: dict[tuple[int, int], dict[str, Any]] = {}
    for rank in range(world_size):
        for line in read_lines(log.with_suffix(f".{rank}")):
            last[rank, line["step"]] = line
    steps = {step for _, step in last}
    assert steps == set(range(len(steps))), f"steps are missing: {sorted(set(range(max(steps))) - steps)}"
    epochs: dict[int, list[int]] = {}
    for line in last.values():
        epochs.setdefault(line["epoch"], []).extend(line["cells"])
    return {epoch: np.sort(cells) for epoch, cells in epochs.items()}
