"""What do the recipes of training reach after the same number of cells seen, in held-out ELBO and in the latents?

usage: python benchmarks/recipes.py --data DATA --labels-key COL [--batch-key COL] [--epochs N] [--seeds 1 2 3]
       [--runs scvi-tools:128 atlas:1024 ...] [--set KEY=VALUE ...] [--json F] [--quick]

Trains each recipe with each minibatch and seed, with the settings of the model card, a tenth of the cells held out, and
without early stopping; the weights are those of the best epoch. For each run prints its steps, the held-out ELBO (nats
per cell), how often most of 15 neighbours among the training cells have the type of a held-out cell, the mean entropy
of the neighbours' batches as a share of the largest possible, and the number of latent dimensions in use (0.1 nats or
more). At most 5,000 held-out and 40,000 training cells are compared. Then the card's figures of integration of at most
5,000 cells, drawn from all (engine/card/integration.py says what they are). --quick: 2,000 simulated cells x 200
genes, two epochs.
"""

import argparse
import json
import os
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from memory import processor_name
from type_neighbours import find_neighbours, measure_mixing, measure_right

from atlasvi.engine import train
from atlasvi.engine.card.integration import measure_integration
from atlasvi.engine.simulation import simulate
from atlasvi.engine.training.settings import parse_settings
from atlasvi.engine.training.splits import split_by_hash
from atlasvi.loaders import BatchLoader, open_cells

ASKED, REFERENCE = 5_000, 40_000
RUNS = ["scvi-tools:128", "atlas:128", "atlas:1024", "atlas:4096"]


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--batch-key")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", nargs="+", default=RUNS, help="RECIPE:CELLS of a minibatch")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.data is None and not options.quick:
        parser.error("--data is needed, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.data, options.batch_key, options.epochs = Path(folder, "quick.h5ad"), "batch", 2
            options.runs = ["scvi-tools:128", "atlas:512"]
            simulate(options.data, n_cells=2_000, n_genes=200, n_batches=2, n_types=5, seed=1)
        rows = [
            measure_run(options, Path(folder, "run"), recipe, int(size), seed)
            for recipe, _, size in (run.partition(":") for run in options.runs)
            for seed in options.seeds
        ]
    about = f"{options.data.name}, {options.epochs} epoch(s); {processor_name()}, {os.cpu_count()} cores"
    print(f"{about}, atlasvi {version('atlasvi')}, torch {version('torch')}, {date.today()}\n")
    heads = [
        "recipe",
        "minibatch",
        "seed",
        "steps",
        "held-out ELBO",
        "right type",
        "batches mixed",
        "latents in use",
        "s",
    ]
    print_row([*heads, *rows[0]["integration"]])
    print_row(["---", *["---:"] * (len(heads) - 1 + len(rows[0]["integration"]))])
    for row in rows:
        words = [row["recipe"], f"{row['batch_size']:,}", row["seed"], f"{row['steps']:,}", f"{row['elbo']:.1f}"]
        words += [f"{row['right']:.4f}", "" if row["mixed"] is None else f"{row['mixed']:.3f}", row["in_use"]]
        print_row([*words, f"{row['seconds']:.0f}", *(f"{figure:.3f}" for figure in row["integration"].values())])
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


def print_row(words: list) -> None:
    """A row of a table in Markdown."""
    print(f"| {' | '.join(str(word) for word in words)} |")


def measure_run(options: argparse.Namespace, out: Path, recipe: str, batch_size: int, seed: int) -> dict:
    """Train once, and measure what the module says."""
    run = train(
        options.data,
        out / f"{recipe}-{batch_size}-{seed}",
        batch_key=options.batch_key,
        epochs=options.epochs,
        batch_size=batch_size,
        seed=seed,
        settings={"recipe": recipe, "early_stopping": False, **parse_settings(options.set)},
    )
    data = open_cells(options.data)
    codes, draw = run.setup.read_codes(data), np.random.default_rng(0)
    held_out = split_by_hash(data, 0.1, seed).validation.read(0, data.n_cells)
    parts = [np.flatnonzero(held_out), np.flatnonzero(~held_out)]
    asked, reference = (
        np.sort(draw.permutation(part)[:most]) for part, most in zip(parts, (ASKED, REFERENCE), strict=True)
    )
    types = data.read_column(options.labels_key).astype("category").cat.codes.to_numpy()
    near = reference[find_neighbours(*(encode(run.model, data, codes, cells) for cells in (asked, reference)))]
    sample, batch = np.sort(draw.permutation(data.n_cells)[:ASKED]), codes.get("batch")
    integration, _ = measure_integration(
        encode(run.model, data, codes, sample), types[sample], None if batch is None else batch[sample]
    )
    data.close()
    return {
        "recipe": recipe,
        "batch_size": batch_size,
        "seed": seed,
        "steps": run.result["steps"],
        "elbo": run.result["validation"]["elbo"],
        "right": measure_right(types[near], types[asked]),
        "mixed": None if batch is None else measure_mixing(batch[near], int(batch.max()) + 1),
        "integration": {name: figure.value for name, figure in integration.figures.items()},
        "in_use": run.result["informative_latents"],
        "seconds": run.result["seconds"],
    }


@torch.inference_mode()
def encode(model, data, codes: dict[str, np.ndarray], cells: np.ndarray) -> np.ndarray:
    """qzm of the cells with these ascending indices, float32 [cells, latent]."""
    mask = np.zeros(data.n_cells, bool)
    mask[cells] = True
    loader = BatchLoader(data, 1024, seed=0, codes=codes, cells=mask, shuffle=False)
    return np.concatenate([model.encode(batch)[0].numpy() for batch in loader])


if __name__ == "__main__":
    main()
