"""Is all of it right on a GPU, and how fast is it beside what the device can do at most?

    python benchmarks/gpu.py --out DIR [--counts onek1k.h5ad] [--parts tests checks kernels training peers] [--quick]

One command for a CUDA machine, in parts that each run in a process of their own and end within their share of about ten
minutes; what a part has found is kept when it, or another, fails:

    tests     pytest -m gpu
    checks    gpu_checks.py: every option of the kernels against float64
    kernels   gpu_kernels.py: kernels beside the roofline and plain torch
    training  gpu_training.py: the step alone, from disk, and the questions asked afterwards
    peers     peers/gpu.py: scvi-tools on the same card

Counts are random with genes of unlike frequency, 5% not zero; held-out losses are of the real counts of --counts.
Writes a JSON file and a log for each part, profiles.txt and table.md into DIR; prints the table last. Its status is 1
if a part fails or a target is not met. --quick makes everything small, to try the script where there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from processes import Child

HERE = Path(__file__).resolve().parent
LIMITS_S = {"tests": 150, "checks": 60, "kernels": 90, "training": 180, "peers": 150}
"""Seconds that each part may take; it is stopped then."""
LEAST = {
    "likelihood: share of copy bandwidth": 0.7,
    "decoder: share of the larger floor": 0.5,
    "step, 4,096 cells: cells/s": 1e6,
    "step, 512 cells: cells/s": 5e5,
    "from disk / step alone, 4,096 cells": 0.9,
    "from disk / step alone, 512 cells": 0.9,
}
MOST = {"largest error, float32": 1e-5, "from disk, 4,096 cells: host memory at most, GB": 2.0}


def main() -> int:
    """Run the parts, write the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS_S), default=list(LIMITS_S))
    parser.add_argument("--counts", type=Path, help="real counts with a column `indiv`, for the held-out loss")
    parser.add_argument("--work", type=Path, help="folder for the store (default: a temporary one)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.quick:
        print("gpu.py needs a CUDA device, and torch sees none here (--quick tries it without).", file=sys.stderr)
        return 2
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        statuses = run_parts(options, (options.work or Path(temporary)).resolve() / "random.store")
    found = read_figures(options.out)
    table = format_table(found, statuses)
    (options.out / "table.md").write_text(table)
    print(table)
    met = all(status == 0 for status in statuses.values())
    return 0 if met and (options.quick or all(is_met(name, value) for name, value in found["figures"].items())) else 1


def run_parts(options: argparse.Namespace, store: Path) -> dict[str, int | str]:
    """The exit status of each part, or why it did not run. The store is written meanwhile, which takes no GPU."""
    quick = ["--quick"] if options.quick else []
    common = ["--out", options.out, *quick]
    commands: dict[str, list] = {
        "tests": ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"],
        "checks": [HERE / "gpu_checks.py", *common],
        "kernels": [HERE / "gpu_kernels.py", *common],
        "training": [HERE / "gpu_training.py", *common, "--store", store],
        "peers": [HERE / "peers" / "gpu.py", *common, *(["--counts", options.counts] if options.counts else [])],
    }
    if importlib.util.find_spec("xdist"):
        commands["tests"] += ["-n", str(min(os.cpu_count() or 1, 8))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    statuses: dict[str, int | str] = {}
    with (options.out / "store.log").open("w") as log:
        written_first = "training" in options.parts and not options.quick  # else the part itself writes it
        arguments = [*map(str, commands["training"]), "--only-store"] if written_first else ["-c", ""]
        writing = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env=environment)
        for part in options.parts:
            if part == "tests" and not torch.cuda.is_available():
                statuses[part] = "needs a GPU"
                continue
            if part == "training":
                writing.wait()
            statuses[part] = run_part(part, commands[part], options.out / f"{part}.log", environment, options.quick)
        writing.wait()
    return statuses


def run_part(part: str, arguments: list, log: Path, environment: dict[str, str], quick: bool) -> int | str:
    """Run a part to its end or to its limit, its output in its log; a failed one's end is printed too.

    quick  without a limit, since whoever tries the script has other things running; and warm (`processes.Child`)
    """
    began = time.perf_counter()
    print(f"{part} ...", file=sys.stderr, flush=True)
    command: list[str] = [sys.executable, *map(str, arguments)]
    status: int | str
    with log.open("w") as output:
        if quick and part != "tests":
            child = Child(command, output.fileno(), output.fileno(), warm=True)
            while not child.wait(1):
                pass
            status = child.status
        else:
            limit_s = None if quick else LIMITS_S[part]
            try:
                status = subprocess.run(
                    command, stdout=output, stderr=output, env=environment, cwd=HERE.parent, timeout=limit_s
                ).returncode
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit_s} s"
    print(f"{part}: {time.perf_counter() - began:.0f} s, status {status}", file=sys.stderr, flush=True)
    if status != 0:
        print(log.read_text()[-3_000:], file=sys.stderr, flush=True)
    return status


def read_figures(out: Path) -> dict:
    """Machine and figures of all parts that have written any, and what follows from them together."""
    machine: dict = {}
    figures: dict = {}
    for part in ("checks", "kernels", "training", "peers"):
        if not (out / f"{part}.json").exists():
            continue
        found = json.loads((out / f"{part}.json").read_text())
        machine = found["machine"]
        figures |= found.get("figures", {})
        if errors := found.get("errors"):
            for precision in ("float32", "bf16"):
                some = {
                    name: error for name, error in errors.items() if name.endswith(", bf16") == (precision == "bf16")
                }
                if some:
                    worst = max(some, key=lambda name: some[name])
                    figures[f"largest error, {precision}"] = some[worst]
                    figures[f"largest error, {precision}, is of"] = worst
    figures |= derive(figures)
    return {"machine": machine, "figures": figures}


def derive(figures: dict) -> dict:
    """Shares of the floors, and the best step of each size."""
    derived = {}
    if "decoder: ms" in figures and "copy: GB/s" in figures:
        derived |= floors(figures)
    for size in ("512", "4,096"):
        steps = {
            how: figures[name]
            for how in ("float32", "bf16")
            if (name := f"step, {size} cells, {how}, graph: cells/s") in figures
        }
        if not steps:
            continue
        derived[f"step, {size} cells: cells/s"] = steps["float32"]
        if (name := f"from disk, {size} cells: cells/s") in figures:
            derived[f"from disk / step alone, {size} cells"] = figures[name] / steps["float32"]
    return derived


def floors(figures: dict, cells: int = 4_096, genes: int = 20_000, hidden: int = 128) -> dict:
    """The least time of output layer and likelihood, by products and by bytes, and the share of the larger reached.

    Three products of cells x genes x hidden at the rate of a large square product. Bytes: weights and hidden states
    read, their gradients written; logits need not reach memory at all.
    """
    shares = {}
    for how, suffix in (("float32", ""), ("bf16", ", bf16")):
        if f"decoder{suffix}: ms" not in figures or f"square product, {how}: TFLOP/s" not in figures:
            continue
        products_ms = 3 * 2 * cells * genes * hidden / figures[f"square product, {how}: TFLOP/s"] / 1e9
        bytes_ms = 2 * 4 * (genes + cells) * hidden / figures["copy: GB/s"] / 1e6
        shares[f"decoder{suffix}: floor by products, ms"] = products_ms
        shares[f"decoder{suffix}: floor by bytes, ms"] = bytes_ms
        larger = max(products_ms, bytes_ms)
        shares[f"decoder{suffix}: share of the larger floor"] = larger / figures[f"decoder{suffix}: ms"]
    return shares


def is_met(name: str, value: object) -> bool:
    """Whether a figure meets its target; one without a target does."""
    if not isinstance(value, (int, float)):
        return True
    return value >= LEAST.get(name, value) and value <= MOST.get(name, value)


def format_table(found: dict, statuses: dict[str, int | str]) -> str:
    """All figures as Markdown."""
    machine = found["machine"]
    lines = [", ".join(f"{key} {value}" for key, value in machine.items())]
    lines += [", ".join(f"{part}: {'passed' if status == 0 else status}" for part, status in statuses.items()), ""]
    lines += ["| figure | value | target | |", "| --- | ---: | ---: | --- |"]
    for name, value in found["figures"].items():
        target = f">= {LEAST[name]:,g}" if name in LEAST else f"<= {MOST[name]:,g}" if name in MOST else ""
        met = ("met" if is_met(name, value) else "NOT MET") if target else ""
        shown = f"{value:,.4g}" if isinstance(value, (int, float)) else value
        if isinstance(value, (int, float)) and abs(value) >= 1e4:
            shown = f"{value:,.0f}"
        lines.append(f"| {name} | {shown} | {target} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
