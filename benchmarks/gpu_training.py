"""How many cells per second does training take on a GPU, the step alone and from disk; and the questions afterwards?

    python benchmarks/gpu_training.py --out DIR --store STORE [--genes 20000] [--cells 1048576] [--quick]

STORE is written if it is not there: a cell store of random counts, 5% not zero. The step alone runs on minibatches
that are on the device already, with and without a CUDA graph, in float32 and with bf16 products. From disk: the loader
alone, then `train` in a process of its own, whose memory on the host is measured too. Then the rates of minify, of
differential expression and of posterior predictive counts. Writes training.json, after each figure anew, and profiles
of steps into DIR.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu_inputs import choose_device, describe_machine, draw_adata, wait, write_store
from gpu_kernels import append_profile

from atlasvi.engine import SCVI, minify
from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.model.noise import TRAINING_NOISE, seed_draws
from atlasvi.engine.training.run_parts import prepare_run
from atlasvi.engine.training.settings import Settings
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.kernels import choose_backend
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData, open_cells

SETTINGS = {"validation_fraction": 0.0, "early_stopping": False, "keep": "last", "evaluation_cells": 1}
"""Of a run that is only to be timed: no validation, the last weights kept."""
STEPS = (
    (512, "float32", True),
    (4_096, "float32", True),
    (512, "bf16", True),
    (4_096, "bf16", True),
    (128, "float32", True),
    (1_024, "float32", True),
    (16_384, "float32", True),
    (512, "float32", False),
    (4_096, "float32", False),
)
"""Cells, precision of the output layer's products, whether as a CUDA graph."""


def main() -> None:
    """Measure and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=2**20, help="of the store")
    parser.add_argument("--quick", action="store_true", help="everything small; without a GPU too")
    parser.add_argument("--only-store", action="store_true", help="write the store and end")
    options = parser.parse_args()
    if options.quick:
        options.genes, options.cells = 200, 1_024
    if not options.store.exists():
        write_store(options.store, options.genes, options.cells)
    if options.only_store:
        return
    device = choose_device(options.quick)
    found: dict = {"machine": describe_machine(device), "figures": {}}
    with contextlib.closing(open_cells(options.store)) as data, tempfile.TemporaryDirectory() as work:
        parts = (
            measure_steps(data, Path(work), options.out, device, options.quick),
            measure_disk(data, Path(work), device, (512,) if options.quick else (512, 4_096)),
            measure_questions(data, Path(work), device, options.genes, options.quick),
        )
        for name, value in itertools.chain(*parts):
            found["figures"][name] = value
            (options.out / "training.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {value:,.4g}", file=sys.stderr, flush=True)


def measure_steps(
    data: CellData, work: Path, out: Path, device: torch.device, quick: bool
) -> Iterator[tuple[str, float]]:
    """Cells/s of the step alone, and the profile of what a step launches."""
    for size, precision, graph in STEPS:
        if (precision == "bf16" and choose_backend(device) != "triton") or (size != 512 and quick):
            continue
        step = prepare_step(data, work, device, size, {"precision": precision, "cuda_graph": graph})
        how = f"{precision}, {'graph' if graph else 'no graph'}"
        yield f"step, {size:,} cells, {how}: cells/s", size / time_steps(step, device, quick)
        if device.type == "cuda" and size in (512, 4_096) and graph:
            steps = map(step, itertools.count())
            append_profile(out / "profiles.txt", f"step, {size} cells, {how}", steps.__next__, 10)
        if device.type == "cuda":
            yield f"step, {size:,} cells, {how}: GB on the device", torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def prepare_step(
    data: CellData, work: Path, device: torch.device, size: int, settings: dict
) -> Callable[[int], object]:
    """The trainer's own step number n, on one of a few minibatches that are on the device already."""
    resolved = Settings.model_validate({**SETTINGS, **settings, "batch_size": size, "epochs": 1})
    asked = {"seed": 0, "split_column": None}
    setup = learn_setup(data, SetupKeys(batch_key="batch"))
    parts = prepare_run(data, work / "step", setup, asked, resolved, device.type)
    of_run = Trainer(parts).step
    with contextlib.closing(iter(DeviceFeeder(parts.loaders["train"], device))) as batches:  # type: ignore[type-var]
        kept = [batch for batch in itertools.islice(batches, 8) if len(batch) == size]
    parts.model.train()
    weight = torch.ones((), device=device)

    def step(number: int) -> object:
        batch = kept[number % len(kept)]
        seed_draws(of_run._noise, parts.seed, TRAINING_NOISE, number)
        if of_run._graph is not None:
            return of_run._graph(batch, 1.0, ("rate",))
        return of_run._take_alone(batch, weight)

    return step


def time_steps(step: Callable[[int], object], device: torch.device, quick: bool) -> float:
    """Seconds per step: the median of five rounds, ten steps before them; quick: of one short round."""
    n_rounds, seconds, at_once = (1, 0.05, 2) if quick else (5, 0.4, 10)
    for number in range(at_once):
        step(number)
    wait(device)
    rounds = []
    for _ in range(n_rounds):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(at_once):
                step(at_once + done)
                done += 1
            wait(device)
        rounds.append((time.perf_counter() - began) / done)
    return statistics.median(rounds)


def measure_disk(
    data: CellData, work: Path, device: torch.device, sizes: tuple[int, ...]
) -> Iterator[tuple[str, float]]:
    """Cells/s of the loader alone, and of `train` as its own log says; its memory on the host."""
    for size in sizes:
        loader = BatchLoader(data, size, seed=0, codes=["batch"])
        for _ in range(2):
            began = time.perf_counter()
            cells = sum(len(batch) for batch in DeviceFeeder(loader, device))
            wait(device)
            rate = cells / (time.perf_counter() - began)
        yield f"loader alone, {size:,} cells: cells/s", rate
    for size in sizes:
        out = work / f"run-{size}"
        arguments = [data.path, "--out", out, "--batch-key", "batch", "--batch-size", size, "--epochs", 3]
        arguments += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={str(value).lower()}")]
        code = "from atlasvi.engine.cli.commands import main; import sys\n"
        code += "try: main()\n"
        code += "finally: print(open('/proc/self/status').read(), file=sys.stderr)"
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *map(str, arguments)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-3000:])
        status = dict(line.split(":", 1) for line in done.stderr.splitlines() if line.startswith(("Vm", "Rss")))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rates = [line["cells_per_s"] for line in lines if line["kind"] == "epoch"]
        yield f"from disk, {size:,} cells, first epoch: cells/s", rates[0]
        yield f"from disk, {size:,} cells: cells/s", statistics.median(rates[1:])
        yield f"from disk, {size:,} cells: host memory at most, GB", int(status["VmHWM"].split()[0]) / 1e6
        anonymous = sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))
        yield f"from disk, {size:,} cells: of it not mapped from files at the end, GB", anonymous / 1e6


def measure_questions(
    data: CellData, work: Path, device: torch.device, genes: int, quick: bool
) -> Iterator[tuple[str, float]]:
    """Rates of what is asked of a trained model."""
    for number in range(2):  # the first compiles
        began = time.perf_counter()
        minify(work / f"run-{512 if quick else 4_096}", data, work / f"{number}.mini", device=device.type)
        seconds = time.perf_counter() - began
    yield "minify: cells/s", data.n_cells / seconds
    adata = draw_adata(512 if quick else 16_384, genes, seed=5)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    model.train(max_epochs=1, accelerator="gpu" if device.type == "cuda" else "cpu")
    for name, ask in {
        "latent": model.get_latent_representation,
        "elbo": model.get_elbo,
        "normalized expression of 100 genes": lambda: model.get_normalized_expression(
            gene_list=list(adata.var_names[:100])
        ),
        "posterior predictive counts of 100 genes": lambda: model.posterior_predictive_sample(
            gene_list=list(adata.var_names[:100])
        ),
    }.items():
        ask()
        began = time.perf_counter()
        ask()
        yield f"{name}: cells/s", adata.n_obs / (time.perf_counter() - began)
    began = time.perf_counter()
    model.differential_expression(groupby="batch", group1="0", group2="1")
    yield "differential expression, two groups: s", time.perf_counter() - began


if __name__ == "__main__":
    main()
