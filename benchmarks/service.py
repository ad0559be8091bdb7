"""Do a hundred clients get their answers from `atlasvi serve`, how soon, and does its memory stay bounded?

    python benchmarks/service.py --work /a/disk/with/2/GB [--cells 1000000] [--clients 100] [--seconds 120]
    python benchmarks/service.py --store atlas.mini --labels cell_type

Each client asks one question after the other, in an order of its own, of a mix of questions as a page and a notebook
ask them (`make_mix`); an answer counts when all of it has come. Beside them a few strangers ask what must be refused,
and go before their answers come. The server is a process of its own, with its default limits; all clients are in this
process, on the same cores, so that a server alone would answer sooner.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from memory import processor_name
from processes import ATLASVI, Child, sum_memory_mb

ARROW, CSV, JSON = "application/vnd.apache.arrow.stream", "text/csv", "application/json"
STARTS_WITHIN_S = 120
Ask = Callable[[random.Random], tuple[str, str, dict | None]]


def make_mix(info: dict, labels: str, genes: list[str]) -> dict[str, tuple[float, Ask]]:
    """What clients ask, by name: how often, and the path, the form and the options of one such question."""
    n_cells = info["n_cells"]

    def choose_genes(chance: random.Random, n: int) -> list[str]:
        return chance.sample(genes, min(n, len(genes)))

    def choose_rows(chance: random.Random, n: int) -> list[int]:
        return [chance.randrange(n_cells) for _ in range(n)]

    return {
        "info": (3, lambda chance: ("info", JSON, None)),
        "genes": (3, lambda chance: ("genes?pattern=1", JSON, None)),
        "obs": (2, lambda chance: (f"obs/{labels}", JSON, None)),
        "count": (3, lambda chance: ("count", JSON, {"where": f"{labels} != 'none'"})),
        "latent": (4, lambda chance: ("latent", ARROW, {"rows": choose_rows(chance, 1_000)})),
        "expression": (
            6,
            lambda chance: (
                "expression",
                ARROW,
                {"genes": choose_genes(chance, 20), "rows": choose_rows(chance, 1_000)},
            ),
        ),
        "expression csv": (
            2,
            lambda chance: ("expression", CSV, {"genes": choose_genes(chance, 3), "sample": 1_000, "seed": 1}),
        ),
        "sample": (1, lambda chance: ("sample", ARROW, {"genes": choose_genes(chance, 20), "sample": 200})),
        "aggregate": (
            1,
            lambda chance: ("aggregate", JSON, {"by": labels, "genes": choose_genes(chance, 20), "max_cells": 50}),
        ),
        "compare": (
            0.5,
            lambda chance: ("compare", JSON, {"first": choose_rows(chance, 500), "n_samples": 500, "top": 20}),
        ),
        "markers": (0.1, lambda chance: ("markers", JSON, {"labels_key": labels, "n_samples": 500, "top": 5})),
        "neighbours": (1, lambda chance: ("neighbours", JSON, {"of": choose_rows(chance, 5), "k": 15})),
        "similar-genes": (
            0.5,
            lambda chance: ("similar-genes", JSON, {"genes": choose_genes(chance, 1), "max_cells": 1_000}),
        ),
    }


WRONG: list[tuple[str, bytes, dict[str, str], int]] = [
    ("latent", b"{", {"Content-Type": JSON}, 422),
    ("latent", b'{"where": "a.b.c()"}', {"Content-Type": JSON}, 400),
    ("latent", b"{}", {"Content-Type": "text/plain"}, 415),
    ("latent", b"{}", {"Content-Type": JSON, "Host": "evil.example"}, 421),
    ("latent", b" " * 5_000_000, {"Content-Type": JSON}, 413),
    ("nothing", b"{}", {"Content-Type": JSON}, 404),
]


def main() -> int:
    """Serve, ask, print the table; return 1 if there was an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where a store of simulated cells is made")
    parser.add_argument("--store", help="a store that is there, instead")
    parser.add_argument("--labels", default="cell_type", help="a column of it with few values")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--quick", action="store_true", help="a small store and a few seconds, to see that all runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.clients, arguments.seconds = 5_000, 8, 3
    elif arguments.work is None and arguments.store is None:
        parser.error("--work or --store is needed, or --quick")
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.store is None:
            arguments.store = str((arguments.work or Path(temporary)) / f"{arguments.cells}.service.mini")
            if not Path(arguments.store).exists():
                from query_store import make_store

                Path(arguments.store).parent.mkdir(parents=True, exist_ok=True)
                make_store(Path(arguments.store), arguments.cells, 100 if arguments.quick else 2_000)
        with serve(arguments.store, arguments.quick) as (address, child):
            report = asyncio.run(measure(address, child, arguments))
    report |= {
        "machine": f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("atlasvi", "starlette", "uvicorn", "torch")},
    }
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(bool(report["errors"]))


@contextmanager
def serve(store: str, warm: bool) -> Iterator[tuple[str, Child]]:
    """The address and the process of a service of the store; its end must be a clean one."""
    with tempfile.TemporaryFile("w+") as said:
        child = Child([*ATLASVI, "serve", store, "--port", "0"], said.fileno(), said.fileno(), warm)
        try:
            until, address = time.monotonic() + STARTS_WITHIN_S, None
            while address is None:
                said.seek(0)
                text = said.read()
                address = re.search(r"at (http://\S+)/ until", text)
                if child.wait(0.1) or time.monotonic() > until:
                    raise SystemExit(f"service: it did not start:\n{text}")
            yield address[1], child
        finally:
            child.kill(15)
            said.seek(0)
            text = said.read()
    if child.status != 0 or "Traceback" in text:
        raise SystemExit(f"service: it ended with status {child.status}:\n{text}")


async def measure(address: str, child: Child, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask for some time, and report seconds by question, errors, and the server's memory."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=f"{address}/api", timeout=300, limits=limits) as client:
        info = (await client.get("/info")).json()
        genes = (await client.get("/genes")).json()["genes"]
        mix = make_mix(info, arguments.labels, genes)
        for name in mix:  # what is read or compiled once is not measured
            await ask(client, mix[name][1](random.Random(0)))
        before_mb, peaks = sum_memory_mb(child.pid), list[float]()
        seconds, errors = defaultdict[str, list[float]](list), list[str]()
        until = time.monotonic() + arguments.seconds
        clients = [run_client(client, k, mix, until, seconds, errors) for k in range(arguments.clients)]
        strangers = [run_stranger(client, k, until, errors) for k in range(max(arguments.clients // 20, 1))]
        watching = asyncio.create_task(watch_memory(child.pid, peaks))
        begun = time.monotonic()
        refused = sum((await asyncio.gather(*clients, *strangers))[len(clients) :])
        took_s = time.monotonic() - begun
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.sleep(1)
        after_mb = sum_memory_mb(child.pid)
    return {
        "cells": info["n_cells"],
        "clients": arguments.clients,
        "seconds": took_s,
        "n_answers": sum(map(len, seconds.values())),
        "n_refused": refused,
        "errors": errors,
        "questions": {name: summarise(seconds[name]) for name in [*mix, "all"] if seconds[name] or name == "all"}
        | {"all": summarise([each for times in seconds.values() for each in times])},
        "memory_mb": {"before": before_mb, "peak": max([before_mb, after_mb, *peaks]), "after": after_mb},
    }


async def ask(client: httpx.AsyncClient, question: tuple[str, str, dict | None]) -> None:
    """Ask, and read the whole answer. Raises RuntimeError if it is none."""
    path, form, options = question
    if options is None:
        response = await client.get(f"/{path}")
    else:
        response = await client.post(f"/{path}", json=options, headers={"Accept": form})
    if response.status_code != 200 or len(response.content) < 10:
        raise RuntimeError(f"{path}: {response.status_code} {response.text[:200]}")


async def run_client(
    client: httpx.AsyncClient,
    number: int,
    mix: dict[str, tuple[float, Ask]],
    until: float,
    seconds: dict[str, list[float]],
    errors: list[str],
) -> int:
    """Ask one question after the other until the time is over."""
    chance = random.Random(number)
    names, weights = list(mix), [weight for weight, _ in mix.values()]
    while time.monotonic() < until:
        (name,) = chance.choices(names, weights)
        question, begun = mix[name][1](chance), time.perf_counter()
        try:
            await ask(client, question)
            seconds[name].append(time.perf_counter() - begun)
        except Exception as error:
            errors.append(f"{name}: {type(error).__name__} {error}")
        await asyncio.sleep(chance.random() * 0.1)
    return 0


async def run_stranger(client: httpx.AsyncClient, number: int, until: float, errors: list[str]) -> int:
    """Ask what must be refused, and go before answers come; returns how many were refused as they should be."""
    chance, n_refused = random.Random(-1 - number), 0
    while time.monotonic() < until:
        path, body, headers, status = chance.choice(WRONG)
        try:
            response = await client.post(f"/{path}", content=body, headers=headers)
            if response.status_code == status and response.json()["error"]:
                n_refused += 1
            else:
                errors.append(f"{path} should be refused with {status}: {response.status_code} {response.text[:200]}")
        except httpx.TransportError as error:
            if status != 413:  # the server closes the connection before all of a large body has come
                errors.append(f"{path}: {error!r}")
        with suppress(httpx.TimeoutException):
            await client.post("/latent", json={"limit": 100_000}, headers={"Accept": CSV}, timeout=0.05)
        await asyncio.sleep(0.2)
    return n_refused


async def watch_memory(process: int, peaks: list[float]) -> None:
    """Note the memory of the server twice a second."""
    while True:
        peaks.append(await asyncio.to_thread(sum_memory_mb, process))
        await asyncio.sleep(0.5)


def summarise(seconds: list[float]) -> dict[str, float]:
    """How many answers there were, and how soon."""
    if not seconds:
        return {"n": 0}
    median, late, latest = np.quantile(seconds, [0.5, 0.99, 1]).tolist()
    return {"n": len(seconds), "p50_s": median, "p99_s": late, "max_s": latest}


def print_report(report: dict[str, Any]) -> None:
    """The table."""
    print(f"{report['clients']} clients, {report['cells']:,} cells, {report['seconds']:.0f} s; {report['machine']}")
    print("\n| question | answers | p50 s | p99 s | max s |\n| --- | --- | --- | --- | --- |")
    for name, found in report["questions"].items():
        figures = " | ".join(f"{found[key]:.2f}" for key in ("p50_s", "p99_s", "max_s") if key in found)
        print(f"| {name} | {found['n']:,} | {figures} |")
    mb = report["memory_mb"]
    print(f"\nmemory of the server, MB: {mb['before']:.0f} before, {mb['peak']:.0f} peak, {mb['after']:.0f} after")
    n_refused, n_errors = report["n_refused"], len(report["errors"])
    print(f"{report['n_answers']:,} answers, {n_refused:,} refused as they should be, {n_errors} errors")
    for error in report["errors"][:10]:
        print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
