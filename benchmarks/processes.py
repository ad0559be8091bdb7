"""Run a process that measures something, and watch the memory of it and of all below it. Linux only."""

import contextlib
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

LONGEST_S = 3600
SAMPLE_S = 0.25  # a sample of a few GB takes a core some milliseconds


class RunError(Exception):
    """A measured process failed; the message is what it said last."""


def run_json(command: list[str], watch_memory: bool = False) -> dict:
    """Run a process; what its last line says, and with `watch_memory` also `tree_peak_mb`, that of all its processes.

    Raises RunError if it fails.
    """
    peaks: list[float] = []
    lines = run(command, peaks if watch_memory else None).strip().splitlines()
    try:
        said = json.loads(lines[-1])
    except (ValueError, IndexError) as error:
        raise RunError(f"{Path(command[1]).name} said no figures: {lines[-1:]}") from error
    if watch_memory:  # a sample may miss what the process itself has seen
        said["tree_peak_mb"] = max([*peaks, said["peak_mb"]])
    return said


def run(command: list[str], peaks: list[float] | None = None) -> str:
    """Run a process and return its output; `peaks` gets the memory of it and all below it, sampled.

    Raises RunError, with the last line of its stderr, if it fails.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + LONGEST_S
            while process.poll() is None:
                if peaks is not None:
                    peaks.append(sum_memory_mb(process.pid))
                if time.monotonic() > until:
                    raise RunError(f"took longer than {LONGEST_S} s")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(), err.read().strip().splitlines()
    if process.returncode != 0:
        raise RunError(complaint[-1] if complaint else f"ended with status {process.returncode}")
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
