"""Do many ranks compute what one process does, on real counts; and where they part, why?

usage: python benchmarks/rank_losses.py --counts onek1k.h5ad [--batch-key indiv] [--steps 200] [--json FILE]
       python benchmarks/rank_losses.py --quick [--json FILE]

Losses of each step (settings of the model card, dropout) on 2 and 4 ranks against one process, in float32 and float64:
the largest relative difference within the first steps. Then one float64 process against itself with its initial weights
changed a little, relatively; as it is, and with softplus for ReLU: is it the kink of the ReLU that drives runs apart?
--quick: 300 simulated cells x 60 genes, ten steps, two ranks alone, and one change of the weights.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import atlasvi.engine  # noqa: F401  before torch: sets how its threads wait

import fault_processes as processes  # isort: skip
import numpy as np  # isort: skip
import torch  # isort: skip

from atlasvi.engine.simulation import simulate  # isort: skip

FIRST = (10, 50, 100, 200)
CHANGES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5)


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--batch-key", default="indiv")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.counts is None and not options.quick:
        parser.error("--counts is needed, or --quick")
    groups, changes = ((2,), CHANGES[::3]) if options.quick else ((2, 4), CHANGES)
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.counts, options.batch_key, options.steps = Path(folder, "quick.h5ad"), "batch", 10
            simulate(options.counts, n_cells=300, n_genes=60, n_batches=2, n_types=3, seed=0)
        first = [n for n in FIRST if n <= options.steps]

        def run(precision: str, ranks: int = 1, change: float = 0.0, smooth: bool = False) -> np.ndarray:
            place = Path(folder) / f"{precision}-{ranks}-{change}-{smooth}"
            if not (place / "losses.json").exists():
                settings = {"max_steps": options.steps, "evaluation_cells": 1, "precision": precision}
                asked = {"batch_key": options.batch_key, "epochs": options.steps, "settings": settings}
                group = processes.start(record, ranks, place, options.counts, place / "run", asked, change, smooth)
                if any(group.join()):
                    raise SystemExit(f"a run failed: {group.text()}")
            return np.array(json.loads((place / "losses.json").read_text()))

        def compare(name: str, found: np.ndarray, with_: np.ndarray) -> None:
            differences = np.abs(found / with_ - 1)
            rows[name] = [differences[:n].max(0).tolist() for n in first]

        for precision in ("float32", "float64"):
            alone = run(precision)
            for ranks in groups:
                compare(f"{precision}, {ranks} ranks", run(precision, ranks), alone)
        for smooth in (False, True):
            alone, *changed = (run("float64", change=change, smooth=smooth) for change in changes)
            for change, found in zip(changes[1:], changed):
                compare(f"float64, weights changed by {change:g}{', softplus' if smooth else ''}", found, alone)

    print(f"{options.counts.name}: largest relative difference of reconstruction; KL, within the first steps\n")
    print(f"| | {' | '.join(map(str, first))} |\n| --- |{' ---: |' * len(first)}")
    for name, found in rows.items():
        print(f"| {name} | {' | '.join(f'{losses[0]:.0e}; {losses[1]:.0e}' for losses in found)} |")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, {date.today()}")
    if options.json:
        options.json.write_text(json.dumps({"first": first, "rows": rows}, indent=2) + "\n")


def record(note: Any, counts: Path, out: Path, asked: dict[str, Any], change: float, smooth: bool) -> None:
    """Train; `losses.json` beside `out` gets the means of each step, reconstruction and KL."""
    from atlasvi.engine.distributed.ranks import join_ranks
    from atlasvi.engine.training.step import StepTerms
    from atlasvi.engine.training.train import train
    from atlasvi.engine.training.training_loop import Trainer

    losses: list[list[float]] = []
    count, make = Trainer._count, Trainer.__init__

    def note_losses(self: Trainer, found: StepTerms | None, kl_weight: float) -> bool:
        if found is not None:
            losses.append([found.terms.means()[name] for name in ("reconstruction_loss", "kl")])
        return count(self, found, kl_weight)

    def make_changed(self: Trainer, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.parts.model.parameters():
                weight *= 1 + change * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)

    Trainer._count, Trainer.__init__ = note_losses, make_changed  # type: ignore[method-assign]
    if smooth:
        torch.nn.functional.relu = torch.nn.functional.softplus
    with join_ranks() as ranks:
        train(counts, out, **asked)
        if ranks.is_first:
            (out.parent / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
