"""How near do the kernels come to what the device can do at most, and how far are they from plain torch?

    python benchmarks/gpu_kernels.py --out DIR [--genes 20000] [--cells 4096] [--quick]

Measured first: a copy and matrix products in float32 and bfloat16 (the roofline). Then, forward and backward, the
likelihood from logits, output layer and likelihood, the encoder's first layer and a hidden layer, replayed as CUDA
graphs, as in a step; the order of the nonzeros by gene, which a step computes once, is measured by itself. Then plain
torch and its `torch.compile`. Writes kernels.json, after each figure anew, and profiles.txt (the time of each kernel on
the device) into DIR.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gpu_inputs import choose_device, describe_machine, draw_counts, time_ms, to_sparse_counts
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from atlasvi.kernels import (
    Head,
    Precision,
    choose_backend,
    decoder_nll,
    log1p_linear,
    logits_nll,
    norm_relu,
    order_by_gene,
)

HIDDEN = 128


def main() -> None:
    """Measure and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=4_096)
    parser.add_argument("--quick", action="store_true", help="everything small; without a GPU too")
    options = parser.parse_args()
    device = choose_device(options.quick)
    shape = (256, 500) if options.quick else (options.cells, options.genes)
    found = {"machine": describe_machine(device), "figures": {}}
    for name, value in measure(*shape, device, options.out):
        found["figures"][name] = value
        (options.out / "kernels.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {value:,.3g}", file=sys.stderr, flush=True)


def measure(n_cells: int, n_genes: int, device: torch.device, out: Path):
    """Yields name and value of each figure."""
    counts = draw_counts(n_cells, n_genes, seed=2)
    csr = to_sparse_counts(counts, device)
    by_gene = order_by_gene(csr.indptr, csr.indices, n_genes)
    library = torch.from_numpy(np.asarray(counts.sum(1)).ravel()).to(device)

    def parameter(*shape: int) -> Tensor:
        return (torch.randn(*shape, device=device) / 10).requires_grad_()

    logits, theta = parameter(n_cells, n_genes), parameter(n_genes)
    hidden, weight = parameter(n_cells, HIDDEN), parameter(n_genes, HIDDEN)
    bias, first = parameter(n_genes), parameter(n_genes, HIDDEN)
    upstream = torch.ones(n_cells, HIDDEN, device=device)

    def likelihood(backend: str | None = None) -> None:
        logits.grad = theta.grad = None
        logits_nll(logits, csr, library, theta, expected_grad=1 / n_cells, backend=backend).mean().backward()

    def decoder(backend: str | None = None, precision: Precision = "float32") -> None:
        hidden.grad = weight.grad = bias.grad = theta.grad = None
        loss = decoder_nll(
            hidden, Head(weight, bias), csr, library, theta,
            expected_grad=1 / n_cells, precision=precision, backend=backend,
        )  # fmt: skip
        loss.mean().backward()

    def layer(backend: str | None = None) -> None:
        first.grad = None
        out = log1p_linear(csr.indptr, csr.indices, csr.counts, first, order=by_gene, backend=backend)
        out.backward(upstream)

    columns, codes = parameter(12, HIDDEN), torch.arange(n_cells, device=device) % 12
    dropout = torch.ones(n_cells, HIDDEN, device=device)

    def hidden_layer(backend: str | None = None) -> None:
        hidden.grad = columns.grad = None
        norm_relu(hidden, columns, codes, dropout, backend=backend).backward(upstream)

    def order() -> object:
        return order_by_gene(csr.indptr, csr.indices, n_genes)

    source, target = torch.randn_like(logits), torch.empty_like(logits)
    copy_ms = time_ms(lambda: target.copy_(source), device)
    yield "copy: GB/s", 2 * source.nbytes / copy_ms / 1e6
    size = 256 if device.type == "cpu" else 8_192
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        yield f"square product, {name}: TFLOP/s", 2 * size**3 / time_ms(lambda: a @ b, device, 10) / 1e9  # noqa: B023
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        product_ms = time_ms(lambda: h @ w.T, device)  # noqa: B023
        yield f"output layer's product, {name}: TFLOP/s", 2 * n_cells * n_genes * HIDDEN / product_ms / 1e9
    kernels: dict[str, Callable[..., None]] = {
        "likelihood": likelihood, "decoder": decoder, "first layer": layer, "hidden layer": hidden_layer,
    }  # fmt: skip
    for name, function in kernels.items():
        yield f"{name}: ms", time_ms(function, device, as_graph=True)
    yield "order by gene: ms", time_ms(order, device, as_graph=True)
    # the least that must be moved: logits read, their gradients written, counts and genes read
    least_ms = (2 * logits.nbytes + 3 * counts.nnz) / (2 * source.nbytes) * copy_ms
    yield "likelihood: share of copy bandwidth", least_ms / time_ms(likelihood, device, as_graph=True)
    if choose_backend(device) == "triton":
        yield "decoder, bf16: ms", time_ms(lambda: decoder(precision="bf16"), device, as_graph=True)
        (out / "profiles.txt").write_text("")
        for name, function in {**kernels, "decoder, bf16": lambda: decoder(precision="bf16")}.items():
            append_profile(out / "profiles.txt", name, function)
    for name, function in kernels.items():
        yield f"{name}, plain torch: ms", time_ms(lambda: function("torch"), device, 5)  # noqa: B023
    if device.type == "cuda":
        for name, function in kernels.items():
            try:
                compiled = torch.compile(lambda: function("torch"))  # noqa: B023
                yield f"{name}, torch.compile: ms", time_ms(compiled, device, 5)
            except Exception as error:
                print(f"torch.compile of {name}: {str(error)[:300]}", file=sys.stderr)
            torch.compiler.reset()


def append_profile(file: Path, name: str, function: Callable[[], object], calls: int = 5) -> None:
    """The time of each kernel that a call launches, to a file."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    lines = [f"{name}: {sum(event.self_device_time_total for event in events) / calls / 1e3:.3f} ms on the device"]
    lines += [
        f"{event.self_device_time_total / calls / 1e3:9.3f} ms {event.count / calls:6.1f} x  {event.key[:110]}"
        for event in events[:24]
    ]
    with file.open("a") as opened:
        opened.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
