"""How many cells per second does scVI train on a CPU, end to end, ours from disk and scvi-tools from memory?

    python benchmarks/training.py --peers VENV --json FILE [--only 20000x1024,...] [--rounds N] [--work DIR]
    python benchmarks/training.py --quick [--json FILE]          500 cells x 300 genes, one round, without scvi-tools

Random counts as peers/training.py draws them (5% dense at 20,000 genes, 10% at 3,000; 12 batches),
model-card settings, all cores. Ours reads a cell store of the same counts, which is written first and not timed. Every
measurement is a process of its own, ours and theirs in turn; a figure is the median over the rounds. At 20,000 x 1,024
two stronger settings of the peer are measured too: compiled, and with its C allocator told to keep its memory. Ratios,
keyed GENESxBATCH, are against the peer's plain run; `best_20000x1024` is against the best of its three.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

from processes import RunError, run, run_json

HERE = Path(__file__).resolve().parent
DENSITY = {20_000: 0.05, 3_000: 0.1, 300: 0.1}
CASES = {"20000x1024": 10.0, "20000x128": 4.0, "3000x1024": 5.0, "3000x128": 2.5}
BEST_LIMIT = 5.5
PEER_CELLS = {20_000: 8_192, 3_000: 32_768}  # an epoch of theirs takes many seconds
OUR_CELLS = {20_000: 16_384, 3_000: 65_536, 300: 500}
QUICK = "300x128"
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def main() -> int:
    """Measure, print the table, write JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--only", help=f"cases, comma between them: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the stores (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="small, without the peer")
    options = parser.parse_args()
    if options.peers is None and not options.quick:
        parser.error("--peers is needed, or --quick")
    cases = [QUICK] if options.quick else options.only.split(",") if options.only else list(CASES)
    options.rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        figures = {case: measure(case, work, options) for case in cases}
    report = summarise(figures)
    print(format_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(limit["met"] for limit in report["limits"].values()) else 1


def measure(case: str, work: Path, options: argparse.Namespace) -> dict[str, list[dict]]:
    """What each side said, round after round: {"ours": [...], "peer": [...], ...}."""
    genes, batch = map(int, case.split("x"))
    store = work / f"{genes}.store"
    script = str(HERE / "training_runs.py")
    if not store.exists():
        words = ["store", str(store), str(genes), str(OUR_CELLS[genes]), str(DENSITY[genes])]
        run([sys.executable, script, *words], warm=options.quick)
    sides: dict[str, list[dict]] = {}
    for number in range(options.rounds):
        print(f"{case}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        ours = [sys.executable, script, "train", str(store), str(batch), "4"]
        sides.setdefault("ours", []).append(run_json(ours, warm=options.quick))
        if options.quick:
            continue
        peer = [str(options.peers / "bin" / "python"), str(HERE / "peers" / "training.py")]
        peer += [str(genes), str(PEER_CELLS[genes]), str(batch), str(DENSITY[genes])]
        sides.setdefault("peer", []).append(read_peer(run(peer)))
        if case == "20000x1024":
            keep = ["env", *(f"{name}={value}" for name, value in KEEP_MEMORY.items()), *peer]
            sides.setdefault("peer, allocator kept", []).append(read_peer(run(keep)))
            try:
                sides.setdefault("peer, compiled", []).append(read_peer(run([*peer, "compile"])))
            except RunError as error:  # needs a C++ compiler
                print(f"{case}: the compiled peer failed: {error}", file=sys.stderr)
    return {name: said for name, said in sides.items() if said}


def read_peer(said: str) -> dict:
    """Cells per second and memory of the measured run, from the peer script's output."""
    found = re.search(r"measured: (\d+) cells/s.*?([\d.]+) GB", said)
    if found is None:
        raise RunError(f"peers/training.py printed no figures: {said[-200:]!r}")
    return {"cells_per_s": float(found[1]), "peak_mb": 1e3 * float(found[2])}


def summarise(figures: dict[str, dict[str, list[dict]]]) -> dict:
    """Medians, ratios, and whether the limits are met."""
    medians = {
        case: {side: statistics.median(said["cells_per_s"] for said in runs) for side, runs in sides.items()}
        for case, sides in figures.items()
    }
    ratios = {case: sides["ours"] / sides["peer"] for case, sides in medians.items() if "peer" in sides}
    limits = {case: {"at_least": CASES[case], "met": ratio >= CASES[case]} for case, ratio in ratios.items()}
    if "20000x1024" in medians:
        sides = medians["20000x1024"]
        ratios["best_20000x1024"] = sides["ours"] / max(rate for side, rate in sides.items() if side != "ours")
        met = ratios["best_20000x1024"] >= BEST_LIMIT
        limits["best_20000x1024"] = {"at_least": BEST_LIMIT, "met": met}
    return {
        "ratios": ratios,
        "limits": limits,
        "cells_per_s": medians,
        "figures": figures,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "system": platform.platform()},
        "date": date.today().isoformat(),
    }


def format_table(report: dict) -> str:
    """The report as lines of text."""
    lines = [f"{'genes x batch':<18}{'side':<24}{'cells/s':>10}{'memory, MB':>12}"]
    for case, sides in report["cells_per_s"].items():
        for side, rate in sides.items():
            peak = statistics.median(said["peak_mb"] for said in report["figures"][case][side])
            lines.append(f"{case:<18}{side:<24}{rate:>10,.0f}{peak:>12,.0f}")
    lines.append("" if report["ratios"] else "\nscvi-tools is left out.")
    for name, ratio in report["ratios"].items():
        limit = report["limits"][name]
        met = "met" if limit["met"] else "NOT MET"
        lines.append(f"{name:<24}{ratio:>6.2f} times (at least {limit['at_least']:g}: {met})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
