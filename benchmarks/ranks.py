"""What do ranks cost where there is but one, and how much do they send?

usage: python benchmarks/ranks.py [--cells 2048] [--genes 20000] [--batch 512] [--rounds 12] [--json FILE] [--quick]

One process takes the same training steps without a group and in a group of one (gradients handed to gloo as they become
ready, sums over ranks, the watch that speaks every half second), in turn, four steps of each a round: the overhead is
the median over rounds of the ratio of their times. And it times what each rank draws of noise for a whole minibatch.
--quick: 256 cells x 200 genes, minibatches of 64, three rounds.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import atlasvi.engine  # noqa: F401  before torch: sets how its threads wait

import torch  # isort: skip

STEPS_A_ROUND = 4


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2048)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.cells, options.genes, options.batch, options.rounds = 256, 200, 64, 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    print(f"{options.genes:,} genes, minibatches of {options.batch:,}, {options.rounds} rounds\n")
    print("| | |\n| --- | ---: |")
    print(f"| a step without a group, ms | {found['alone_ms']:.1f} |")
    print(f"| overhead of a group of one | {found['overhead']:+.1%} ({found['least']:+.1%} to {found['most']:+.1%}) |")
    print(f"| bytes handed to the sum over ranks per step | {found['bytes']:,} |")
    print(f"| the same, bf16 | {found['bytes'] // 2:,} |")
    print(f"| noise for a whole minibatch, ms | {found['noise_ms']:.2f} |")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, {date.today()}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Times in ms and ratios."""
    from atlasvi.engine.distributed.ranks import Ranks, join_ranks
    from atlasvi.engine.model.covariates import SetupKeys, learn_setup
    from atlasvi.engine.model.noise import draw_dropout, draw_normal
    from atlasvi.engine.simulation import simulate
    from atlasvi.engine.training.run_parts import prepare_run
    from atlasvi.engine.training.settings import resolve_settings
    from atlasvi.engine.training.training_loop import Trainer
    from atlasvi.loaders.cells.open_cells import open_cells
    from atlasvi.loaders.ingestion.ingest import ingest

    simulate(folder / "cells.h5ad", options.cells, options.genes, 2, 4, seed=0)
    ingest(folder / "cells.h5ad", folder / "store", workers=1)
    data = open_cells(folder / "store")
    asked = {"seed": 0, "split_column": None}
    settings = resolve_settings(None, {"batch_size": options.batch, "validation_fraction": 0})
    with join_ranks() as group:
        setup = learn_setup(data, SetupKeys(batch_key="batch"))
        trainers = [
            Trainer(prepare_run(data, folder / "run", setup, asked, settings, "cpu", ranks))
            for ranks in (Ranks(), group)
        ]
        batches = list(islice(trainers[0].loaders["train"], 4))

        def time_steps(trainer: Trainer) -> float:
            trainer.parts.model.train()
            began = time.perf_counter()
            for batch in islice(batches * STEPS_A_ROUND, STEPS_A_ROUND):
                trainer.step.take(batch, number=0, step=0, kl_weight=1.0)
                trainer.step.update()
            return (time.perf_counter() - began) / STEPS_A_ROUND * 1e3

        for trainer in trainers:
            time_steps(trainer)
        rounds = []
        for number in range(options.rounds):
            order = trainers if number % 2 == 0 else trainers[::-1]
            times = {trainer.ranks.reduces: time_steps(trainer) for trainer in order}
            rounds.append((times[False], times[True]))
        generator = torch.Generator().manual_seed(0)
        began = time.perf_counter()
        for _ in range(20):
            for _ in range(settings.n_layers):
                draw_dropout(torch.empty(options.batch, settings.n_hidden), 0.05, generator)
            draw_normal(torch.empty(options.batch, settings.n_latent), generator)
        noise_ms = (time.perf_counter() - began) / 20 * 1e3
        ratios = [with_group / alone - 1 for alone, with_group in rounds]
        return {
            "alone_ms": statistics.median(alone for alone, _ in rounds),
            "overhead": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "bytes": trainers[1].step.n_bytes_reduced,
            "noise_ms": noise_ms,
        }


if __name__ == "__main__":
    main()
