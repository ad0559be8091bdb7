"""Do the kernels on the device agree with float64, for every likelihood, dispersion and mean?

    python benchmarks/gpu_checks.py --out DIR [--quick]

The largest relative, norm-wise error of losses and gradients of each option, float32 on the device against plain torch
in float64, over random minibatches of several shapes; bf16 products apart. Writes checks.json into DIR.
"""

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from gpu_inputs import choose_device, describe_machine, draw_counts, to_sparse_counts
from torch import Tensor

from atlasvi.kernels import (
    Head,
    Precision,
    SparseCounts,
    choose_backend,
    decoder_nll,
    log1p_linear,
    logits_nll,
    norm_relu,
)

SHAPES = ((37, 613, 16), (300, 2_000, 128))
OPTIONS = [
    (likelihood, dispersion, softmax)
    for likelihood in ("nb", "zinb", "poisson")
    for dispersion in (("gene", "gene-batch", "gene-cell") if likelihood != "poisson" else ("none",))
    for softmax in (True, False)
]


def main() -> None:
    """Check and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="one small shape; without a GPU too")
    options = parser.parse_args()
    device = choose_device(options.quick)
    errors: dict[str, float] = {}
    shapes = list(itertools.product(SHAPES[:1] if options.quick else SHAPES, (1,) if options.quick else (1, 2)))
    tasks = [(*shape, device, seed, option) for option in [*OPTIONS, None] for shape, seed in shapes]
    for found_errors in check_all(tasks, device):
        for name, error in found_errors.items():
            errors[name] = max(errors.get(name, 0.0), error if np.isfinite(error) else np.inf)
    found = {"machine": describe_machine(device), "errors": errors}
    (options.out / "checks.json").write_text(json.dumps(found, indent=1) + "\n")


def check_all(tasks: list[tuple], device: torch.device) -> Iterator[dict[str, float]]:
    """`check` of each task: for a GPU in several processes, since most of the time goes to compiling."""
    if device.type != "cuda":
        yield from itertools.starmap(check, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8)) as pool:
        yield from pool.starmap(check, tasks)


def check(
    n_cells: int, n_genes: int, n_hidden: int, device: torch.device, seed: int, option: tuple | None
) -> dict[str, float]:
    """The largest error of an option for one random minibatch; None: of the kernels beside the decoder."""
    counts = draw_counts(n_cells, n_genes, seed)
    cells, library = to_sparse_counts(counts, device), torch.from_numpy(np.asarray(counts.sum(1)).ravel()).to(device)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n_cells, device=device) % 3

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device) / 3

    if option is None:
        return check_others(cells, library, rows, draw, n_genes, n_hidden)
    likelihood, dispersion, softmax = option
    inputs = {"hidden": draw(n_cells, n_hidden), "weight": draw(n_genes, n_hidden), "bias": draw(n_genes)}
    shapes = {"gene": (n_genes,), "gene-batch": (3, n_genes), "gene-cell": (n_genes, n_hidden)}
    if likelihood != "poisson":
        inputs["theta"] = draw(*shapes[dispersion])
    inputs |= {"theta_bias": draw(n_genes), "dropout": draw(n_genes, n_hidden), "dropout_bias": draw(n_genes)}

    def run(dtype: torch.dtype, backend: str | None, precision: Precision) -> list[Tensor]:
        t = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}
        theta = t.get("theta")
        loss = decoder_nll(
            t["hidden"],
            Head(t["weight"], t["bias"]),
            cells,
            library.to(dtype),
            Head(theta, t["theta_bias"]) if theta is not None and dispersion == "gene-cell" else theta,
            theta_rows=rows if dispersion == "gene-batch" else None,
            dropout=Head(t["dropout"], t["dropout_bias"]) if likelihood == "zinb" else None,
            likelihood=likelihood,
            softmax=softmax,
            expected_grad=1 / n_cells,
            precision=precision,
            backend=backend,
        )
        loss.mean().backward()
        return [loss.detach(), *(tensor.grad for tensor in t.values() if tensor.grad is not None)]

    exact = run(torch.float64, "torch", "float32")
    name = f"{likelihood}, {dispersion}, {'softmax' if softmax else 'softplus'}"
    errors = {name: largest_error(run(torch.float32, None, "float32"), exact)}
    if choose_backend(device) == "triton":
        errors[f"{name}, bf16"] = largest_error(run(torch.float32, None, "bf16"), exact)
    return errors


def check_others(
    cells: SparseCounts, library: Tensor, codes: Tensor, draw: Callable[..., Tensor], n_genes: int, n_hidden: int
) -> dict[str, float]:
    """The largest errors of the likelihood from logits, of the first layer and of a hidden layer."""
    n_cells, errors = len(library), {}
    logits, theta = draw(n_cells, n_genes), draw(n_genes)
    results = []
    for dtype, backend in ((torch.float32, None), (torch.float64, "torch")):
        a, b = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (logits, theta))
        loss = logits_nll(a, cells, library.to(dtype), b, expected_grad=1 / n_cells, backend=backend)
        loss.mean().backward()
        results.append([loss.detach(), a.grad, b.grad])
    errors["from logits: nb, gene, softmax"] = largest_error(*results)

    weight, upstream, results = draw(n_genes, n_hidden), draw(n_cells, n_hidden), []
    for dtype, backend in ((torch.float32, None), (torch.float64, "torch")):
        w = weight.to(dtype, copy=True).requires_grad_()
        out = log1p_linear(cells.indptr, cells.indices, cells.counts, w, backend=backend)
        out.backward(upstream.to(dtype))
        results.append([out.detach(), w.grad])
    errors["first layer"] = largest_error(*results)

    projected, columns, results = draw(n_cells, n_hidden), draw(3, n_hidden), []
    for dtype, backend in ((torch.float32, None), (torch.float64, "torch")):
        a, b = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (projected, columns))
        out = norm_relu(a, b, codes, backend=backend)
        out.backward(upstream.to(dtype))
        results.append([out.detach(), a.grad, b.grad])
    errors["hidden layer"] = largest_error(*results)
    return errors


def largest_error(got: list[Tensor | None], exact: list[Tensor | None]) -> float:
    """The largest of |got - exact| / |exact| over the tensors."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True))  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
