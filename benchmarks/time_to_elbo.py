"""How long until scvi-tools' held-out ELBO is reached? scvi-tools in memory, ours with the recipe atlas from disk.

usage: python benchmarks/time_to_elbo.py --peers VENV [--cells 20000] [--genes 20000] [--epochs 20] [--batch 1024]
       [--seed 1] [--work DIR] [--json FILE] [--quick]

Simulated cells, every tenth held out, settings of the model card on both sides. scvi-tools trains with minibatches of
128 for all epochs, its KL weight rising over the first half of them (over 400 epochs, its default, it ends worse). Ours
is then trained anew with 1, 2, 3, ... epochs, each a whole run, until one is as good. Timed: `model.train()` there,
`train()` here, which opens the data, evaluates and writes the run too; ingest is timed apart. Both ELBOs are measured
by atlasvi, which loads the model that scvi-tools saved. --quick: 1,000 cells x 500 genes, and no peer: the ELBO to
reach is that of ours after one epoch of scvi-tools' recipe.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import count
from pathlib import Path

import anndata as ad
import numpy as np
from memory import processor_name
from processes import run_json

from atlasvi.engine import SCVI, ingest, train
from atlasvi.engine.simulation import simulate

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=20, help="of scvi-tools")
    parser.add_argument("--batch", type=int, default=1024, help="cells of our minibatches")
    parser.add_argument("--seed", type=int, default=1, help="of both trainings; the data stay the same")
    parser.add_argument("--work", type=Path, help="folder for the data (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.peers is None and not options.quick:
        parser.error("--peers is needed, or --quick")
    if options.quick:
        options.cells, options.genes, options.epochs, options.batch = 1_000, 500, 1, 128
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        counts, store = work / "counts.h5ad", work / "counts.store"
        if not store.exists():
            write_counts(counts, options.cells, options.genes)
            began = time.perf_counter()
            ingest(counts, store)
            print(f"ingest: {time.perf_counter() - began:.1f} s", flush=True)
        theirs = measure_ours(store, work, options, 1, "scvi-tools") if options.quick else measure_theirs(work, options)
        rows = [theirs]
        print(format_row(theirs), flush=True)
        for epochs in count(1):
            rows.append(measure_ours(store, work, options, epochs, "atlas"))
            print(format_row(rows[-1]), flush=True)
            if rows[-1]["elbo"] >= theirs["elbo"] or epochs == options.epochs:
                break
    ours, about = rows[-1], f"{options.cells:,} cells x {options.genes:,} genes, seed {options.seed}"
    if ours["elbo"] >= theirs["elbo"]:
        print(f"\nAs good in {theirs['seconds'] / ours['seconds']:.1f} times less time: {about};", end=" ")
    else:
        print(f"\nNot reached: {about};", end=" ")
    print(f"{processor_name()}, {os.cpu_count()} cores, torch {version('torch')}, {date.today()}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def write_counts(path: Path, n_cells: int, n_genes: int) -> None:
    """Simulated counts with the obs column `part`: every tenth cell is for validation."""
    simulate(path, n_cells, n_genes, n_batches=4, n_types=20, seed=1)
    cells = ad.read_h5ad(path)
    cells.obs["part"] = np.where(np.arange(n_cells) % 10 == 0, "validation", "train")
    path.unlink()
    cells.write_h5ad(path)


def measure_theirs(work: Path, options: argparse.Namespace) -> dict:
    """Seconds of scvi-tools' training, and the held-out ELBO of the model that it saved."""
    counts, saved = work / "counts.h5ad", work / "theirs"
    script = HERE / "peers" / "time_to_elbo.py"
    command = [options.peers / "bin" / "python", script, counts, saved, options.epochs, options.seed]
    said = run_json([str(word) for word in command])
    cells = ad.read_h5ad(counts)
    model = SCVI.load(saved, adata=cells)
    elbo = float(model.get_elbo(indices=np.flatnonzero(cells.obs["part"] == "validation")))
    return {"recipe": "scvi-tools 1.5.1", "batch": 128, "epochs": options.epochs, "elbo": elbo, **said}


def measure_ours(store: Path, work: Path, options: argparse.Namespace, epochs: int, recipe: str) -> dict:
    """Seconds of a run of ours, and its held-out ELBO."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        began = time.perf_counter()
        run = train(
            store,
            Path(folder, "run"),
            batch_key="batch",
            split_column="part",
            epochs=epochs,
            batch_size=options.batch,
            seed=options.seed,
            settings={"recipe": recipe, "early_stopping": False},
        )
        seconds = time.perf_counter() - began
    elbo = run.result["validation"]["elbo"]
    return {"recipe": recipe, "batch": options.batch, "epochs": epochs, "elbo": elbo, "seconds": seconds}


def format_row(row: dict) -> str:
    """A row as text."""
    what = f"{row['recipe']}, minibatches of {row['batch']:,}, {row['epochs']} epochs"
    return f"{what}: held-out ELBO {row['elbo']:.1f}, {row['seconds']:.1f} s"


if __name__ == "__main__":
    main()
