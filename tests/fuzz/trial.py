"""One trial: an input is copied, damaged and asked; each step in a process of its own, with limits of memory and time.

    python -m tests.fuzz.trial SEED [SEED ...] [--inputs FOLDER]

repeats trials and says all about them. Processes are forked from one that has imported everything and runs a single
thread, as a forked process has of its parent's threads only what they held.
"""

import argparse
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks.warm_ranks  # isort: skip  # noqa: F401  imports everything, and sees to it that no thread runs

from numba.core.dispatcher import Dispatcher

from atlasvi.loaders.errors import AtlasviError
from tests.fuzz.calls import FORMATS, Answer
from tests.fuzz.inputs import make_inputs
from tests.fuzz.judging import is_confirmed, is_sentence, is_unstable, name_differences, read_all_text, same
from tests.fuzz.mutations import damage, list_tree

MEMORY_BYTES, CPU_S, TIME_S = 4 * 2**30, 60, 900.0  # on a busy machine time passes that no trial has used
DEFAULT_INPUTS = Path(tempfile.gettempdir()) / "atlasvi-fuzz-inputs"
BASELINES = "answers.pkl"
RIGHT_BY_THEMSELVES = ("change_zarr", "change_torch", "adata.h5ad", "change_hdf5")  # changes that no checksum tells of


def load_compiled() -> None:
    """Load what numba has compiled and kept on disk, as each of the forked processes would else do by itself.

    Loops that run in parallel are left out: loading one starts threads.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("atlasvi.")]
    for function in {id(value): value for module in modules for value in vars(module).values()}.values():
        if isinstance(function, Dispatcher) and not function.targetoptions.get("parallel"):
            kept = getattr(function._cache, "_cache_file", None)
            for signature in {key[0] for key in kept._load_index()} if kept else ():
                function.compile(signature)


@dataclass
class Ended:
    """How a process ended: its status (negative: the signal), what it wrote to standard error, what it returned."""

    status: int
    said: str
    value: Any


def run_apart(work: Path, function: Callable[..., Any], *arguments: Any, memory: int = MEMORY_BYTES) -> Ended:
    """Call a function in a forked process with limits; `work` keeps what it writes. A timeout gives SIGKILL."""
    files = {name: work / f"said.{name}" for name in ("out", "err", "value")}
    child = os.fork()
    if child == 0:
        _enter(files, memory, function, arguments)
    until = time.monotonic() + TIME_S
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    status = os.waitstatus_to_exitcode(ended[1])
    value = pickle.loads(files["value"].read_bytes()) if status == 0 else None
    said = files["err"].read_text(errors="replace")
    for file in files.values():
        file.unlink(missing_ok=True)
    return Ended(status, said, value)


def _enter(files: dict[str, Path], memory: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    status = 1
    try:
        os.setsid()
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()  # torch of CUDA maps GB
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory == MEMORY_BYTES:  # not where the inputs are made
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        tempfile.tempdir = str(files["out"].parent)  # where it is seen what a call leaves behind
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        value = function(*arguments)
        files["value"].write_bytes(pickle.dumps(value))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except AtlasviError as error:
        print(f"atlasvi: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass
class Outcome:
    """What came of a trial, and how to say it."""

    seed: int
    kind: str
    call: str
    mutation: str
    found: str
    said: str

    def __str__(self) -> str:
        again = f"python -m tests.fuzz.trial {self.seed}"
        return (
            f"{self.found}: {self.kind} {self.call} ({self.mutation})\n  {self.said.strip()[-1500:]}\n  again: {again}"
        )


def prepare(inputs: Path, kinds: Collection[str] = tuple(FORMATS)) -> dict[tuple[str, str], Answer]:
    """Make the inputs, unless they are there; the answers that they give undamaged.

    Raises RuntimeError if a call fails without damage.
    """
    load_compiled()
    if not (inputs / BASELINES).is_file():
        shutil.rmtree(inputs, ignore_errors=True)
        with tempfile.TemporaryDirectory() as scratch:
            if (ended := run_apart(Path(scratch), make_inputs, inputs, kinds, memory=2**38)).status:
                raise RuntimeError(f"the inputs could not be made:\n{ended.said}")
        answers = {}
        for kind in [kind for kind in kinds if (inputs / kind).exists()]:
            for name, call in FORMATS[kind].calls.items():
                with tempfile.TemporaryDirectory() as scratch:
                    work = Path(scratch)
                    place = copy_input(inputs / kind, work)
                    ended = run_apart(work, call, place, inputs, work / "out")
                if ended.status:
                    raise RuntimeError(f"{kind} {name} fails without damage:\n{ended.said}")
                answers[kind, name] = ended.value
        (inputs / BASELINES).write_bytes(pickle.dumps(answers))
    return pickle.loads((inputs / BASELINES).read_bytes())


def copy_input(source: Path, work: Path) -> Path:
    place = work / "input" / source.name
    place.parent.mkdir()
    shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    return place


def run_trial(seed: int, inputs: Path, answers: dict[tuple[str, str], Answer]) -> Outcome:
    """Draw a format, a call and a damage from a seed, and see what comes of them."""
    draw = random.Random(seed)
    kinds = [*dict.fromkeys(kind for kind, _ in answers)]
    kind = kinds[seed % len(kinds)]
    call = draw.choice(list(FORMATS[kind].calls))
    sealed = FORMATS[kind].ours and draw.random() < 0.5
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        work = Path(scratch)
        place = copy_input(inputs / kind, work)
        hurt = run_apart(work, damage, place, seed, sealed)
        mutation = hurt.value if hurt.status == 0 else f"the damage failed: {hurt.said[-300:]}"
        before = set(list_tree(work))
        ended = run_apart(work, FORMATS[kind].calls[call], place, inputs, work / "out")
        if ended.status == 0:
            known = FORMATS[kind].ours and not (sealed or any(word in mutation for word in RIGHT_BY_THEMSELVES))
            found, said = judge_answer(work, kind, call, place, inputs, ended.value, answers[kind, call], known)
        else:
            left = sorted({name for name, _ in before.symmetric_difference(list_tree(work))})
            fine = ended.status > 0 and is_sentence(ended.said) and (not left or kind == "run-unfinished")
            found, said = "sentence" if fine else "other", f"status {ended.status}; changed: {left}\n{ended.said}"
            if ended.status == -signal.SIGKILL:
                found = "library" if run_apart(work, read_all_text, place).status == ended.status else "other"
    return Outcome(seed, kind, call, mutation, found, said)


def judge_answer(
    work: Path, kind: str, call: str, place: Path, inputs: Path, answer: Answer, expected: Answer, known: bool
) -> tuple[str, str]:
    """The class of a trial that ended well, and why. `known`: that a checksum tells of the damage."""
    if same(answer, expected):
        return "right", "the answer is that of the undamaged input"
    said = f"another answer ({name_differences(answer, expected)})"
    if known:
        return "other", f"{said}, though a checksum tells of the damage"
    judged = run_apart(work, is_confirmed, kind, call, place, inputs, work / "judge", answer, expected)
    confirmed = judged.status == 0 and judged.value
    if not confirmed and run_apart(work, is_unstable, kind, place).value:
        return "library", f"{said}, and the library that reads it gives other values each time"
    return (
        "right" if confirmed else "other",
        f"{said}, which an independent reader {'confirms' if confirmed else 'does not confirm'}: {judged.said}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--inputs", type=Path, default=DEFAULT_INPUTS)
    given = parser.parse_args()
    answers = prepare(given.inputs)
    for seed in given.seeds:
        print(run_trial(seed, given.inputs, answers), flush=True)


if __name__ == "__main__":
    main()
