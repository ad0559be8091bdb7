"""From an atlas to answers: time, memory and disk of each step for 100,000, 1,000,000 and 10,000,000 cells.

    python benchmarks/atlas.py --work /a/disk/with/35/GB [--cells 100000 1000000 10000000] [--set KEY=VALUE ...]
    python benchmarks/atlas.py --work DIR --quick          a small one, to see that it runs

Simulate with known truth, ingest, train for one epoch, minify, ask. Each step is a command as a user types it, in a
process of its own. Its figures go to WORK/atlas.json when it is finished, so the same command continues where it was
stopped: a step that was not finished is done again from its start. What no later step needs is deleted at once.

`peak` is the resident memory of a step's largest process as the kernel reports it (libraries and mapped files
included), `all` that of all its processes, sampled, what they share counted once. The exit status is 1 if the largest
peak, without the bytes per cell that are stated, is more than 1.1 times that at a tenth of the cells (from 1,000,000
on: below, buffers are not full yet).
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

from atlas_report import find_growth, forecast, print_report
from memory import processor_name
from processes import Child, sum_memory_mb

TYPES, BATCHES, SEED = 30, 8, 1
SAMPLE_S = 1.0
BYTES_PER_COUNT, BYTES_PER_CELL = 16.3, 110  # on disk at the most, while ingest ends: h5ad, sorted, encoded and stored


@dataclass(frozen=True)
class Step:
    """A step of the job.

    words   the command, given the folder of all steps of this size and the options
    makes   the name of what it makes there
    stated  bytes that it may hold for each cell: a code or a mark of a cell and covariate, or condition
    drops   what no later step needs, and is removed
    ours    the command is one of this file, not of atlasvi
    """

    name: str
    words: Callable[[Path, argparse.Namespace], list[str]]
    makes: str
    stated: float = 0
    drops: tuple[str, ...] = ()
    ours: bool = False


def _train(at: Path, options: argparse.Namespace) -> list[str]:
    words = ["train", f"{at}/store", "--out", f"{at}/run", "--batch-key", "batch", "--epochs", "1", "--seed", "1"]
    words += ["--batch-size", str(options.batch_size), "--device", options.device]
    return [*words, *(word for setting in options.set for word in ("--set", setting))]


STEPS = (
    Step(
        "simulate",
        lambda at, options: [
            *("simulate", f"{at}/atlas.h5ad", "--cells", at.name, "--genes", str(options.genes)),
            *("--batches", str(BATCHES), "--types", str(TYPES), "--seed", str(SEED)),
        ],
        "atlas.h5ad",
    ),
    Step("ingest", lambda at, _: ["ingest", f"{at}/atlas.h5ad", "--out", f"{at}/store"], "store", 0, ("atlas.h5ad",)),
    Step("hold three covariates", lambda at, _: ["--hold", f"{at}/store"], "", 12, ours=True),
    Step("train, one epoch", _train, "run", 4),
    Step(
        "minify",
        lambda at, options: ["minify", f"{at}/run", f"{at}/store", "--out", f"{at}/mini", "--device", options.device],
        "mini",
        4,
        ("store",),
    ),
    Step(
        "expression of two genes in one type",
        lambda at, options: [
            *("query", f"{at}/mini", "expression", "--genes", ",".join(name_genes(options.genes))),
            *("--where", "cell_type=type_03", "--library-size", "10000", "--out", f"{at}/expression.csv"),
        ],
        "expression.csv",
        4,
        ("expression.csv",),
    ),
    Step(
        "differential expression of one type",
        lambda at, _: [
            *("query", f"{at}/mini", "differential", "--groupby", "cell_type", "--group1", "type_03"),
            *("--mode", "change", "--out", f"{at}/differential.csv"),
        ],
        "differential.csv",
        4,
        ("differential.csv",),
    ),
    Step(
        "latents of all cells",
        lambda at, _: ["query", f"{at}/mini", "latent", "--out", f"{at}/latents.npz"],
        "latents.npz",
        0,
        ("latents.npz",),
    ),
    Step("right types", lambda at, _: ["--types", f"{at}/mini", f"{at}/run"], "", 0, ("mini", "run"), ours=True),
)


def main() -> int:
    """Run what is not done yet, print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where atlases and figures go")
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=1_024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of train")
    parser.add_argument("--quick", action="store_true", help="2,000 cells x 100 genes")
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--types", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold or options.types:
        import atlas_measures  # imports torch, which this process does without

        found = atlas_measures.hold(options.hold) if options.hold else atlas_measures.judge_types(*options.types)
        print(json.dumps(found))
        return 0
    if options.work is None:
        parser.error("--work is needed: the folder where atlases and figures go")
    if options.quick:
        options.cells, options.genes, options.batch_size = [2_000], 100, 256
    work = options.work / f"{options.genes}-{options.batch_size}-{options.device}"
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the step that runs, too
    report = read_report(work, options)
    check_disk(work, report, options)
    started = time.monotonic()
    for cells in sorted(options.cells):
        for step in STEPS:
            done = report["figures"].setdefault(str(cells), {})
            if step.name in done:
                continue
            clean(work / str(cells), done)
            say(f"{cells:,} cells: {step.name}{describe_forecast(report, cells, step.name, sorted(options.cells))}")
            done[step.name] = take_step(step, work / str(cells), options)
            report["total_s"] = round(report.get("total_s", 0) + time.monotonic() - started, 1)
            started = time.monotonic()
            write_report(work, report)
        clean(work / str(cells), report["figures"][str(cells)])
    print_report(report)
    grown = find_growth(report["figures"], {step.name: step.stated for step in STEPS})
    for line in grown:
        print(f"\nNOT MET: {line}")
    return int(bool(grown))


def take_step(step: Step, at: Path, options: argparse.Namespace) -> dict:
    """Run a step from its start and return its figures. SystemExit if it fails."""
    program = [str(Path(__file__).resolve())] if step.ours else ["-m", "atlasvi.engine.cli.commands"]
    command, said = [sys.executable, *program, *step.words(at, options)], at / "said"
    if not step.ours:
        say(f"$ atlasvi {' '.join(command[3:])}")
    before, began = disk_bytes(at), time.perf_counter()
    all_mb, disk = 0.0, before
    with said.open("wb") as out:
        child = Child(command, out.fileno(), warm=options.quick)
        try:
            while not child.wait(min(SAMPLE_S, 0.05 + (time.perf_counter() - began) / 50)):
                all_mb, disk = max(all_mb, sum_memory_mb(child.pid)), max(disk, disk_bytes(at))
        finally:
            child.kill(signal.SIGTERM)
    seconds = time.perf_counter() - began
    if child.status:
        raise SystemExit(f"atlas: {step.name} failed (status {child.status}); its figures are not kept.")
    peak_mb = child.usage["peak_mb"]
    figures = {
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_mb, 1),
        "all_mb": round(max(all_mb, peak_mb), 1),
        "disk_gb": round(max(disk, disk_bytes(at)) / 1e9, 3),
        "made_gb": round(disk_bytes(at / step.makes) / 1e9, 3) if step.makes else 0,
        "cores_busy": round(child.usage["cpu_s"] / seconds, 2),
        "read_mb_per_s": round(child.usage["read_mb"] / seconds, 1),
        "written_mb_per_s": round(child.usage["written_mb"] / seconds, 1),
    }
    if step.ours:
        figures["found"] = json.loads(said.read_text().splitlines()[-1])
    return figures


def read_report(work: Path, options: argparse.Namespace) -> dict:
    """The figures so far, or none. SystemExit if they are of other settings."""
    asked = {
        "genes": options.genes,
        "batch_size": options.batch_size,
        "settings": options.set,
        "device": options.device,
    }
    path = work / "atlas.json"
    if path.exists():
        report = json.loads(path.read_text())
        if any(report[name] != value for name, value in asked.items()):
            raise SystemExit(f"atlas: {path} holds figures of other settings: remove it, or choose another --work.")
        return report
    versions = {name: version(name) for name in ("atlasvi", "torch", "zarr", "h5py", "numpy")}
    return {**asked, "machine": f"{processor_name()}, {os.cpu_count()} cores", "versions": versions, "figures": {}}


def write_report(work: Path, report: dict) -> None:
    """Replace the file of figures in one step."""
    report["date"] = date.today().isoformat()
    (work / "atlas.json.new").write_text(json.dumps(report, indent=2) + "\n")
    os.replace(work / "atlas.json.new", work / "atlas.json")


def check_disk(work: Path, report: dict, options: argparse.Namespace) -> None:
    """Say how much disk is needed; SystemExit if there is less."""
    left = [cells for cells in options.cells if len(report["figures"].get(str(cells), {})) < len(STEPS)]
    if not left:
        return
    need, there = need_bytes(max(left), options.genes), disk_bytes(work)
    free = shutil.disk_usage(work).free + there
    say(
        f"{need / 1e9:,.1f} GB of disk are needed at the most (while {max(left):,} cells are ingested), "
        f"{free / 1e9:,.1f} are free."
    )
    if need > free:
        raise SystemExit(f"atlas: {work} has too little room: choose another --work, or fewer --cells.")


def need_bytes(cells: int, genes: int) -> float:
    """Bytes on disk at the most for an atlas of this size, from the counts in its first cells."""
    from atlasvi.engine.simulation import Process, draw_blocks, draw_truth

    process, few = Process(), min(cells, 2_000)
    truth = draw_truth(max(few, TYPES), genes, BATCHES, TYPES, SEED, process)
    block = next(draw_blocks(truth, SEED, process)).counts
    return cells * (BYTES_PER_COUNT * block.nnz / block.shape[0] + BYTES_PER_CELL)


def name_genes(n_genes: int) -> list[str]:
    """The names of two genes of the simulated atlas."""
    from atlasvi.engine.simulation import number_names

    return [number_names("gene_", n_genes, k, k + 1)[0] for k in (3, 7)]


def describe_forecast(report: dict, cells: int, step: str, sizes: list[int]) -> str:
    """How long this step and all that are left will take, from the figures of fewer cells; '' if there are none."""
    names = [each.name for each in STEPS]
    here, left = forecast(report["figures"], names, sizes, cells, step)
    if here is None:
        return ""
    known = "" if left is None else f"; all that is left: {timedelta(seconds=round(left))}"
    return f", about {here:,.0f} s{known}"


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; files and folders may come and go meanwhile."""
    total = path.stat().st_size if path.is_file() else 0
    for folder, _, names in os.walk(path):  # leaves out a folder that has gone, where Path.rglob raises
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def clean(at: Path, done: dict) -> None:
    """Remove all but what finished steps made and later ones need: also what a step left that was stopped."""
    at.mkdir(exist_ok=True)
    finished = [step for step in STEPS if step.name in done]
    kept = {step.makes for step in finished} - {name for step in finished for name in step.drops}
    for path in at.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
