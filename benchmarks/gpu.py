"""What do kernels, step and whole training reach on a GPU, beside plain torch and what the device can do at most?

    python benchmarks/gpu.py --out DIR [--genes 20000] [--cells 1048576] [--quick]

One command, under eight minutes on one CUDA device with 16 cores. It first checks every option of the kernels against
float64 on the device, then measures: a copy and a matrix product (the roofline), the likelihood from logits, output
layer and likelihood, the first layer, each beside plain torch and its `torch.compile`; the training step with and
without a CUDA graph, in float32 and with bf16 products; the loader alone; training from disk, end to end. Counts are
random with genes of unlike frequency, 5% not zero. Writes results.json and table.md into DIR; ends with status 1 if a
check fails or a target is not met. --quick makes everything small, to try the script where there is no GPU.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from atlasvi.engine import ingest, train
from atlasvi.engine.configuration import Settings
from atlasvi.engine.covariates import learn_setup
from atlasvi.engine.trainer import Trainer
from atlasvi.kernels import Head, SparseCounts, choose_backend, decoder_nll, log1p_linear, logits_nll
from atlasvi.loaders.cells import CellData, open_cells
from atlasvi.loaders.feeder import DeviceFeeder
from atlasvi.loaders.loader import BatchLoader

HIDDEN, DENSITY = 128, 0.05
FILE_CELLS = 32_768
TARGETS = {
    "likelihood: share of copy bandwidth": 0.7,
    "step, 4,096 cells: cells/s": 1e6,
    "step, 512 cells: cells/s": 5e5,
    "from disk / step alone, 4,096 cells": 0.9,
}


def main() -> int:
    """Check, measure, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=2**20, help="of the store that is trained from")
    parser.add_argument("--work", type=Path, help="folder for the store (default: a temporary one)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.genes, options.cells = 500, 4_096
    if not torch.cuda.is_available() and not options.quick:
        print(
            "gpu.py needs a CUDA device, and torch sees none here (--quick tries the script without).", file=sys.stderr
        )
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict = {"date": date.today().isoformat(), "machine": describe_machine(device), "figures": {}}
    figures = report["figures"]

    def note(what: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    note("checking the kernels against float64")
    report["errors"] = check_kernels(device)
    note("measuring the kernels")
    figures |= measure_kernels(device, options.genes, 256 if options.quick else 4_096)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        note("writing the store")
        store = write_store(work, options.genes, options.cells)
        with contextlib.closing(open_cells(store)) as data:
            for size, (precision, graph) in itertools.product(
                (128, 512, 1_024, 4_096), (("float32", True), ("bf16", True), ("float32", False))
            ):
                if (precision == "bf16" and choose_backend(device) != "triton") or (size > 512 and options.quick):
                    continue
                note(f"the step: {size:,} cells, {precision}{', as a graph' if graph else ''}")
                rate = measure_step(data, work, device, size, {"precision": precision, "cuda_graph": graph})
                how = f"{precision}{', graph' if graph else ', no graph'}"
                figures[f"step, {size:,} cells, {how}: cells/s"] = rate
            for size in (512, 4_096):
                note(f"from disk: {size:,} cells")
                figures[f"loader alone, {size:,} cells: cells/s"] = measure_loader(data, device, size)
                figures[f"from disk, {size:,} cells: cells/s"] = measure_training(data, work, device, size)
    for size in (512, 4_096):
        steps = [figures.get(f"step, {size:,} cells, {how}, graph: cells/s", 0.0) for how in ("float32", "bf16")]
        figures[f"step, {size:,} cells: cells/s"] = max(steps)
        figures[f"from disk / step alone, {size:,} cells"] = figures[f"from disk, {size:,} cells: cells/s"] / max(
            steps[0], 1e-9
        )
    worst = max(report["errors"].values())
    report["met"] = {"errors": worst < 1e-5, **{name: figures[name] >= least for name, least in TARGETS.items()}}
    report["seconds"] = time.perf_counter() - began
    (options.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "table.md").write_text(format_table(report))
    print(format_table(report))
    return 0 if report["met"]["errors"] and (options.quick or all(report["met"].values())) else 1


def describe_machine(device: torch.device) -> dict:
    """Device, cores, versions."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__, "python": sys.version.split()[0]}


def draw_counts(cells: int, genes: int, seed: int) -> sp.csr_matrix:
    """Counts of which about 5% are not zero; a few genes are in nearly every cell, most in few."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 1.5, genes)
    for _ in range(20):  # what is cut off at the top is given to the rest
        share = np.minimum(share * DENSITY / share.mean(), 0.98)
    parts = []
    for start in range(0, cells, 1_024):
        present = rng.random((min(1_024, cells - start), genes), np.float32) < share.astype(np.float32)
        part = sp.csr_matrix(present, dtype=np.float32)
        part.data = rng.geometric(0.5, part.nnz).astype(np.float32)
        parts.append(part)
    return sp.vstack(parts, format="csr")


def to_sparse_counts(counts: sp.csr_matrix, device: torch.device) -> SparseCounts:
    """As the loader gives them."""
    index_type = torch.uint16 if counts.shape[1] <= 2**16 else torch.int32
    return SparseCounts(
        torch.from_numpy(counts.indptr).int().to(device),
        torch.from_numpy(counts.indices).int().to(index_type).to(device),
        torch.from_numpy(counts.data).to(torch.uint8).to(device),
    )


def check_kernels(device: torch.device) -> dict[str, float]:
    """The largest relative, norm-wise error of losses and gradients of each option, float32 against float64."""
    counts = draw_counts(37, 613, seed=1)
    cells, library = to_sparse_counts(counts, device), torch.from_numpy(np.asarray(counts.sum(1)).ravel()).to(device)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device) / 3

    errors = {}
    for likelihood, dispersion, softmax in itertools.product(
        ("nb", "zinb", "poisson"), ("gene", "gene-batch", "gene-cell"), (True, False)
    ):
        if likelihood == "poisson" and dispersion != "gene":
            continue
        inputs = {"hidden": draw(37, 16), "weight": draw(613, 16), "bias": draw(613)}
        if likelihood != "poisson":
            shapes = {"gene": (613,), "gene-batch": (3, 613), "gene-cell": (613, 16)}
            inputs["theta"] = draw(*shapes[dispersion])
        inputs |= {"theta_bias": draw(613), "dropout": draw(613, 16), "dropout_bias": draw(613)}
        rows = torch.arange(37, device=device) % 3

        def run(dtype: torch.dtype, backend: str | None) -> list[Tensor]:
            t = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}  # noqa: B023
            theta = t.get("theta")
            loss = decoder_nll(
                t["hidden"],
                Head(t["weight"], t["bias"]),
                cells,
                library.to(dtype),
                Head(theta, t["theta_bias"]) if theta is not None and dispersion == "gene-cell" else theta,  # noqa: B023
                theta_rows=rows if dispersion == "gene-batch" and theta is not None else None,  # noqa: B023
                dropout=Head(t["dropout"], t["dropout_bias"]) if likelihood == "zinb" else None,  # noqa: B023
                likelihood=likelihood,  # noqa: B023
                softmax=softmax,  # noqa: B023
                expected_grad=1 / 37,
                backend=backend,
            )
            loss.mean().backward()
            return [loss.detach(), *(tensor.grad for tensor in t.values() if tensor.grad is not None)]

        pairs = zip(run(torch.float32, None), run(torch.float64, "torch"), strict=True)
        errors[f"{likelihood}, {dispersion}, {'softmax' if softmax else 'softplus'}"] = max(
            float((a.double() - b).norm() / b.norm()) for a, b in pairs
        )
    weight = draw(613, 16)
    results = []
    for dtype, backend in ((torch.float32, None), (torch.float64, "torch")):
        w = weight.to(dtype, copy=True).requires_grad_()
        out = log1p_linear(cells.indptr, cells.indices, cells.counts, w, backend=backend)
        (out.square().mean()).backward()
        results.append((out.detach(), w.grad))
    errors["first layer"] = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    return errors


def time_ms(function: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Median milliseconds, by the device's clock where it has one; three calls warm up."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def measure_kernels(device: torch.device, genes: int, cells: int) -> dict[str, float]:
    """Milliseconds of each kernel, forward and backward, of plain torch, and the shares of the roofline."""
    counts = draw_counts(cells, genes, seed=2)
    sparse = to_sparse_counts(counts, device)
    library = torch.from_numpy(np.asarray(counts.sum(1)).ravel()).to(device)

    def parameter(*shape: int) -> Tensor:
        return (torch.randn(*shape, device=device) / 10).requires_grad_()

    logits, theta = parameter(cells, genes), parameter(genes)
    hidden, weight, bias, first = (
        parameter(cells, HIDDEN), parameter(genes, HIDDEN), parameter(genes), parameter(genes, HIDDEN)
    )  # fmt: skip
    upstream = torch.ones(cells, HIDDEN, device=device)

    def likelihood(backend: str | None) -> None:
        logits.grad = theta.grad = None
        logits_nll(logits, sparse, library, theta, expected_grad=1 / cells, backend=backend).mean().backward()

    def decoder(backend: str | None, precision: str = "float32") -> None:
        hidden.grad = weight.grad = bias.grad = theta.grad = None
        head, expected = Head(weight, bias), 1 / cells
        loss = decoder_nll(
            hidden, head, sparse, library, theta, expected_grad=expected, precision=precision, backend=backend
        )
        loss.mean().backward()

    def layer(backend: str | None) -> None:
        first.grad = None
        log1p_linear(sparse.indptr, sparse.indices, sparse.counts, first, backend=backend).backward(upstream)

    source, target = torch.ones_like(logits), torch.empty_like(logits)
    copy_ms = time_ms(lambda: target.copy_(source), device)
    product_ms = time_ms(lambda: torch.mm(hidden.detach(), weight.detach().T, out=target), device)
    found = {
        "copy: GB/s": 2 * source.nbytes / copy_ms / 1e6,
        "float32 product: TFLOP/s": 2 * cells * genes * HIDDEN / product_ms / 1e9,
    }
    kernels: dict[str, Callable[[str | None], None]] = {"likelihood": likelihood, "decoder": decoder, "first": layer}
    for name, function in kernels.items():
        found[f"{name}: ms"] = time_ms(lambda: function(None), device)  # noqa: B023
        found[f"{name}, plain torch: ms"] = time_ms(lambda: function("torch"), device, 5)  # noqa: B023
        if device.type == "cuda":
            compiled = torch.compile(lambda: function("torch"))  # noqa: B023
            try:
                found[f"{name}, torch.compile: ms"] = time_ms(compiled, device, 5)
            except Exception as error:
                print(f"torch.compile of {name}: {str(error)[:200]}", file=sys.stderr)
            torch.compiler.reset()
    if choose_backend(device) == "triton":
        found["decoder, bf16: ms"] = time_ms(lambda: decoder(None, "bf16"), device)
    # the least that must be moved: logits read, slopes written, counts and genes read
    found["likelihood: share of copy bandwidth"] = (
        (2 * logits.nbytes + 3 * counts.nnz) / (2 * source.nbytes) * copy_ms / found["likelihood: ms"]
    )
    return found


def write_store(work: Path, genes: int, cells: int) -> Path:
    """A cell store of random counts in 12 batches: one file of counts, taken as often as need be."""
    store = work / f"{genes}x{cells}.store"
    if store.exists():
        return store
    n_file = min(cells, FILE_CELLS)
    adata = anndata.AnnData(draw_counts(n_file, genes, seed=3))
    adata.obs["batch"] = np.random.default_rng(0).integers(0, 12, n_file).astype(str)
    first = work / "counts0.h5ad"
    adata.write_h5ad(first)
    files = [first]
    for number in range(1, cells // n_file):
        files.append(work / f"counts{number}.h5ad")
        os.link(first, files[-1])
    ingest(files, store)
    for file in files:
        file.unlink()
    return store


def choose_settings(size: int, more: dict) -> dict:
    """Settings of a run that is only to be timed: no validation, the last weights kept."""
    return {"validation_fraction": 0.0, "early_stopping": False, "keep": "last", "evaluation_cells": 1, **more}


def measure_step(data: CellData, work: Path, device: torch.device, size: int, more: dict) -> float:
    """Cells/s of the trainer's own step on minibatches that are on the device already."""
    settings = Settings.model_validate({**choose_settings(size, more), "batch_size": size, "epochs": 1})
    asked = {"seed": 0, "split_column": None}
    trainer = Trainer(data, work / "step", learn_setup(data, batch_key="batch"), asked, settings, device.type)
    batches = list(itertools.islice(iter(DeviceFeeder(trainer.loaders["train"], device)), 8))
    batches = [batch for batch in batches if len(batch) == size]
    trainer.model.train()
    weight = torch.ones((), device=device)

    def step(number: int) -> None:
        trainer._seed(trainer._noise, 0, number)
        if trainer._graphed is not None:
            trainer._graphed(batches[number % len(batches)], 1.0, ("rate",))
        else:
            trainer._do_step(batches[number % len(batches)], weight)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number in range(10):
        step(number)
    wait()
    rates, number = [], 10
    for _ in range(5):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 0.5:
            for _ in range(10):
                step(number)
                number += 1
            done += 10 * size
            wait()
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)


def measure_loader(data: CellData, device: torch.device, size: int) -> float:
    """Cells/s of an epoch from disk to the device, nothing computed with them; the second epoch counts."""
    loader = BatchLoader(data, size, seed=0, codes=["batch"])
    for _ in range(2):
        began = time.perf_counter()
        cells = sum(len(batch) for batch in DeviceFeeder(loader, device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        rate = cells / (time.perf_counter() - began)
    return rate


def measure_training(data: CellData, work: Path, device: torch.device, size: int) -> float:
    """Cells/s of `train` from disk, as its own log says; the second epoch counts."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder) / "run"
        settings = choose_settings(size, {})
        train(data, out, batch_key="batch", epochs=2, batch_size=size, device=device.type, settings=settings)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["cells_per_s"] for line in lines if line["kind"] == "epoch"][-1]


def format_table(report: dict) -> str:
    """The report as Markdown."""
    machine = report["machine"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, Python {machine['python']}, "
        f"{report['date']}; {report['seconds']:.0f} s",
        "",
        "| figure | value | target | |",
        "| --- | ---: | ---: | --- |",
        f"| largest error of a loss or gradient | {max(report['errors'].values()):.1e} | < 1e-05 | "
        f"{'met' if report['met']['errors'] else 'NOT MET'} |",
    ]
    for name, value in report["figures"].items():
        target = f">= {TARGETS[name]:,g}" if name in TARGETS else ""
        met = ("met" if report["met"][name] else "NOT MET") if name in TARGETS else ""
        lines.append(f"| {name} | {value:,.3g} | {target} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
