"""scvi-tools' NB log-likelihood, forward and backward, eager and compiled: python kernels.py CELLS GENES -> JSON.

Runs in the peers' environment, imports nothing of atlasvi.
"""

import json
import resource
import sys
import time

import torch
from scvi.distributions import NegativeBinomial


def nll(counts, mean, theta):
    """Mean negative log-likelihood of a cell, summed over genes."""
    return -NegativeBinomial(mu=mean, theta=theta, validate_args=False).log_prob(counts).sum(-1).mean()


def measure(function, cells, genes):
    """Milliseconds (median) of forward and backward, and the memory that they add."""
    torch.manual_seed(0)
    counts = torch.poisson(torch.rand(cells, genes) * 0.1)
    mean = (torch.rand(cells, genes) * 0.1 + 1e-3).requires_grad_()
    theta = torch.randn(genes).exp().requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(6):
        mean.grad = theta.grad = None
        start = time.perf_counter()
        function(counts, mean, theta).backward()
        times.append(time.perf_counter() - start)
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    return {"ms": 1e3 * sorted(times[1:])[len(times[1:]) // 2], "peak_mb": peak_mb}


def main(cells, genes):
    """Measure both, and say so."""
    said = {"eager": measure(nll, int(cells), int(genes))}
    try:
        said["compiled"] = measure(torch.compile(nll), int(cells), int(genes))
    except Exception as error:  # no C++ compiler, say
        said["compiled"] = {"ms": None, "error": str(error)[:200]}
    print(json.dumps(said))


main(*sys.argv[1:])
