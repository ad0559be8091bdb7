"""Does training reach scvi-tools' held-out loss on real counts?

usage: python benchmarks/acceptance.py --counts onek1k.h5ad [--batch-key indiv] [--seeds 0 1 2] [--nproc N] [--json F]
       [--peers VENV]
       python benchmarks/acceptance.py --quick [--json F]

The main job from the command line: every fifth row (0, 5, 10, ...) is held out through --split-column, model card
settings, batch size 128, 40 epochs, KL warm-up over 40. Prints the held-out reconstruction loss in nats per cell
(summed over genes, z sampled once, the last epoch's weights) of each seed and its mean. On OneK1K's subset (7,811 cells
x 1,000 genes, batch `indiv`; peers/make_onek1k.py writes it), scvi-tools 1.5.1 gets 338.12, 339.95, 339.23 on the same
split; with --peers it is trained again, by peers/acceptance.py. With --nproc, as many ranks share each minibatch.
--quick: 300 simulated cells x 60 genes, one seed, two epochs, without scvi-tools.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
from processes import ATLASVI, run

from atlasvi.engine.simulation import simulate

HERE = Path(__file__).resolve().parent
SCVI_TOOLS = [338.12, 339.95, 339.23]


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--batch-key", default="indiv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment: scvi-tools' losses, too")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.counts is None and not options.quick:
        parser.error("--counts is needed, or --quick")

    def atlasvi(*arguments: object) -> None:
        run([*ATLASVI, *map(str, arguments)], warm=options.quick, follow=True)

    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.h5ad"
        if options.quick:
            options.counts, options.batch_key = Path(folder, "quick.h5ad"), "batch"
            options.seeds, options.epochs = [0], 2
            simulate(options.counts, n_cells=300, n_genes=60, n_batches=2, n_types=3, seed=0)
        cells = anndata.read_h5ad(options.counts)
        cells.obs["split"] = np.where(np.arange(cells.n_obs) % 5 == 0, "validation", "train")
        cells.write_h5ad(counts)
        store = Path(folder) / "counts.store"
        atlasvi("ingest", counts, "--out", store)
        results = []
        for seed in options.seeds:
            out = Path(folder) / f"run-{seed}"
            schedule = ["--epochs", options.epochs, "--set", f"kl_warmup_epochs={options.epochs}", "--set", "keep=last"]
            launch = ["launch", "--nproc", options.nproc, "--"] if options.nproc > 1 else []
            atlasvi(
                *launch, "train", store, "--out", out, "--batch-key", options.batch_key, "--split-column", "split",
                "--batch-size", 128, "--seed", seed, *schedule,
            )  # fmt: skip
            results.append(json.loads((out / "result.json").read_text()))
    theirs = [measure_peer(options, seed) for seed in options.seeds] if options.peers else SCVI_TOOLS
    known = options.peers or "onek1k" in options.counts.name

    shape = f"{cells.n_obs:,} cells x {cells.n_vars:,} genes"
    print(f"{options.counts.name}: {shape}, {options.epochs} epochs, batch 128, {options.nproc} rank(s)")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, atlasvi {version('atlasvi')}, torch {version('torch')}, {date.today()}\n")
    print("| seed | held-out reconstruction | held-out ELBO | training reconstruction | cells/s |")
    print("| --- | --- | --- | --- | --- |")
    for seed, result in zip(options.seeds, results):
        held_out, trained = result["validation"], result["train"]
        print(
            f"| {seed} | {held_out['reconstruction_loss']:.2f} | {held_out['elbo']:.2f} "
            f"| {trained['reconstruction_loss']:.2f} | {result['cells_per_s']:,.0f} |"
        )
    losses = [result["validation"]["reconstruction_loss"] for result in results]
    print(f"\nmean held-out reconstruction: {np.mean(losses):.2f} nats per cell", end="")
    of_peer = f" (scvi-tools: {', '.join(f'{loss:.2f}' for loss in theirs)}, mean {np.mean(theirs):.2f})"
    print(of_peer if known else "\nscvi-tools is left out.")
    if options.json:
        summary = {"mean": float(np.mean(losses)), "seeds": options.seeds, "results": results}
        summary |= {"scvi_tools": theirs} if known else {}
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


def measure_peer(options: argparse.Namespace, seed: int) -> float:
    """The held-out reconstruction loss of scvi-tools, trained in its own environment."""
    command = [options.peers / "bin" / "python", HERE / "peers" / "acceptance.py", options.counts, options.batch_key]
    command += [seed, options.epochs]
    return float(run([str(part) for part in command], follow=True).split()[-1])


if __name__ == "__main__":
    main()
