import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, decoder_nll, logits_nll

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


def run(case: Case, backend: str, dtype: torch.dtype = torch.float32, expected_grad: float = 1.0) -> dict[str, Tensor]:
    """The loss of each cell and the gradients of the weighted sum, by name."""
    t = {name: tensor.to(dtype).clone().requires_grad_() for name, tensor in case.tensors.items()}
    log_theta = Head(t["theta_weight"], t["theta_bias"]) if "theta_weight" in t else t.get("log_theta")
    loss = decoder_nll(
        t["hidden"],
        Head(t["weight"], t["bias"]),
        case.cells,
        case.library.to(dtype),
        log_theta,
        theta_rows=case.theta_rows,
        dropout=Head(t["dropout_weight"], t["dropout_bias"]) if "dropout_weight" in t else None,
        likelihood=case.likelihood,
        softmax=case.softmax,
        expected_grad=expected_grad,
        backend=backend,
    )
    (loss * case.weights.to(dtype)).sum().backward()
    return {"loss": loss.detach(), **{name: tensor.grad for name, tensor in t.items() if tensor.grad is not None}}


def assert_agree(got: dict[str, Tensor], expected: dict[str, Tensor], slack: float = 0.0) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.isfinite(got[name]).all(), name
        error = (got[name].double() - expected[name].double()).norm()
        assert error <= 1e-5 * expected[name].double().norm() + slack, (name, error, expected[name].norm())


@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_loss_and_gradients_equal_the_reference(likelihood: str, dispersion: str, softmax: bool):
    for n_cells, n_genes, seed in ((13, 211, 0), (1, 40, 1), (5, 5_000, 2)):
        case = make_case(likelihood, dispersion, softmax, n_cells, n_genes, seed)
        slack = 2e-6 * max(1.0, float(case.library.sum()))  # what is next to nothing may be rounding of what is not
        assert_agree(run(case, "cpu"), run(case, "torch", torch.float64), slack)


@settings(max_examples=25, deadline=None)
@given(
    options=st.sampled_from(OPTIONS),
    n_cells=st.integers(1, 9),
    n_genes=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    log_theta=st.floats(math.log(1e-6), math.log(1e8)),
    log_library=st.floats(0, math.log(1e7)),
)
def test_any_dispersion_and_library_size(options, n_cells, n_genes, seed, log_theta, log_library):
    case = make_case(*options, n_cells, n_genes, seed)
    for name in ("log_theta", "theta_bias"):
        if name in case.tensors:
            case.tensors[name] += log_theta
    case.library = torch.full((n_cells,), math.exp(log_library))
    total = float(case.cells.counts.sum()) + float(case.library.sum()) * n_genes
    assert_agree(run(case, "cpu"), run(case, "torch", torch.float64), 3e-6 * max(1.0, total))


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_loss_and_gradients_hold_at_the_edges(likelihood: str, theta: float):
    """Proportions down to 1e-12, library sizes to 1e7, counts to 1e6, an empty cell."""
    case = make_case(likelihood, "gene" if likelihood != "poisson" else "none", True, 4, 30, seed=3, largest=10**6)
    case.library = torch.tensor([0.0, 1.0, 1e4, 1e7])
    logits = torch.linspace(math.log(1e-12), 0, 120).reshape(4, 30)[:, torch.randperm(30)]
    log_theta = None if likelihood == "poisson" else torch.full((30,), math.log(theta))
    dropout = torch.linspace(-20, 20, 120).reshape(4, 30) if likelihood == "zinb" else None
    results = []
    for backend, dtype in (("cpu", torch.float32), ("torch", torch.float64)):
        given = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in (logits, log_theta, dropout)]
        loss = logits_nll(
            given[0], case.cells, case.library.to(dtype), given[1],
            dropout=given[2], likelihood=likelihood, backend=backend,
        )  # fmt: skip
        loss.sum().backward()
        names = ("logits", "log_theta", "dropout")
        results.append({"loss": loss.detach(), **{n: t.grad for n, t in zip(names, given) if t is not None}})
        if likelihood == "nb":
            assert loss[0] == 0
    assert_agree(*results)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
def test_counts_in_any_integer_type_are_the_same_counts(dtype: torch.dtype):
    case = make_case("nb", "gene", True, 13, 211, 0)
    exact = run(case, "torch", torch.float64)
    case.cells = SparseCounts(case.cells.indptr, case.cells.indices, case.cells.counts.to(dtype))
    assert_agree(run(case, "cpu"), exact, 1e-3)


def test_an_upstream_gradient_that_was_expected_is_the_same_as_another():
    case = make_case("nb", "gene", True, 12, 80, 0)
    exact = run(case, "torch", torch.float64)
    case.weights = torch.full((12,), 0.25)
    uniform = run(case, "torch", torch.float64)
    for expected_grad in (1.0, 0.25):
        assert_agree(run(case, "cpu", expected_grad=expected_grad), uniform, 1e-4)
    case.weights = make_case("nb", "gene", True, 12, 80, 0).weights
    assert_agree(run(case, "cpu", expected_grad=0.25), exact, 1e-4)


@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_from_logits_it_is_the_same(likelihood: str, dispersion: str, softmax: bool):
    case = make_case(likelihood, dispersion, softmax, 9, 120, 4)
    t = case.tensors

    def project(prefix: str) -> Tensor:
        return (t["hidden"] @ t[f"{prefix}weight"].T + t[f"{prefix}bias"]).detach().requires_grad_()

    log_theta = project("theta_") if "theta_weight" in t else t.get("log_theta")
    dropout = project("dropout_") if likelihood == "zinb" else None
    results = []
    for backend in ("cpu", "torch"):
        logits = project("")
        loss = logits_nll(
            logits, case.cells, case.library, log_theta,
            theta_rows=case.theta_rows, dropout=dropout, likelihood=likelihood, softmax=softmax, backend=backend,
        )  # fmt: skip
        (loss * case.weights).sum().backward()
        results.append({"loss": loss.detach(), "logits": logits.grad})
    assert_agree(*results, slack=1e-3)


def test_evaluation_gives_the_same_losses_and_keeps_no_gradient():
    case = make_case("nb", "gene", True, 12, 80, 0)
    with torch.inference_mode():
        t = case.tensors
        loss = decoder_nll(t["hidden"], Head(t["weight"], t["bias"]), case.cells, case.library, t["log_theta"])
    assert torch.equal(loss, run(case, "cpu")["loss"])


def test_numbers_that_are_none_come_out_as_such():
    case = make_case("nb", "gene", True, 6, 50, 0)
    case.tensors["hidden"][2, 0] = math.nan
    t = case.tensors
    loss = decoder_nll(t["hidden"], Head(t["weight"], t["bias"]), case.cells, case.library, t["log_theta"])
    assert loss.isnan().tolist() == [False, False, True, False, False, False]


def test_threads_share_the_cells_and_change_no_loss():
    case = make_case("nb", "gene", True, 40, 300, 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, "cpu")
        torch.set_num_threads(3)
        shared = run(case, "cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone["loss"], shared["loss"])
    assert_agree(shared, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": "gamma"}, "choose 'nb', 'zinb' or 'poisson'"),
        ({"likelihood": "poisson"}, "poisson has no dispersion"),
        ({"log_theta": None}, "nb needs a dispersion"),
        ({"likelihood": "zinb"}, "zinb needs a head of dropouts"),
        ({"backend": "fortran"}, "choose one of cpu, torch"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, message: str):
    case = make_case("nb", "gene", True, 3, 20, 0)
    t = case.tensors
    options = {"log_theta": t["log_theta"], "likelihood": "nb"} | changes
    with pytest.raises(ValueError, match=message):
        decoder_nll(t["hidden"], Head(t["weight"], t["bias"]), case.cells, case.library, **options)
