"""Does differential expression from the same weights say what scvi-tools says?

    python benchmarks/differential.py --peers VENV MODEL_DIR H5AD GROUPBY [--samples 5000] [--json FILE]

Each group against the rest, mode 'change', scvi-tools' defaults. For each group: the correlation of the mean log fold
changes of all genes, and how many of the 100 genes of the largest ones, and of the 100 most certain ones, are the same;
beside it the same of two runs of scvi-tools that differ in their seed: what can be agreed on at all, with that many
draws. Exits with 1 if a correlation is below 0.99 or fewer than 95 of the largest 100 are shared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasvi.engine import SCVI

HERE = Path(__file__).resolve().parent
N_TOP = 100


def compare(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How far two tables of one group agree."""
    other = other.loc[one.index]
    said: dict[str, float] = {"r": float(np.corrcoef(one["lfc_mean"], other["lfc_mean"])[0, 1])}
    for name, by in (("largest", "lfc_mean"), ("most certain", "proba_de")):
        tops = [set(table[by].abs().nlargest(N_TOP).index) for table in (one, other)]
        said[name] = len(tops[0] & tops[1])
    return said


def main() -> int:
    """Compute, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="the peers' virtual environment")
    parser.add_argument("model", type=Path)
    parser.add_argument("h5ad", type=Path)
    parser.add_argument("groupby")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables, seconds = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (0, 1):
            out = Path(scratch) / f"{seed}.csv"
            script = HERE / "peers" / "differential.py"
            command = [options.peers / "bin" / "python", script, options.model, options.h5ad]
            command += [options.groupby, options.samples, seed, out]
            run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
            seconds[f"scvi-tools {seed}"] = float(run.stdout.split()[-1])
            tables[f"scvi-tools {seed}"] = pd.read_csv(out, index_col=0)
    model = SCVI.load(options.model, anndata.read_h5ad(options.h5ad))
    start = time.perf_counter()
    tables["atlasvi"] = model.differential_expression(
        groupby=options.groupby, mode="change", n_samples_overall=options.samples
    )
    seconds["atlasvi"] = time.perf_counter() - start
    found = []
    first = tables.pop("scvi-tools 0")
    for group in first["group1"].unique():
        for name, table in tables.items():
            agreement = compare(first[first["group1"] == group], table[table["group1"] == group])
            found.append({"group": group, "scvi-tools and": name, **agreement})
    print(pd.DataFrame(found).to_string(index=False))
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    if options.json:
        options.json.write_text(json.dumps({"agreement": found, "seconds": seconds}, indent=2) + "\n")
    ours = [line for line in found if line["scvi-tools and"] == "atlasvi"]
    return int(not all(line["r"] >= 0.99 and line["largest"] >= 95 for line in ours))


if __name__ == "__main__":
    sys.exit(main())
