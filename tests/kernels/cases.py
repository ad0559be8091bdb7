"""Random minibatches and decoders for the tests of the likelihoods, and runs of every backend over them."""

from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, decoder_nll, logits_nll, sample_counts
from atlasvi.kernels.reference import to_dense

IS_INTERPRETED = not torch.cuda.is_available()  # see conftest.py
BACKENDS = [
    "cpu",
    pytest.param("triton", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="Triton compiles for the GPU here")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
THETAS = [1e-6, 1e-3, 0.5, 7.0, 900.0, 1.1e3, 1e5, 1e8]
OPTIONS = [
    (likelihood, dispersion, softmax)
    for likelihood in ("nb", "zinb", "poisson")
    for dispersion in (("gene", "gene-batch", "gene-cell") if likelihood != "poisson" else ("none",))
    for softmax in (True, False)
]


@dataclass
class Case:
    """A random minibatch and decoder; the first cell is empty."""

    likelihood: str
    softmax: bool
    cells: SparseCounts
    library: Tensor
    weights: Tensor  # upstream gradient of each cell's loss
    tensors: dict[str, Tensor] = field(default_factory=dict)
    theta_rows: Tensor | None = None

    def to(self, device: str) -> "Case":
        """The same on another device."""

        def move(value):
            if isinstance(value, SparseCounts):
                return SparseCounts(*(move(t) for t in (value.indptr, value.indices, value.counts)))
            if isinstance(value, dict):
                return {name: move(tensor) for name, tensor in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        return Case(*(move(getattr(self, f.name)) for f in fields(self)))


def make_case(
    likelihood: str, dispersion: str, softmax: bool, n_cells: int, n_genes: int, seed: int, largest: int = 50
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dense = torch.randint(1, largest + 1, (n_cells, n_genes), generator=generator)
    dense *= torch.rand(n_cells, n_genes, generator=generator) < 0.2
    dense[0] = 0
    rows, genes = dense.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=n_cells).cumsum(0)])
    cells = SparseCounts(indptr.int(), genes.to(torch.uint16), dense[rows, genes].int())
    tensors = {"hidden": draw(n_cells, 8), "weight": draw(n_genes, 8), "bias": draw(n_genes)}
    case = Case(likelihood, softmax, cells, dense.sum(1).float(), torch.rand(n_cells, generator=generator), tensors)
    if dispersion == "gene":
        tensors["log_theta"] = draw(n_genes)
    elif dispersion == "gene-batch":
        tensors["log_theta"] = draw(3, n_genes)
        case.theta_rows = torch.randint(0, 3, (n_cells,), generator=generator)
    elif dispersion == "gene-cell":
        tensors |= {"theta_weight": draw(n_genes, 8) / 4, "theta_bias": draw(n_genes)}
    if likelihood == "zinb":
        tensors |= {"dropout_weight": draw(n_genes, 8), "dropout_bias": draw(n_genes)}
    return case


def run(case: Case, backend: str, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Tensor]:
    """The loss of each cell and the gradients of the weighted sum, by name, on the CPU; 'cuda' is 'triton' there."""
    case, backend = (case.to("cuda"), "triton") if backend == "cuda" else (case, backend)
    t = {name: tensor.to(dtype).clone().requires_grad_() for name, tensor in case.tensors.items()}
    loss = decoder_nll(
        t["hidden"],
        Head(t["weight"], t["bias"]),
        case.cells,
        case.library.to(dtype),
        **likelihood_options(case, t),
        backend=backend,
        **options,
    )
    (loss * case.weights.to(dtype)).sum().backward()
    gradients = {name: tensor.grad.cpu() for name, tensor in t.items() if tensor.grad is not None}
    return {"loss": loss.detach().cpu(), **gradients}


def likelihood_options(case: Case, t: dict[str, Tensor]) -> dict[str, Any]:
    """What `decoder_nll` and `sample_counts` take besides the hidden state and the output layer, from these tensors."""
    return {
        "log_theta": Head(t["theta_weight"], t["theta_bias"]) if "theta_weight" in t else t.get("log_theta"),
        "theta_rows": case.theta_rows,
        "dropout": Head(t["dropout_weight"], t["dropout_bias"]) if "dropout_weight" in t else None,
        "likelihood": case.likelihood,
        "softmax": case.softmax,
    }


def sample(case: Case, backend: str, **options: Any) -> Tensor:
    """Counts drawn for the case, int32 [cells, genes] on the CPU; cells are numbered from 0 unless `cells` is given."""
    case, backend = (case.to("cuda"), "triton") if backend == "cuda" else (case, backend)
    t, n_cells = case.tensors, len(case.library)
    given: dict[str, Any] = {"cells": torch.arange(n_cells), "seed": 5, **options}
    given["cells"] = given["cells"].to(case.library.device)
    drawn = sample_counts(
        t["hidden"],
        Head(t["weight"], t["bias"]),
        case.library,
        **likelihood_options(case, t),
        backend=backend,
        **given,
    )
    assert (drawn.indptr.dtype, drawn.indices.dtype, drawn.counts.dtype) == (torch.int64, torch.int32, torch.int32)
    assert (drawn.counts > 0).all()
    n_genes = len(t["bias"])
    return to_dense(drawn.indptr, drawn.indices, drawn.counts, n_genes, torch.float64).int().cpu()


def run_logits(
    case: Case,
    backend: str,
    logits: Tensor,
    log_theta: Tensor | None,
    dropout: Tensor | None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> dict[str, Tensor]:
    """As `run`, from logits; log_theta [genes], or [cells, genes] if the case has no rows."""
    device = "cuda" if backend == "cuda" else "cpu"
    case, backend = case.to(device), "triton" if backend == "cuda" else backend
    names = ("logits", "log_theta", "dropout")
    given = {
        name: None if t is None else t.detach().to(device, dtype, copy=True).requires_grad_()
        for name, t in zip(names, (logits, log_theta, dropout))
    }
    loss = logits_nll(
        given["logits"],
        case.cells,
        case.library.to(dtype),
        given["log_theta"],
        theta_rows=case.theta_rows,
        dropout=given["dropout"],
        likelihood=case.likelihood,
        softmax=case.softmax,
        backend=backend,
        **options,
    )
    (loss * case.weights.to(dtype)).sum().backward()
    return {"loss": loss.detach().cpu(), **{name: t.grad.cpu() for name, t in given.items() if t is not None}}


def assert_agree(got: dict[str, Tensor], expected: dict[str, Tensor], slack: float = 0.0) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.isfinite(got[name]).all(), name
        error = (got[name].double() - expected[name].double()).norm()
        assert error <= 1e-5 * expected[name].double().norm() + slack, (name, error, expected[name].norm())
