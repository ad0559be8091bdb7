"""One measured kernel of ours in a process of its own: python kernel_runs.py WHAT CELLS GENES [BACKEND] -> JSON.

WHAT: logits (likelihood from logits), decoder (output layer and likelihood), first (sparse first layer), copy, matmul;
sample (counts from the decoder's hidden state: sparse; with 'torch' dense, by torch's own gamma and Poisson).
Forward and backward (sample: forward); milliseconds (median) and the peak memory above what inputs and imports took.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, decoder_nll, log1p_linear, logits_nll, sample_counts

HIDDEN = 128
REPEATS = 9
LIBRARY = 5_000  # counts per cell, of the sample


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
    elif what == "sample":
        hidden, weight, bias = (parameter(*shape) for shape in ((n_cells, HIDDEN), (n_genes, HIDDEN), (n_genes,)))
        sizes = torch.full((n_cells,), float(LIBRARY))
        inputs, cells = [], torch.arange(n_cells)

        def step() -> Tensor:
            if backend == "torch":
                return draw_dense(hidden, weight, bias, sizes, log_theta)
            return sample_counts(hidden, Head(weight, bias), sizes, log_theta, cells=cells, seed=0).counts
    else:
        print(json.dumps({what: measure_machine(what)}))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ms = measure(step, inputs)
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    print(json.dumps({"ms": ms, "peak_mb": peak_mb}))


@torch.no_grad()
def draw_dense(hidden: Tensor, weight: Tensor, bias: Tensor, library: Tensor, log_theta: Tensor) -> Tensor:
    """The same counts in distribution as scvi-tools draws them: dense, a gamma draw, then a Poisson draw."""
    mean = torch.softmax(torch.addmm(bias, hidden, weight.T), dim=1) * library[:, None]
    theta = log_theta.exp().expand_as(mean).contiguous()
    return torch.poisson(torch._standard_gamma(theta) * (mean / theta))


def measure(step: Callable[[], Tensor], inputs: list[Tensor]) -> float:
    """Median milliseconds of forward and backward; of forward alone if there are no inputs to differentiate in."""
    times = []
    for _ in range(REPEATS):
        for tensor in inputs:
            tensor.grad = None
        start = time.perf_counter()
        result = step()
        if inputs:
            result.mean().backward()
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
