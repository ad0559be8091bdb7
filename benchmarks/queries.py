"""How fast, and in how much memory, is a minified atlas of ten million cells asked?

    python benchmarks/queries.py --work /a/disk/with/2/GB [--cells 100000000] [--keep] [--only open count] [--json FILE]

A store of simulated cells x 20 latents and 2,000 genes, without counts, is made by the code of minify (query_store.py),
if WORK has none of this size. Each question (query_steps.py) is measured in a process of its own: its time, and the
peak of its memory above what its imports take. Beside it, the same questions to the same store as AnnData in memory.
The files are in the page cache, unless the machine has too little memory. --cells 100000000 takes 20 GB of disk.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measured_process import list_files, read_status_mb, reset_peak, say
from memory import processor_name
from query_steps import ANNDATA, LEAST_SHARE, LIMITS, MOST_MB, MOST_OPEN_MB, STEPS, Sizes, measure_anndata

ANNDATA_BYTES = 600  # that a cell takes in memory while anndata reads it, about


def main() -> int:
    """Make the store, measure, print the table; return 1 if a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the store is made")
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--latents", choices=["float32", "float16"], default="float32")
    parser.add_argument("--only", nargs="+", choices=[*STEPS, ANNDATA], help="measure these alone")
    parser.add_argument("--keep", action="store_true", help="leave the store for the next time")
    parser.add_argument("--quick", action="store_true", help="few cells, to see that all runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", help=argparse.SUPPRESS)  # the measured process
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = Sizes(50, 500, 10) if arguments.quick else Sizes()
    if arguments.step:
        measure(arguments.step, arguments.store, sizes)
        return 0
    if arguments.work is None:
        parser.error("--work is needed")
    if arguments.quick:
        arguments.cells, arguments.genes = 20_000, 100
    store = arguments.work / f"{arguments.cells}.{arguments.latents}.mini"
    made_s = make(store, arguments)
    n_bytes = sum(file.stat().st_size for file in list_files(store))
    try:
        figures = {step: run_step(step, store, arguments.quick) for step in choose_steps(arguments)}
    finally:
        if not arguments.keep:
            shutil.rmtree(store)
    report = {
        "cells": arguments.cells,
        "genes": arguments.genes,
        "latents": arguments.latents,
        "bytes_per_cell": n_bytes / arguments.cells,
        "made_s": made_s,
        "figures": figures,
        "missed": find_missed(figures),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("atlasvi", "torch", "zarr", "anndata", "numpy")},
    }
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(bool(report["missed"]) and not arguments.quick)


def make(store: Path, arguments: argparse.Namespace) -> float | None:
    """Make the store, unless it is there; returns the seconds that it took."""
    if store.exists():
        return None
    from query_store import make_store  # imports torch, which the measured processes may not need

    aside = store.with_name(f".{store.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    make_store(aside, arguments.cells, arguments.genes, latents=arguments.latents)
    aside.rename(store)
    return time.perf_counter() - started


def choose_steps(arguments: argparse.Namespace) -> list[str]:
    """The steps that are asked for; by default all, and AnnData where it fits into half of the free memory."""
    if arguments.only:
        return arguments.only
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return [*STEPS, *[ANNDATA] * (arguments.cells * ANNDATA_BYTES < free / 2)]


def run_step(step: str, store: Path, quick: bool) -> dict:
    """Measure one step in a process of its own. SystemExit if it fails."""
    command = [sys.executable, __file__, "--step", step, "--store", str(store), *["--quick"] * quick]
    print(f"measuring: {step}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"queries: {step} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(step: str, store: Path, sizes: Sizes) -> None:
    """The measured process: import what the questions use, then ask, and print the figures."""
    import anndata.io  # noqa: F401

    import atlasvi.engine.minified.minified_store
    import atlasvi.engine.queries.cell_choice
    import atlasvi.engine.queries.minified_queries  # noqa: F401

    imports_mb = reset_peak()
    figures = measure_anndata(store, sizes) if step == ANNDATA else STEPS[step](store, sizes)
    say({**figures, "imports_mb": imports_mb, "peak_mb": read_status_mb("VmHWM") - imports_mb})


def find_missed(figures: dict[str, dict]) -> list[str]:
    """What is slower or larger than what is asked for."""
    missed = [f"{step}: {figures[step]['seconds']:.2f} s" for step in LIMITS if _is_slow(figures, step)]
    for step, found in figures.items():
        if step != ANNDATA and found["peak_mb"] > (MOST_OPEN_MB if step == "open" else MOST_MB):
            missed.append(f"{step}: {found['peak_mb']:,.0f} MB")
        if not found.get("right", True):
            missed.append(f"{step}: the answer is wrong")
        if found.get("share", 1.0) < LEAST_SHARE:
            missed.append(f"{step}: {found['share']:.0%} of the decoder's own speed")
    return missed


def _is_slow(figures: dict[str, dict], step: str) -> bool:
    return step in figures and figures[step]["seconds"] > LIMITS[step]


def print_report(report: dict) -> None:
    """Print the table."""
    figures, theirs = report["figures"], report["figures"].get(ANNDATA, {}).get("each_s", {})
    made = "" if report["made_s"] is None else f", made in {report['made_s']:,.0f} s"
    print(
        f"\n{report['cells']:,} cells x 20 latents ({report['latents']}) x {report['genes']:,} genes: "
        f"{report['bytes_per_cell']:.0f} bytes a cell{made}\n"
    )
    print("| question | seconds | peak MB above imports | AnnData in memory, seconds | also |")
    print("| --- | ---: | ---: | ---: | --- |")
    for step, found in figures.items():
        if step == ANNDATA:
            continue
        shown = {"seconds", "imports_mb", "peak_mb"}
        also = ", ".join(
            f"{name} {value:,.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in found.items()
            if name not in shown
        )
        peer = f"{theirs[step]:.3f}" if step in theirs else ""
        print(f"| {step} | {found['seconds']:.3f} | {found['peak_mb']:,.0f} | {peer} | {also} |")
    if ANNDATA in figures:
        print(f"\nAnnData in memory: {figures[ANNDATA]['peak_mb']:,.0f} MB above imports.")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(f"\n{report['machine']}, load {report['load']:.1f}; {versions}; {report['date']}.")
    print(f"Missed: {'; '.join(report['missed']) or 'nothing'}.")


if __name__ == "__main__":
    sys.exit(main())
