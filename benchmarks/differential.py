"""Does differential expression from the same weights say what scvi-tools says?

    python benchmarks/differential.py --peers VENV MODEL_DIR H5AD GROUPBY [--samples 5000] [--json FILE]
    python benchmarks/differential.py --quick [--json FILE]      a small model of simulated cells, without scvi-tools

Each group against the rest, mode 'change', scvi-tools' defaults. For each group: the correlation of the mean log fold
changes of all genes, and how many of the 100 genes of the largest ones, and of the 100 most certain ones, are the same;
beside it the same of two runs of scvi-tools that differ in their seed: what can be agreed on at all, with that many
draws. Exits with 1 if a correlation is below 0.99 or fewer than 95 of the largest 100 are shared. `--quick` compares
two runs of ours, which draw differently.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import processes

from atlasvi.engine import SCVI
from atlasvi.engine.simulation import simulate

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


def run_peer(options: argparse.Namespace, seed: int, scratch: Path) -> tuple[pd.DataFrame, float]:
    """The table of scvi-tools, and its seconds."""
    out, script = scratch / f"{seed}.csv", HERE / "peers" / "differential.py"
    command = [options.peers / "bin" / "python", script, options.model, options.h5ad]
    command += [options.groupby, options.samples, seed, out]
    said = processes.run([str(part) for part in command])
    return pd.read_csv(out, index_col=0), float(said.split()[-1])


def train_small(folder: Path) -> tuple[Path, Path, str]:
    """MODEL_DIR, H5AD and GROUPBY of simulated cells."""
    simulate(folder / "cells.h5ad", n_cells=300, n_genes=200, n_batches=2, n_types=3, seed=0)
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=16, n_latent=4)
    model.train(20, batch_size=32, accelerator="cpu")
    model.save(folder / "model")
    return folder / "model", folder / "cells.h5ad", "cell_type"


def main() -> int:
    """Compute, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("h5ad", type=Path, nargs="?")
    parser.add_argument("groupby", nargs="?")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.quick and None in (options.peers, options.model, options.h5ad, options.groupby):
        parser.error("give --peers VENV MODEL_DIR H5AD GROUPBY, or --quick")
    tables, seconds = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.model, options.h5ad, options.groupby = train_small(Path(scratch))
            options.samples = 20_000  # a small model's groups differ little, so it takes more draws to agree
        for seed in () if options.quick else (0, 1):
            name = f"scvi-tools {seed}"
            tables[name], seconds[name] = run_peer(options, seed, Path(scratch))
        model = SCVI.load(options.model, anndata.read_h5ad(options.h5ad))
    for name in ("atlasvi 0", "atlasvi") if options.quick else ("atlasvi",):  # each draws anew
        start = time.perf_counter()
        tables[name] = model.differential_expression(
            groupby=options.groupby, mode="change", n_samples_overall=options.samples
        )
        seconds[name] = time.perf_counter() - start
    found = []
    with_ = next(iter(tables))
    first = tables.pop(with_)
    for group in first["group1"].unique():
        for name, table in tables.items():
            agreement = compare(first[first["group1"] == group], table[table["group1"] == group])
            found.append({"group": group, f"{with_.split()[0]} and": name, **agreement})
    print(pd.DataFrame(found).to_string(index=False))
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    if options.quick:
        print("scvi-tools is left out.")
    if options.json:
        options.json.write_text(json.dumps({"agreement": found, "seconds": seconds}, indent=2) + "\n")
    ours = [line for line in found if "atlasvi" in line.values()]
    return int(not all(line["r"] >= 0.99 and line["largest"] >= 95 for line in ours))


if __name__ == "__main__":
    sys.exit(main())
