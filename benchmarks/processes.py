"""Run a process that measures something, and watch the memory of it and of all below it. Linux only."""

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

LONGEST_S = 3600
SAMPLE_S = 0.25  # a sample of a few GB takes a core some milliseconds
POLL_S = 0.02
ATLASVI = [sys.executable, "-m", "atlasvi.engine.cli.commands"]


class RunError(Exception):
    """A measured process failed; the message is what it said last."""


@cache
def warm_context() -> Any:
    """The context of multiprocessing whose processes are forked from one that has imported everything (warm_ranks)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm_ranks"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.update({} if before is None else {"PYTHONPATH": before})
        if before is None:
            del os.environ["PYTHONPATH"]
    return context


class Child:
    """A process that runs a command, and what it used.

    command  a program and its words
    out, err  file descriptors for its output and its errors; None: where ours go
    warm     fork it from a process that has imported everything. That is for --quick, where many processes do little:
             the command, a script or a module of ours, then starts in milliseconds instead of seconds
    status   once it has ended: its exit status, or minus the signal that ended it
    usage    peak_mb, cpu_s and read_mb and written_mb (of disks), once it has ended
    """

    status: int
    usage: dict[str, float]

    def __init__(self, command: list[str], out: int | None = None, err: int | None = None, warm: bool = False) -> None:
        handles = [(handle, number) for handle, number in ((out, 1), (err, 2)) if handle is not None]
        self._forked: Any = None
        if warm:
            places = [(f"/proc/{os.getpid()}/fd/{handle}", number) for handle, number in handles]
            self._used = warm_context().Array("d", 4, lock=False)
            arguments = (command, places, dict(os.environ), self._used)
            self._forked = warm_context().Process(target=_run_warm, args=arguments)
            self._forked.start()
            self.pid: int = self._forked.pid
        else:  # not subprocess: only `wait4` says what one process used
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, handle, number) for handle, number in handles]
            self.pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, but not longer than this; whether it has."""
        if self._forked is not None:
            self._forked.join(seconds)
            return self._has_ended()
        until = time.monotonic() + seconds
        while not self._has_ended():
            if time.monotonic() >= until:
                return False
            time.sleep(min(POLL_S, seconds))
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, and wait until it has ended."""
        if not self._has_ended():
            os.kill(self.pid, number)
            while not self.wait(LONGEST_S):
                pass

    def _has_ended(self) -> bool:
        if hasattr(self, "status"):
            return True
        if self._forked is not None:
            if self._forked.exitcode is None:
                return False
            self.status, used = self._forked.exitcode, list(self._used)
        else:
            ended, status, usage = os.wait4(self.pid, os.WNOHANG)
            if not ended:
                return False
            self.status, used = os.waitstatus_to_exitcode(status), _list_usage(usage)
        self.usage = dict(zip(("peak_mb", "cpu_s", "read_mb", "written_mb"), used, strict=True))
        return True


def _run_warm(command: list[str], outputs: list[tuple[str, int]], environment: dict[str, str], used: Any) -> None:
    """Run a command of Python's in this process, which has been forked; `used` gets what it used."""
    os.environ.clear()
    os.environ.update(environment)
    for place, number in outputs:
        os.dup2(os.open(place, os.O_WRONLY | os.O_APPEND), number)
    try:
        if command[1] == "-m":
            sys.argv[:] = command[2:]
            sys.exit(importlib.import_module(command[2]).main())
        sys.argv[:] = command[1:]
        sys.path.insert(0, str(Path(command[1]).parent))
        runpy.run_path(command[1], run_name="__main__")
    finally:
        used[:] = _list_usage(resource.getrusage(resource.RUSAGE_SELF))


def _list_usage(usage: resource.struct_rusage) -> list[float]:
    peak_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return [peak_mb, usage.ru_utime + usage.ru_stime, usage.ru_inblock * 512 / 1e6, usage.ru_oublock * 512 / 1e6]


def run_json(command: list[str], watch_memory: bool = False, warm: bool = False) -> dict:
    """Run a process; what its last line says, and with `watch_memory` also `tree_peak_mb`, that of all its processes.

    Raises RunError if it fails.
    """
    peaks: list[float] = []
    lines = run(command, peaks if watch_memory else None, warm=warm).strip().splitlines()
    try:
        said = json.loads(lines[-1])
    except (ValueError, IndexError) as error:
        raise RunError(f"{Path(command[1]).name} said no figures: {lines[-1:]}") from error
    if watch_memory:  # a sample may miss what the process itself has seen
        said["tree_peak_mb"] = max([*peaks, said["peak_mb"]])
    return said


def run(command: list[str], peaks: list[float] | None = None, warm: bool = False, follow: bool = False) -> str:
    """Run a process and return its output; `peaks` gets the memory of it and all below it, sampled.

    warm    see `Child`
    follow  its errors and its progress go where ours go, as they come
    Raises RunError, with the last line of its stderr, if it fails.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = Child(command, out.fileno(), None if follow else err.fileno(), warm)
        try:
            until = time.monotonic() + LONGEST_S
            while True:
                if peaks is not None:
                    peaks.append(sum_memory_mb(child.pid))
                if child.wait(SAMPLE_S):
                    break
                if time.monotonic() > until:
                    raise RunError(f"took longer than {LONGEST_S} s")
        finally:
            child.kill()
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(), err.read().strip().splitlines()
    if child.status != 0:
        raise RunError(complaint[-1] if complaint else f"{' '.join(command)} ended with status {child.status}")
    return said


def sum_memory_mb(process: int) -> float:
    """Resident memory of a process and all below it in MB (10**6 bytes), what they share counted once."""
    total_kb, waiting = 0, [process]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError, ValueError):  # a process that has ended meanwhile
            found = re.search(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.M)
            total_kb += int(found[1]) if found else 0
            for thread in (folder / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return total_kb * 1024 / 1e6
