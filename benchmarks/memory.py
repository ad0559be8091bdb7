"""Does memory grow with the atlas? Peak memory of simulate, ingest and train on 100,000 and on 500,000 cells.

    python benchmarks/memory.py --work /a/disk/with/5/GB [--out memory.json] [--set max_steps=200 ...]
    python benchmarks/memory.py --work DIR --quick             400 and 800 cells, to see that it runs

Each command runs as a user types it, in a process of its own; its peak is what the kernel reports at the end
(`ru_maxrss`: resident memory, libraries and mapped files included). The answer is yes if a figure of the larger atlas
is more than 10% above that of the smaller one; then the exit status is 1.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from processes import Child

ALLOWED_RATIO = 1.10
LEFT_OUT = (
    "the page cache, which the kernel takes back; GPU memory; real data, whose cells differ more in length; more than "
    "one epoch; other batch sizes and numbers of genes"
)


def main() -> int:
    """Measure, print the table, write JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the atlases go, about 5 GB; emptied at the end")
    parser.add_argument("--out", type=Path, help="JSON of the figures (default: WORK/memory.json)")
    parser.add_argument("--cells", type=int, nargs=2, default=[100_000, 500_000], metavar=("FEW", "MANY"))
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=1_024)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of train")
    parser.add_argument("--quick", action="store_true", help="400 and 800 cells x 100 genes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.genes, arguments.batch_size = [400, 800], 100, 128
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="memory-", dir=arguments.work))
    try:
        runs = {cells: measure_atlas(cells, arguments, work) for cells in arguments.cells}
    finally:
        shutil.rmtree(work)
    report = make_report(runs, arguments)
    print_report(report)
    out = arguments.out or arguments.work / "memory.json"
    out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(row["ratio"] > ALLOWED_RATIO for row in report["rows"]))


def measure_atlas(cells: int, arguments: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    """Simulate, ingest and train on an atlas of `cells`; per command its peak memory and time."""
    atlas, store, run = (str(work / f"{cells}{ending}") for ending in (".h5ad", ".store", ".run"))
    shape = ["--cells", str(cells), "--genes", str(arguments.genes), "--batches", "3", "--types", "12", "--seed", "0"]
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    training = ["--batch-key", "batch", "--epochs", "1", "--batch-size", str(arguments.batch_size), "--device", "cpu"]
    figures = {
        "simulate": measure_command(["simulate", atlas, *shape], arguments.quick),
        "ingest": measure_command(["ingest", atlas, "--out", store], arguments.quick),
    }
    os.remove(atlas)
    figures["train"] = measure_command(["train", store, "--out", run, *training, *settings], arguments.quick)
    shutil.rmtree(store)
    return figures


def measure_command(words: list[str], warm: bool) -> dict[str, float]:
    """Run one atlasvi command; its peak resident memory in MB and its time in seconds. SystemExit if it fails.

    This process stays small: what it held at the start of the command would count as the command's.
    """
    command = [sys.executable, "-m", "atlasvi.engine.cli.commands", *words]
    print("$ atlasvi", *words, file=sys.stderr, flush=True)
    started = time.perf_counter()
    child = Child(command, sys.stderr.fileno(), warm=warm)
    while not child.wait(1):
        pass
    seconds = time.perf_counter() - started
    if child.status != 0:
        raise SystemExit(f"memory: atlasvi {words[0]} failed (status {child.status}).")
    return {"peak_mb": round(child.usage["peak_mb"], 1), "seconds": round(seconds, 1)}


def make_report(runs: dict[int, dict[str, dict[str, float]]], arguments: argparse.Namespace) -> dict:
    """Put the two atlases side by side, with what is needed to repeat it."""
    few, many = arguments.cells
    rows = [
        {
            "command": command,
            "peak_mb": {str(cells): runs[cells][command]["peak_mb"] for cells in (few, many)},
            "seconds": {str(cells): runs[cells][command]["seconds"] for cells in (few, many)},
            "ratio": round(runs[many][command]["peak_mb"] / runs[few][command]["peak_mb"], 3),
        }
        for command in runs[few]
    ]
    return {
        "rows": rows,
        "genes": arguments.genes,
        "batch_size": arguments.batch_size,
        "settings": arguments.set,
        "date": date.today().isoformat(),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("atlasvi", "torch", "zarr", "h5py", "numpy")},
        "left_out": LEFT_OUT,
    }


def processor_name() -> str:
    """Name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def print_report(report: dict) -> None:
    """Print the table."""
    few, many = report["rows"][0]["peak_mb"]
    print(f"Peak memory, MB ({report['genes']:,} genes, batch {report['batch_size']:,}, one epoch)\n")
    print(f"| command | {int(few):,} cells | {int(many):,} cells | ratio | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in report["rows"]:
        peak, seconds = row["peak_mb"], row["seconds"]
        times = f"{seconds[few]:,.0f} / {seconds[many]:,.0f}"
        print(f"| {row['command']} | {peak[few]:,.0f} | {peak[many]:,.0f} | {row['ratio']:.3f} | {times} |")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(f"\n{report['machine']}; {versions}; {report['date']}.")
    print(f"Settings: {', '.join(report['settings']) or 'the defaults'}. Left out: {report['left_out']}.")


if __name__ == "__main__":
    sys.exit(main())
