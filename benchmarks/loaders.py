"""How fast do shuffled minibatches come from disk, ours and the peers', over the same cells, and how well mixed?

    python benchmarks/loaders.py --atlas DIR --peers VENV --json FILE [--plots DIR] [--quick] [--only ROW,...]
    python benchmarks/loaders.py --quick [--json FILE]            small, without the peers

DIR holds atlas*.h5ad (peers/make_atlas.py writes them); what is missing is built beside them: our stores fast.store and
small.store, annbatch's collection annbatch.zarr and, from atlas0.h5ad, the SOMA experiment soma (these two by
peers/plain_loaders.py). VENV is the peers' environment (peers/README.md says how to make it).

Every measurement is a process of its own, ours (loader_runs.py) and the peers' (peers/loaders.py) in turn, round after
round. A process goes through one epoch to warm up and then through at least two; its figure is their median, and that
of a row the median of its processes; the same rule and the same code (measured_process.py) for both sides. Memory is
the peak of the process above what it held when everything was imported; that of an ingest is the sum over its
processes (proportional set size, sampled). Linux only. The exit status is 1 if a row failed or a target is missed.

--quick alone simulates its atlas, and measures the rows that need no peer; it leaves the page cache alone, and its
figures are of processes forked from one that has imported everything: it shows that the benchmark runs, not how fast.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from loader_report import (
    RATIOS,
    check_limits,
    compare_entropies,
    compute_ratios,
    format_report,
    list_failures,
    range_ratio,
    summarise_epochs,
    summarise_ingests,
)
from loader_rows import BUILT, ROWS, TITLES, Bench, Row
from measured_process import list_files
from processes import RunError, run, run_json

BATCH = 1024
SOURCE_BLOCK = 1000
COPIES = 10
LARGE_FREE_GB = 12
LEFT_OUT = (
    "GPUs; dense output; a training step beside the loader; networked disks; real data, whose cells differ more in "
    "length; what the host of a virtual machine keeps of an emptied page cache; that our minibatches are in narrow "
    "types (uint8 counts, uint16 genes) where annbatch's are float32 and int64"
)


def main() -> int:
    """Measure, print the tables, write JSON and plots; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("loaders: stopped."))  # the work folder goes, too
    options = read_options()
    if options.plots:
        from loader_plots import draw_plots
    names = choose_rows(options)
    work = Path(tempfile.mkdtemp(prefix="loaders-", dir=options.atlas))
    try:
        options.atlas = options.atlas or simulate_atlas(work)
        bench = Bench(options.atlas, work, options.peers or Path(), options.seconds, warm=options.alone)
        figures = measure_rows(names, bench, options)
        report = make_report(figures, bench, options)
    finally:
        shutil.rmtree(work)
    print(format_report(report, TITLES))
    machine, versions = report["machine"], report["versions"]
    print(f"\n{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB, {machine['kernel']}")
    for side, found in versions.items():
        print(f"{side}: {', '.join(f'{name} {number}' for name, number in found.items())}")
    print(f"{report['date']}. {' '.join(report['notes'])}\nLeft out: {report['left_out']}.")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plots:
        draw_plots(report, options.plots)
    missed = any(limit["met"] is False for limit in report["limits"])
    return int(bool(report["failed"]) or (missed and not options.alone))


def simulate_atlas(work: Path) -> Path:
    """A folder with a small file like the large ones that peers/make_atlas.py writes."""
    from atlasvi.engine.simulation import simulate  # imports what this process does without

    simulate(work / "atlas0.h5ad", n_cells=3_000, n_genes=100, n_batches=2, n_types=5, seed=0)
    return work


def read_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, help="folder of atlas*.h5ad; what is built goes there, too")
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--plots", type=Path, help="folder for PNGs (needs matplotlib)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time that a process measures epochs for")
    parser.add_argument("--quick", action="store_true", help="one round, no SOMA unless it is built, no large store")
    parser.add_argument("--only", help=f"rows, comma between them: {', '.join(ROWS)}")
    parser.add_argument("--rebuild", action="store_true", help="write our stores anew, though they are there")
    large = f"a store of {COPIES} times the cells (default: if {LARGE_FREE_GB} GB are free)"
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, help=large)
    options = parser.parse_args()
    options.notes, options.alone = [], options.quick and options.atlas is None and options.peers is None
    if options.alone:
        options.rounds, options.seconds = 1, 0.1
        return options
    if options.atlas is None or options.peers is None:
        parser.error("--atlas DIR and --peers VENV are needed, or --quick alone")
    options.atlas, options.peers = options.atlas.resolve(), options.peers.absolute()
    if not sorted(options.atlas.glob("atlas*.h5ad")):
        parser.error(f"{options.atlas} holds no atlas*.h5ad: write them with benchmarks/peers/make_atlas.py.")
    if not (options.peers / "bin" / "python").exists():
        parser.error(f"{options.peers} is no virtual environment: benchmarks/peers/README.md says how to make it.")
    if options.quick:
        options.rounds = 1
    return options


def choose_rows(options: argparse.Namespace) -> list[str]:
    """The rows to run; those left out are said in the notes."""
    if options.only:
        names = options.only.split(",")
        if unknown := [name for name in names if name not in ROWS]:
            raise SystemExit(f"--only: no row is called {unknown[0]!r}; there are: {', '.join(ROWS)}.")
        return [name for name in ROWS if name in names]
    names = list(ROWS)
    if options.alone:
        options.notes.append("No peers, no SOMA, no annbatch's collection, and nothing without the page cache.")
        ours = [name for name, row in ROWS.items() if row.command.startswith("ours") and row.kind != "large"]
        return [name for name in ours if {*ROWS[name].needs} <= {"fast", "small"} and name != "uncached"]
    free_gb = shutil.disk_usage(options.atlas).free / 1e9
    if options.large is None and not options.quick and free_gb < LARGE_FREE_GB:
        options.notes.append(f"No large store: {free_gb:.0f} GB are free and it takes {LARGE_FREE_GB}.")
    if options.large is False or (options.large is None and (options.quick or free_gb < LARGE_FREE_GB)):
        names.remove("large")
    if options.quick:
        names = [name for name in names if name != "annbatch_script"]
        if not (options.atlas / "soma").exists():
            names = [name for name in names if "soma" not in ROWS[name].needs]
            options.notes.append("No SOMA: --quick does not build the experiment.")
    return names


def measure_rows(names: list[str], bench: Bench, options: argparse.Namespace) -> dict[str, dict]:
    """The figures of each row, or its error; ours and theirs in turn, round after round."""
    labels = read_labels(bench.sources)
    n_cells = len(labels)
    needed = {need for name in names for need in ROWS[name].needs}
    found = [BUILT[need] for need in BUILT if need in needed and Path(bench.places[need]).exists()]
    found = [place for place in found if not (options.rebuild and place in (BUILT["fast"], BUILT["small"]))]
    if found:
        options.notes.append(f"Built by an earlier run: {', '.join(found)}.")
    unbuilt = build_missing(needed, bench, options.rebuild)
    repeats: dict[str, list[dict]] = {name: [] for name in names}
    errors = {name: unbuilt[need] for name in names for need in ROWS[name].needs if need in unbuilt}
    for round_number in range(options.rounds):
        for name in names:
            if name not in errors and (ROWS[name].every_round or round_number == 0):
                tell(f"round {round_number + 1}: {name}")
                try:
                    repeats[name].append(measure_row(ROWS[name], bench))
                except RunError as error:
                    errors[name] = str(error)
                    tell(f"  failed: {error}")
    figures: dict[str, dict] = {}
    for name in names:
        if name in errors:
            figures[name] = {"error": errors[name]}
        elif ROWS[name].kind == "order":
            figures[name] = measure_mixing(repeats[name][0], labels)
        elif ROWS[name].kind == "ingest":
            figures[name] = summarise_ingests(repeats[name], n_cells)
        elif ROWS[name].kind == "script":
            figures[name] = repeats[name][0]
        else:
            figures[name] = summarise_epochs(repeats[name])
    for need in BUILT:
        if Path(bench.places[need]).exists() and need not in unbuilt:
            cells = read_size(bench.sources[0]) if need == "soma" else n_cells
            figures[f"bytes_{need}"] = measure_size(Path(bench.places[need]), cells)
    return figures


def build_missing(needed: set[str], bench: Bench, rebuild: bool) -> dict[str, str]:
    """Build what is needed and not there; return what could not be built, with the error."""
    unbuilt = {}
    for need in (need for need in BUILT if need in needed):
        place = Path(bench.places[need])
        ours = need in ("fast", "small")
        if ours and rebuild and place.exists():
            shutil.rmtree(place)
        if place.exists():
            continue
        tell(f"building {place.name}")
        finished = False
        try:
            if ours:
                run(bench.command(f"ours ingest {{{need}}} {need} {{sources}}"), warm=bench.warm)
            else:
                run(bench.command("script annbatch {atlas}" if need == "annbatch" else "script tiledbsoma-ml {atlas}"))
            finished = True
        except RunError as error:
            unbuilt[need] = f"building {place.name}: {error}"
            tell(f"  failed: {error}")
        finally:
            if not finished:  # a half is not to be taken for the whole by the next run
                shutil.rmtree(place, ignore_errors=True)
    return unbuilt


def measure_row(row: Row, bench: Bench) -> dict:
    """Run the process of a row once and return what it measured."""
    command = bench.command(row.command)
    try:
        if row.kind == "script":
            return read_script(run(command), "annbatch chunk 256 preload 32")
        if row.kind == "large":
            ingested = run_json(
                bench.command("ours ingest {out} fast {sources}", link_copies(bench)), watch_memory=True
            )
            return run_json(command) | {"ingest": ingested}
        if row.kind == "ingest":
            os.sync()  # what was written before is not this ingest's to wait for
            for source in bench.sources:  # a round empties the page cache at its end: both sides find it full again
                read_through(source)
        figures = run_json(command, watch_memory=row.kind == "ingest", warm=bench.warm)
        if row.kind == "order":
            with np.load(bench.order) as order:
                figures |= {"names": order["names"], "sizes": order["sizes"]}
        return figures
    finally:
        shutil.rmtree(bench.out, ignore_errors=True)


def read_through(file: Path) -> None:
    """Bring a file into the page cache."""
    with open(file, "rb", buffering=0) as opened:
        while opened.read(2**24):
            pass


def link_copies(bench: Bench) -> list[Path]:
    """Links to the atlas files under ten times as many names: as many sources as files."""
    links = []
    for copy in range(COPIES):
        for source in bench.sources:
            links.append(bench.work / f"{source.stem}_{copy}.h5ad")
            links[-1].symlink_to(source)
    return links


def read_script(said: str, tag: str) -> dict:
    """The median of what peers/plain_loaders.py prints of a configuration, its first epoch left out."""
    found = re.findall(rf"^{re.escape(tag)}.*?: (\d+) cells/s, ([\d.]+) CPU s", said, re.M)[1:]
    if not found:
        raise RunError(f"peers/plain_loaders.py printed nothing of {tag!r}")
    rates, cpu = ([float(value) for value in values] for values in zip(*found))
    return {
        "cells_per_s": statistics.median(rates),
        "cells_per_s_by_process": rates,
        "cells_per_s_range": [min(rates), max(rates)],
        "cpu_s_per_100k_cells": statistics.median(cpu),
    }


def read_labels(sources: list[Path]) -> pd.DataFrame:
    """Codes of the labels of all cells of the h5ad files, by cell name."""
    frames = []
    for number, source in enumerate(sources):
        with h5py.File(source, "r") as file:
            obs = read_elem(file["obs"])[["cell_type", "batch"]].astype(str)
        frames.append(obs.assign(source_block=[f"{number}:{row // SOURCE_BLOCK}" for row in range(len(obs))]))
    labels = pd.concat(frames)
    if not labels.index.is_unique:
        raise SystemExit(
            f"{sources[0].parent}: cell names occur more than once over the files: cells can't be followed."
        )
    return labels.apply(lambda column: pd.factorize(column)[0])


def read_size(source: Path) -> int:
    """Cells in an h5ad file."""
    with h5py.File(source, "r") as file:
        return len(read_elem(file["obs"]))


def measure_mixing(order: dict, labels: pd.DataFrame) -> dict:
    """Entropies of the minibatches of an epoch, and whether it visited each cell once."""
    visited = labels.index.get_indexer(order["names"])
    if (visited < 0).any():
        return {"error": f"cell {order['names'][visited < 0][0]!r} is in none of the h5ad files"}
    if (order["sizes"][:-1] != BATCH).any():
        return {"error": f"minibatches of {sorted(set(order['sizes'][:-1].tolist()))} cells instead of {BATCH}"}
    codes = {name: labels[name].to_numpy() for name in labels}
    return {
        "entropies": compare_entropies(codes, visited, BATCH),
        "cells_visited": len(visited),
        "cells_visited_again": len(visited) - len(np.unique(visited)),
    }


def measure_size(place: Path, cells: int) -> dict:
    """Bytes per cell of a store, of all its files and of those of X (for a SOMA experiment: of ms)."""
    files = [(file.relative_to(place).parts, file.stat().st_size) for file in list_files(place)]
    of_x = sum(size for parts, size in files if "X" in parts)
    return {
        "bytes_per_cell": sum(size for _, size in files) / cells,
        "bytes_per_cell_of_x": of_x / cells,
        "cells": cells,
    }


def make_report(figures: dict[str, dict], bench: Bench, options: argparse.Namespace) -> dict:
    """Everything that is written to JSON."""
    uncached = [figures.get(name, {}).get("repeats", []) for name in ("uncached", "uncached_annbatch")]
    emptied = {repeat["cache_emptied"] for repeats in uncached for repeat in repeats}
    notes = [*options.notes, *(f"Page cache emptied by {how}." for how in sorted(emptied))]
    ranges = {ratio.name: range_ratio(ratio, figures) for ratio in RATIOS}
    return {
        "ratios": compute_ratios(figures),
        "ratio_ranges": {name: spread for name, spread in ranges.items() if spread},
        "limits": check_limits(figures),
        "failed": list_failures(figures),
        "figures": figures,
        "machine": describe_machine(),
        "versions": {
            "ours": read_versions(bench.command("ours versions"), bench.warm),
            **({} if options.alone else {"peers": read_versions(bench.command("peer versions"))}),
        },
        "date": date.today().isoformat(),
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "batch_size": BATCH, "quick": options.quick},
        "notes": notes,
        "left_out": LEFT_OUT,
    }


def read_versions(command: list[str], warm: bool = False) -> dict[str, str]:
    """The versions of one side."""
    try:
        return json.loads(run(command, warm=warm).strip().splitlines()[-1])
    except RunError as error:
        return {"error": str(error)}


def describe_machine() -> dict:
    """Processor, cores, memory and kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def tell(message: str) -> None:
    """Say on stderr what is being done."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
