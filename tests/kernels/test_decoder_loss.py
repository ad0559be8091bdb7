import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts, cpu_tile, decoder_loss, decoder_nll, logits_nll
from tests.kernels.cases import (
    BACKENDS,
    OPTIONS,
    THETAS,
    Case,
    assert_agree,
    likelihood_options,
    make_case,
    run,
    run_logits,
)

SIZES = [(13, 211, 0), (1, 40, 1), (5, 5_000, 2)]  # but for the interpreter, which takes a tenth of a second a cell


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_loss_and_gradients_equal_the_reference(likelihood: str, dispersion: str, softmax: bool, backend: str):
    for n_cells, n_genes, seed in [(3, 61, 0)] if backend == "triton" else SIZES:
        case = make_case(likelihood, dispersion, softmax, n_cells, n_genes, seed)
        slack = 2e-6 * max(1.0, float(case.library.sum()))  # what is next to nothing may be rounding of what is not
        assert_agree(run(case, backend), run(case, "torch", torch.float64), slack)


def check_any_dispersion_and_library_size(backend, options, n_cells, n_genes, seed, log_theta, log_library):
    case = make_case(*options, n_cells, n_genes, seed)
    for name in ("log_theta", "theta_bias"):
        if name in case.tensors:
            case.tensors[name] += log_theta
    case.library = torch.full((n_cells,), math.exp(log_library))
    total = float(case.cells.counts.sum()) + float(case.library.sum()) * n_genes
    assert_agree(run(case, backend), run(case, "torch", torch.float64), 3e-6 * max(1.0, total))


anything = given(
    options=st.sampled_from(OPTIONS),
    n_cells=st.integers(1, 9),
    n_genes=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    log_theta=st.floats(math.log(1e-6), math.log(1e8)),
    log_library=st.floats(0, math.log(1e7)),
)


@settings(max_examples=25, deadline=None)
@anything
def test_any_dispersion_and_library_size(options, n_cells, n_genes, seed, log_theta, log_library):
    check_any_dispersion_and_library_size("cpu", options, n_cells, n_genes, seed, log_theta, log_library)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@settings(max_examples=6, deadline=None)
@anything
def test_any_dispersion_and_library_size_on_triton(backend, options, n_cells, n_genes, seed, log_theta, log_library):
    few = min(n_cells, 2) if backend == "triton" else n_cells
    check_any_dispersion_and_library_size(backend, options, few, n_genes, seed, log_theta, log_library)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_loss_and_gradients_hold_at_the_edges(likelihood: str, backend: str):
    """Proportions down to 1e-12, library sizes to 1e7, counts to 1e6, an empty cell; theta from 1e-6 to 1e8."""
    case = make_case(likelihood, "gene" if likelihood != "poisson" else "none", True, 4, 30, seed=3, largest=10**6)
    case.library, case.weights = torch.tensor([0.0, 1.0, 1e4, 1e7]), torch.ones(4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    logits = torch.linspace(math.log(1e-12), 0, 120).reshape(4, 30)[:, order]
    dropout = torch.linspace(-20, 20, 120).reshape(4, 30) if likelihood == "zinb" else None
    thetas = [None] if likelihood == "poisson" else [1e-6, 0.5, 1.1e3, 1e8] if backend == "triton" else THETAS
    for theta in thetas:
        log_theta = torch.full((30,), math.log(theta)) if theta else None
        got = run_logits(case, backend, logits, log_theta, dropout)
        assert_agree(got, run_logits(case, "torch", logits, log_theta, dropout, torch.float64))
        if likelihood == "nb":
            assert got["loss"][0] == 0


def test_an_upstream_gradient_that_was_expected_is_the_same_as_another():
    case = make_case("nb", "gene", True, 12, 80, 0)
    exact = run(case, "torch", torch.float64)
    unequal, case.weights = case.weights, torch.full((12,), 0.25)
    uniform = run(case, "torch", torch.float64)
    for expected_grad in (1.0, 0.25):
        assert_agree(run(case, "cpu", expected_grad=expected_grad), uniform, 1e-4)
    case.weights = unequal
    assert_agree(run(case, "cpu", expected_grad=0.25), exact, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_promise_of_the_upstream_gradient_that_is_not_kept_gives_no_gradient(backend: str):
    case = make_case("zinb", "gene-batch", True, 3, 40, 0)
    unequal, case.weights = case.weights, torch.full((3,), 0.25)
    assert_agree(run(case, backend, expected_grad=0.25), run(case, "torch", torch.float64), 1e-4)
    for weights, expected_grad in ((case.weights, 1.0), (unequal, 0.25)):
        case.weights = weights
        got = run(case, backend, expected_grad=expected_grad)
        assert all(gradient.isnan().any() for name, gradient in got.items() if name != "loss")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_from_logits_it_is_the_same(likelihood: str, dispersion: str, softmax: bool, backend: str):
    case = make_case(likelihood, dispersion, softmax, 2 if backend == "triton" else 9, 120, 4)
    t = case.tensors

    def project(prefix: str) -> Tensor:
        return t["hidden"] @ t[f"{prefix}weight"].T + t[f"{prefix}bias"]

    log_theta = project("theta_") if "theta_weight" in t else t.get("log_theta")
    given = project(""), log_theta, project("dropout_") if likelihood == "zinb" else None
    kept = given[0].clone()
    assert_agree(run_logits(case, backend, *given), run_logits(case, "torch", *given), slack=1e-3)
    assert torch.equal(given[0], kept)


@pytest.mark.gpu
def test_from_logits_in_aligned_rows_longer_than_a_block():
    """Loads are wide then, and the threads that load values others than those that write on them."""
    case = make_case("nb", "gene", True, 300, 2_000, 4)
    case.weights = torch.full((300,), 1 / 300)
    logits, log_theta = torch.randn(300, 2_000, generator=torch.Generator().manual_seed(0)), case.tensors["log_theta"]
    exact = run_logits(case, "torch", logits, log_theta, None, torch.float64)
    for expected_grad in (1 / 300, None):
        assert_agree(run_logits(case, "cuda", logits, log_theta, None, expected_grad=expected_grad), exact, slack=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_logits_in_any_order_of_memory(backend: str):
    case = make_case("nb", "gene-batch", True, 3, 40, 4)
    logits, log_theta = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).T, case.tensors["log_theta"]
    got = run_logits(case, backend, logits, log_theta.T.contiguous().T, None)
    assert_agree(got, run_logits(case, "torch", logits, log_theta, None, torch.float64), slack=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_logits_the_expected_gradients_are_handed_on(backend: str):
    case = make_case("nb", "gene", True, 3, 40, 4)
    case.weights = torch.full((3,), 0.25)
    logits, log_theta = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)), case.tensors["log_theta"]
    exact = run_logits(case, "torch", logits, log_theta, None, torch.float64)
    assert_agree(run_logits(case, backend, logits, log_theta, None, expected_grad=0.25), exact, slack=1e-4)
    if backend == "cpu":
        assert_agree(run_logits(case, backend, logits, log_theta, None, expected_grad=0.5), exact, slack=1e-4)
    else:  # a promise that is not kept
        got = run_logits(case, backend, logits, log_theta, None, expected_grad=0.5)
        assert all(gradient.isnan().any() for name, gradient in got.items() if name != "loss")


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_gives_the_same_losses_and_keeps_no_gradient(backend: str):
    case = make_case("nb", "gene", True, 2, 80, 0)
    given = case.to("cuda") if backend == "cuda" else case
    t, name = given.tensors, "triton" if backend == "cuda" else backend
    with torch.inference_mode():
        head = Head(t["weight"], t["bias"])
        loss = decoder_nll(t["hidden"], head, given.cells, given.library, t["log_theta"], backend=name)
    assert torch.equal(loss.cpu(), run(case, backend)["loss"])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_evaluation_computes_no_gradients_of_parameters(mode: Callable, monkeypatch: pytest.MonkeyPatch):
    case = make_case("nb", "gene", True, 2, 80, 0)
    t = {name: tensor.clone().requires_grad_() for name, tensor in case.tensors.items()}
    given = {"expected_grad": 0.5, "backend": "cpu"}
    expected, weights = run(case, "cpu")["loss"], []
    take_tile = cpu_tile.sweep_tile

    def keep_weights(options, first, last, logits, table, of_gradients, *others, **named):
        weights.append(of_gradients)
        take_tile(options, first, last, logits, table, of_gradients, *others, **named)

    monkeypatch.setattr(cpu_tile, "sweep_tile", keep_weights)
    monkeypatch.delattr(decoder_loss, "multiply_into")  # the products of gradients
    with mode():
        head = Head(t["weight"], t["bias"])
        loss = decoder_nll(t["hidden"], head, case.cells, case.library, t["log_theta"], **given)
        logits = torch.addmm(t["bias"], t["hidden"], t["weight"].T).requires_grad_()
        of_logits = logits_nll(logits, case.cells, case.library, t["log_theta"], **given)
    assert torch.equal(loss, expected)
    assert torch.allclose(of_logits, expected)
    assert weights == [None, None]


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_the_logits_of_a_cell_comes_out_as_nan_of_that_cell(backend: str, softmax: bool):
    case = make_case("nb", "gene", softmax, 4, 50, 0)
    case.tensors["hidden"][2, 0] = math.nan
    assert run(case, backend)["loss"].isnan().tolist() == [False, False, True, False]
    case = make_case("nb", "gene", softmax, 4, 50, 0)
    counted = case.cells.indices[case.cells.indptr[2] : case.cells.indptr[3]].tolist()
    zero = next(gene for gene in range(50) if gene not in counted)
    logits = torch.zeros(4, 50)
    logits[2, zero] = math.nan
    got = run_logits(case, backend, logits, case.tensors["log_theta"], None)
    assert got["loss"].isnan().tolist() == [False, False, True, False]
    assert got["logits"][2].isnan().any()
    assert got["logits"][[0, 1, 3]].isfinite().all()


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_past_the_end_of_indptr_is_not_looked_at(backend: str):
    case = make_case("nb", "gene", True, 3, 40, 0)
    cells, tail = case.cells, torch.full((9,), 60_000, dtype=torch.int32)
    padded = [torch.cat([tensor.int(), tail]).to(tensor.dtype) for tensor in (cells.indices, cells.counts)]
    expected = run(case, backend)
    got = run(replace(case, cells=SparseCounts(cells.indptr, *padded)), backend)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_come_in_any_integer_types(backend: str):
    case = make_case("nb", "gene", True, 2, 40, 0)
    expected, cells = run(case, "torch", torch.float64), case.cells
    for pointers, genes, counts in (
        (torch.int64, torch.int64, torch.uint16),
        (torch.int32, torch.int32, torch.uint8),
        (torch.int32, torch.int64, torch.int64),
    ):
        case.cells = SparseCounts(cells.indptr.to(pointers), cells.indices.to(genes), cells.counts.to(counts))
        assert_agree(run(case, backend), expected, 1e-4)


def test_large_counts_in_unsigned_types_give_what_they_give_in_signed_ones():
    case = make_case("nb", "gene", True, 2, 40, 0)
    cells = case.cells
    counts = cells.counts.clone()
    counts[::3] = 1043
    case.cells = SparseCounts(cells.indptr, cells.indices, counts)
    expected = run(case, "cpu")
    case.cells = SparseCounts(cells.indptr, cells.indices, counts.to(torch.uint16))
    assert_agree(run(case, "cpu"), expected, 1e-6)


def test_what_inference_computed_does_not_stand_in_the_way_of_training():
    case = make_case("nb", "gene", True, 2, 50, 0)
    with torch.inference_mode():
        t = case.tensors
        decoder_nll(t["hidden"], Head(t["weight"], t["bias"]), case.cells, case.library, t["log_theta"], backend="cpu")
    assert torch.isfinite(run(case, "cpu")["loss"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": "gamma"}, "choose 'nb', 'zinb' or 'poisson'"),
        ({"likelihood": "poisson"}, "poisson has no dispersion"),
        ({"log_theta": None}, "nb needs a dispersion"),
        ({"log_theta": torch.zeros(2, 20)}, "log_theta has 2 rows: theta_rows"),
        ({"likelihood": "zinb"}, "zinb needs a head of dropouts"),
        ({"backend": "fortran"}, "choose one of cpu, triton, torch"),
        ({"precision": "bf16", "backend": "cpu"}, "precision is 'bf16' on 'cpu': choose 'float32'"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, message: str):
    case = make_case("nb", "gene", True, 3, 20, 0)
    t = case.tensors
    options = {"log_theta": t["log_theta"], "likelihood": "nb"} | changes
    with pytest.raises(ValueError, match=message):
        decoder_nll(t["hidden"], Head(t["weight"], t["bias"]), case.cells, case.library, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_the_gradient_by_the_library_is_that_of_the_reference(
    likelihood: str, dispersion: str, softmax: bool, backend: str
):
    case = make_case(likelihood, dispersion, softmax, 5, 40, 3)
    case.library = case.library.clamp(min=1)
    assert_agree(
        *({"library": run_by_library(case, *how)} for how in ((backend, torch.float32), ("torch", torch.float64)))
    )


def run_by_library(case: Case, backend: str, dtype: torch.dtype) -> torch.Tensor:
    case, name = (case.to("cuda"), "triton") if backend == "cuda" else (case, backend)
    library, t = case.library.to(dtype, copy=True).requires_grad_(), {k: v.to(dtype) for k, v in case.tensors.items()}
    loss = decoder_nll(
        t["hidden"],
        Head(t["weight"], t["bias"]),
        case.cells,
        library,
        **likelihood_options(case, t),
        backend=name,
    )
    (loss * case.weights.to(dtype)).sum().backward()
    assert library.grad is not None
    return library.grad.cpu()
