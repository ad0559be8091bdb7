"""Does `atlasvi plan` predict how long an epoch takes?

usage: python benchmarks/planning.py [--cells 20000] [--genes 2000] [--rounds 3] [--json FILE] [--quick]

For one process and for two ranks of this machine (planned as two ranks, `atlasvi launch --nproc 2 -- plan ...`), a plan
and a training of four epochs in turn; predicted is the plan's epoch, measured the median of the epochs after the first
(validation included). What else the machine does changes between the two, so the middle round counts.
--quick: 600 cells x 100 genes, one round, one process alone.
"""

import argparse
import json
import os
import platform
import re
import statistics
import tempfile
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from processes import ATLASVI, run

EPOCHS = 4


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.cells, options.genes, options.batch, options.rounds = 600, 100, 64, 1

    def atlasvi(*arguments: object) -> str:
        return run([*ATLASVI, *map(str, arguments)], warm=options.quick, follow=True)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        counts, store = Path(folder) / "counts.h5ad", Path(folder) / "store"
        atlasvi("simulate", counts, "--cells", options.cells, "--genes", options.genes, "--batches", 2, "--types", 5)
        atlasvi("ingest", counts, "--out", store)
        for ranks in (1,) if options.quick else (1, 2):
            launch = ["launch", "--nproc", ranks, "--"] if ranks > 1 else []
            found = []
            for number in range(options.rounds):
                given = ["--batch-key", "batch", "--batch-size", options.batch]
                said = atlasvi(*launch, "plan", store, "--gpus", ranks, *given)
                out = Path(folder) / f"run-{ranks}-{number}"
                atlasvi(*launch, "train", store, "--out", out, "--epochs", EPOCHS, *given)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                ends = [line["seconds"] for line in lines if line["kind"] == "epoch"]
                predicted = float(re.search(r"steps, ([\d,.]+) s,", said)[1].replace(",", ""))
                found.append((predicted, statistics.median(b - a for a, b in pairwise(ends))))
            predicted, measured = sorted(found, key=lambda pair: pair[0] / pair[1])[len(found) // 2]
            rows.append({"ranks": ranks, "predicted_s": predicted, "measured_s": measured, "rounds": found})
    print(f"{options.cells:,} cells x {options.genes:,} genes, minibatches of {options.batch}\n")
    print("| ranks | predicted s an epoch | measured | predicted / measured | round by round |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        ratios = [predicted / measured for predicted, measured in row["rounds"]]
        print(
            f"| {row['ranks']} | {row['predicted_s']:.2f} | {row['measured_s']:.2f} "
            f"| {row['predicted_s'] / row['measured_s']:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, {date.today()}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
