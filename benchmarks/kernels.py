"""How fast are the fused kernels on this CPU, beside plain torch, scvi-tools, and what the machine can do at most?

    python benchmarks/kernels.py [--peers VENV] [--json FILE] [--cells 1024] [--genes 20000] [--rounds 3]
    python benchmarks/kernels.py --only sample --quick   # of one kernel, small: does it run?

Forward and backward, 5% of the counts not zero, float32, all cores; every measurement is a process of its own, in
turn, a figure the median over the rounds. `logits` is the likelihood from logits, `decoder` the output layer (128
hidden) and likelihood, `first` the sparse first layer; `torch` the plain reference, eager. `sample` draws counts from
the decoder's hidden state (output layer, 5,000 counts per cell; forward alone), and its `torch` draws them dense, by
torch's own gamma and Poisson. The bound of a kernel is the time of its bytes at the measured rate of a copy plus that
of its operations at the rate of a matrix product: the least work that it has, not what it does.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

from processes import run_json

HERE = Path(__file__).resolve().parent
HIDDEN = 128
DENSITY = 0.05
KERNELS = "logits", "decoder", "first", "sample"


def main() -> int:
    """Measure, print the table, write JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment: scvi-tools' likelihood too")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=KERNELS, nargs="+", default=KERNELS, help="the kernels to measure")
    parser.add_argument("--quick", action="store_true", help="64 cells x 500 genes, one round")
    options = parser.parse_args()
    if options.quick:
        options.cells, options.genes, options.rounds = 64, 500, 1
    size = [str(options.cells), str(options.genes)]

    def ours(*arguments: str) -> dict:
        return run_json([sys.executable, str(HERE / "kernel_runs.py"), *arguments], warm=options.quick)

    said: dict[str, list[dict]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for what in options.only:
            for backend in ("cpu", "torch"):
                said.setdefault(f"{what} {backend}", []).append(ours(what, *size, backend))
        if options.peers:
            peer = run_json([str(options.peers / "bin" / "python"), str(HERE / "peers" / "kernels.py"), *size])
            said.setdefault("scvi-tools eager", []).append(peer["eager"])
            if peer["compiled"]["ms"] is not None:
                said.setdefault("scvi-tools compiled", []).append(peer["compiled"])
    copy = product = math.nan
    if not options.quick:
        copy, product = ours("copy", *size)["copy"], ours("matmul", *size)["matmul"]
    bounds = count_bounds(options.cells, options.genes, copy, product)
    report = summarise(said, {what: bounds[what] for what in options.only})
    report |= {"cells": options.cells, "genes": options.genes, "copy_bytes_per_s": copy, "matmul_flop_per_s": product}
    print(format_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def count_bounds(cells: int, genes: int, copy: float, product: float) -> dict[str, float]:
    """Least milliseconds of each kernel: bytes of what must be read and written, and operations of its products."""
    nnz, logits, weight = DENSITY * cells * genes, 4 * cells * genes, 4 * genes * HIDDEN
    bytes_moved = {
        "logits": 2 * logits + 3 * nnz,  # logits read, slopes written
        "decoder": 3 * weight + 3 * nnz,  # weight read, its gradient read and written
        "first": 2 * weight + 2 * 3 * nnz,
        "sample": weight,  # and the counts that are not zero, whose number is not known here
    }
    operations = {
        "logits": 0.0,
        "decoder": 3 * 2.0 * cells * genes * HIDDEN,
        "first": 2 * 2.0 * nnz * HIDDEN,
        "sample": 2.0 * cells * genes * HIDDEN,
    }
    return {name: 1e3 * (bytes_moved[name] / copy + operations[name] / product) for name in bytes_moved}


def summarise(said: dict[str, list[dict]], bounds: dict[str, float]) -> dict:
    """Medians, ratios and bounds."""

    def pick(name: str, what: str) -> float:
        return statistics.median(run[what] for run in said[name])

    figures = {name: {"ms": pick(name, "ms"), "peak_mb": pick(name, "peak_mb")} for name in said}
    ratios = {f"{what}_vs_torch": pick(f"{what} torch", "ms") / pick(f"{what} cpu", "ms") for what in bounds}
    for peer in ("eager", "compiled"):
        if f"scvi-tools {peer}" in said and "logits" in bounds:
            ratios[f"likelihood_vs_scvi_{peer}"] = pick(f"scvi-tools {peer}", "ms") / pick("logits cpu", "ms")
    if "decoder" in bounds and pick("decoder torch", "peak_mb") > 0:  # little memory (--quick) may be there already
        ratios["decoder_memory_vs_torch"] = pick("decoder cpu", "peak_mb") / pick("decoder torch", "peak_mb")
    return {
        "ratios": ratios,
        "figures": figures,
        "bounds_ms": bounds,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "system": platform.platform()},
        "date": date.today().isoformat(),
    }


def format_table(report: dict) -> str:
    """The report as lines of text."""
    lines = [
        f"{report['cells']:,} cells x {report['genes']:,} genes, {report['machine']['cores']} cores: "
        f"copies {report['copy_bytes_per_s'] / 1e9:.0f} GB/s, products {report['matmul_flop_per_s'] / 1e9:.0f} GFLOP/s",
        f"{'kernel':<24}{'ms':>10}{'cells/s':>12}{'MB':>10}{'bound, ms':>12}",
    ]
    for name, figure in report["figures"].items():
        what, _, side = name.partition(" ")
        bound = f"{report['bounds_ms'][what]:>12.1f}" if side == "cpu" else ""
        rate = 1e3 * report["cells"] / figure["ms"]
        lines.append(f"{name:<24}{figure['ms']:>10.1f}{rate:>12,.0f}{figure['peak_mb']:>10,.0f}{bound}")
    return "\n".join([*lines, "", *(f"{name:<32}{ratio:>8.2f}" for name, ratio in report["ratios"].items())])


if __name__ == "__main__":
    sys.exit(main())
