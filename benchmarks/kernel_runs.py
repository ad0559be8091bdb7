"""One measured kernel of ours in a process of its own: python kernel_runs.py WHAT CELLS GENES [BACKEND] -> JSON.

WHAT: logits (likelihood from logits), decoder (output layer and likelihood), first (sparse first layer), copy, matmul.
Forward and backward; milliseconds (median) and the peak memory above what inputs and imports took.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, decoder_nll, log1p_linear, logits_nll

HIDDEN = 128
REPEATS = 9


def draw(cells: int, genes: int) -> tuple[SparseCounts, Tensor, torch.Generator]:
    """Counts of which about 5% are not zero, as the peer's benchmark draws them, and the library sizes."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.poisson(torch.rand(cells, genes, generator=generator) * 0.1, generator=generator)
    rows, columns = dense.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=cells).cumsum(0)])
    index_type = torch.uint16 if genes <= 2**16 else torch.int32
    counts = SparseCounts(indptr.int(), columns.to(index_type), dense[rows, columns].to(torch.uint8))
    return counts, dense.sum(1), generator


def main(what: str, cells: str, genes: str, backend: str = "cpu") -> None:
    """Measure one thing, and say it."""
    n_cells, n_genes = int(cells), int(genes)
    counts, library, generator = draw(n_cells, n_genes)

    def parameter(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).div_(10).requires_grad_()

    log_theta = parameter(n_genes)
    if what == "logits":
        inputs = [parameter(n_cells, n_genes), log_theta]

        def step() -> Tensor:
            grad = 1 / n_cells
            return logits_nll(inputs[0], counts, library, log_theta, expected_grad=grad, backend=backend)
    elif what == "decoder":
        inputs = [parameter(n_cells, HIDDEN), parameter(n_genes, HIDDEN), parameter(n_genes), log_theta]

        def step() -> Tensor:
            head = Head(inputs[1], inputs[2])
            return decoder_nll(inputs[0], head, counts, library, log_theta, expected_grad=1 / n_cells, backend=backend)
    elif what == "first":
        inputs = [parameter(n_genes, HIDDEN)]

        def step() -> Tensor:
            return log1p_linear(counts.indptr, counts.indices, counts.counts, inputs[0], backend=backend)
    else:
        print(json.dumps({what: measure_machine(what)}))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ms = measure(step, inputs)
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    print(json.dumps({"ms": ms, "peak_mb": peak_mb}))


def measure(step: Callable[[], Tensor], inputs: list[Tensor]) -> float:
    """Median milliseconds of forward and backward."""
    times = []
    for _ in range(REPEATS):
        for tensor in inputs:
            tensor.grad = None
        start = time.perf_counter()
        step().mean().backward()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def measure_machine(what: str) -> float:
    """Bytes per second of a copy (read and written), or operations per second of a matrix product."""
    if what == "copy":
        source, target = torch.ones(64 * 2**20), torch.empty(64 * 2**20)
        return 2 * source.nbytes / min(_time(lambda: target.copy_(source)) for _ in range(5))
    hidden, weight = torch.randn(1024, HIDDEN), torch.randn(20_000, HIDDEN)
    out = torch.empty(1024, 20_000)
    return 2 * out.numel() * HIDDEN / min(_time(lambda: torch.mm(hidden, weight.T, out=out)) for _ in range(9))


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*sys.argv[1:])
