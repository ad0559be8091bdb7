import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from atlasvi.kernels import Head, InvalidParametersError, cpu_tile, sample_counts
from atlasvi.kernels.plain_counts import MOST_RATE, _invert
from tests.kernels.cases import BACKENDS, OPTIONS, Case, make_case, sample

MEANS = [1e-4, 0.01, 0.2, 1.0, 6.0, 15.9, 16.1, 120.0, 1e4, 1e7]  # of both algorithms, and beside their border
THETAS = [1e-4, 1e-2, 0.12, 0.9, 1.1, 20.0, 1e3, 1e6]
GRID = torch.tensor([(mean, theta) for mean in MEANS for theta in THETAS], dtype=torch.float64)


def make_grid(likelihood: str, n_cells: int, dropout: float = 0.4) -> Case:
    """A gene for each mean and theta of the grid, the same in all cells: mean = softplus(bias)."""
    mean, theta = GRID.T
    bias = torch.where(mean > 30, mean, torch.log(torch.expm1(mean.clamp(max=30)))).float()
    case = make_case(likelihood, "gene" if likelihood != "poisson" else "none", False, 1, len(mean), 0)
    nothing = torch.zeros(len(mean), 1)
    case.tensors |= {"hidden": torch.zeros(n_cells, 1), "weight": nothing, "bias": bias}
    case.library = torch.ones(n_cells)
    if likelihood != "poisson":
        case.tensors["log_theta"] = theta.log().float()
    if likelihood == "zinb":
        logit = math.log(dropout / (1 - dropout))
        case.tensors |= {"dropout_weight": nothing, "dropout_bias": torch.full((len(mean),), logit)}
    return case


def chi_square(counts: np.ndarray, distribution: Any, kept: float) -> float:
    """p that counts are draws of a distribution, of which all but a part `kept` became zeros."""
    n = len(counts)
    edges = np.unique(distribution.ppf(np.linspace(0.01, 0.99, 40)))
    edges = np.unique(np.concatenate([[0], edges[edges < MOST_RATE / 2]]))
    cumulative = 1 - kept + kept * distribution.cdf(edges)
    expected = n * np.diff(np.concatenate([[0], cumulative, [1]]))
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(expected)).astype(float)
    wide, all_found, all_expected = [], 0.0, 0.0  # bins of at least five expected counts
    for a, b in zip(found, expected):
        all_found, all_expected = all_found + a, all_expected + b
        if all_expected >= 5:
            wide.append((all_found, all_expected))
            all_found = all_expected = 0.0
    if len(wide) < 2:
        return math.nan
    wide[-1] = wide[-1][0] + all_found, wide[-1][1] + all_expected
    f, e = np.array(wide).T
    return float(stats.chi2.sf(((f - e) ** 2 / e).sum(), len(e) - 1))


def draw_of(likelihood: str, mean: float, theta: float) -> Any:
    return stats.poisson(mean) if likelihood == "poisson" else stats.nbinom(theta, 1 / (1 + mean / theta))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_are_distributed_as_the_likelihood_over_the_whole_range(likelihood: str):
    n_cells, kept = 20_000, 0.6 if likelihood == "zinb" else 1.0
    case = make_grid(likelihood, n_cells)
    counts = sample(case, "cpu").numpy()
    which = range(len(GRID)) if likelihood != "poisson" else range(0, len(GRID), len(THETAS))
    values = []
    for gene in which:
        mean, theta = GRID[gene].tolist()
        distribution = draw_of(likelihood, mean, theta)
        values.append(chi_square(counts[:, gene], distribution, kept))
        zero = 1 - kept + kept * distribution.cdf(0)
        error = math.sqrt(n_cells * zero * (1 - zero)) + 1
        assert abs((counts[:, gene] == 0).sum() - n_cells * zero) < 5 * error, (mean, theta)
        if (
            mean / max(theta, 1e-4) < 1e3 and mean * (1 + 30 / theta) < MOST_RATE
        ):  # whose moments few draws don't decide
            variance = kept * (distribution.var() + (1 - kept) * mean**2)
            assert abs(counts[:, gene].mean() - kept * mean) < 5 * math.sqrt(variance / n_cells), (mean, theta)
    known = np.array(values)[~np.isnan(values)]
    assert len(known) > 0.7 * len(values)
    assert known.min() > 1e-5
    assert stats.kstest(known, "uniform").pvalue > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_a_gpu_draws_the_counts_of_the_cpu(likelihood: str):
    case = make_grid(likelihood, 2_000)
    got, expected = sample(case, "cuda"), sample(case, "cpu")
    assert (got != expected).float().mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("likelihood", "dispersion", "softmax"), OPTIONS)
def test_every_backend_draws_the_counts_of_the_reference(likelihood: str, dispersion: str, softmax: bool, backend: str):
    for n_cells, n_genes, seed in [(2, 61, 0)] if backend == "triton" else [(40, 333, 0), (1, 1, 1), (3, 1_500, 2)]:
        case = make_case(likelihood, dispersion, softmax, n_cells, n_genes, seed)
        case.library = torch.rand(n_cells, generator=torch.Generator().manual_seed(seed)) * 40 * n_genes
        got, expected = sample(case, backend), sample(case, "torch")
        assert expected.any() or n_genes == 1
        assert (got != expected).float().mean() < 2e-3  # the last digit of a mean decides one in some millions


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_every_backend_draws_the_counts_of_the_reference_at_the_edges(likelihood: str, backend: str):
    case = make_grid(likelihood, 1 if backend == "triton" else 300)
    got, expected = sample(case, backend), sample(case, "torch")
    assert (got != expected).float().mean() < 1e-3


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_counts_are_the_same_in_all_tiles_threads_minibatches_and_orders(likelihood: str, monkeypatch):
    case = make_case(likelihood, "gene-batch", True, 40, 700, 0)
    case.library = torch.linspace(0, 9000, 40)
    numbers = torch.arange(40) * 10**10
    expected = sample(case, "cpu", cells=numbers)

    def some(rows: Tensor) -> Tensor:
        part = replace(case, library=case.library[rows], theta_rows=case.theta_rows[rows])
        part.tensors = case.tensors | {"hidden": case.tensors["hidden"][rows]}
        return sample(part, "cpu", cells=numbers[rows])

    torch.set_num_threads(1)
    assert torch.equal(sample(case, "cpu", cells=numbers), expected)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(some(order), expected[order])
    assert torch.equal(torch.cat([some(torch.arange(at, min(at + 7, 40))) for at in range(0, 40, 7)]), expected)
    monkeypatch.setattr(cpu_tile, "TILE_BYTES", 4 * 700 * 3)
    assert torch.equal(sample(case, "cpu", cells=numbers), expected)


def test_other_seeds_draws_and_cells_have_independent_counts():
    case = make_grid("nb", 400)
    gene = 3 * len(THETAS) + 4  # mean 1, theta 1.1
    first = sample(case, "cpu")[:, gene].float()
    for options in ({"seed": 6}, {"draw": 1}, {"cells": torch.arange(400) + 1000}):
        other = sample(case, "cpu", **options)[:, gene].float()
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 5 / 20
    assert abs(float(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1])) < 5 / 20


def test_a_mean_far_below_the_digits_of_one_random_word_still_has_its_probability():
    mean = torch.full((3,), 1e-11, dtype=torch.float64)
    uniform = torch.tensor([0.99e-11, 1.01e-11, 2.0**-65], dtype=torch.float64)
    for theta in (None, torch.full((3,), 2.0, dtype=torch.float64)):
        assert _invert(uniform, mean, theta).tolist() == [1, 0, 1]


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("name", ["bias", "log_theta", "dropout_bias", "theta_bias", "library"])
def test_a_parameter_that_is_nan_is_an_error_that_names_the_cell(name: str, backend: str):
    case = make_case("zinb", "gene-cell" if name == "theta_bias" else "gene-batch", True, 3, 20, 0)
    case.library = torch.tensor([4.0, 5.0, 6.0])
    case.theta_rows = torch.tensor([0, 2, 2]) if case.theta_rows is not None else None
    cell = 0
    if name == "library":
        case.library[2], cell = -1.0, 2
    elif name == "log_theta":
        case.tensors[name][2, 7], cell = math.nan, 1
    else:
        case.tensors[name][7] = math.nan
    with pytest.raises(InvalidParametersError, match=f"index {cell}: a mean, dispersion or dropout is NaN") as error:
        sample(case, backend)
    assert error.value.cell == cell
    case = make_case("nb", "gene", False, 1, 20, 0)
    case.library[0] = math.inf
    with pytest.raises(InvalidParametersError):
        sample(case, backend)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_counts_never_leave_int32_and_an_empty_cell_is_empty(backend: str):
    case = make_case("nb", "gene", True, 2, 5, 0)
    case.library = torch.tensor([1e30, 0.0])
    counts = sample(case, backend)
    assert (counts[1] == 0).all()
    assert (counts[0].double() < MOST_RATE * 1.01).all()
    assert counts[0].max() > MOST_RATE * 0.99
    case.tensors |= {"weight": torch.zeros(5, 8), "bias": torch.zeros(5)}
    case.tensors["log_theta"] = torch.tensor([-math.inf, math.inf, -1e9, 1e9, 0.0])
    case.library = torch.tensor([1000.0, 1000.0])
    counts = sample(case, backend)
    assert (counts[:, [0, 2]] == 0).all()
    assert (counts[:, [1, 3]] > 0).all()


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_no_cells_give_no_counts(backend: str):
    case = make_case("nb", "gene", True, 2, 5, 0)
    case.tensors["hidden"], case.library = case.tensors["hidden"][:0], case.library[:0]
    assert sample(case, backend, cells=torch.arange(0)).shape == (0, 5)


def test_options_that_do_not_fit_are_refused():
    hidden, head, library = torch.zeros(2, 3), Head(torch.zeros(4, 3), torch.zeros(4)), torch.ones(2)
    options: dict[str, Any] = {"cells": torch.arange(2), "seed": 0}
    for log_theta, changed, match in (
        (None, {}, "nb needs a dispersion"),
        (torch.zeros(4), {"likelihood": "poisson"}, "poisson has no dispersion"),
        (torch.zeros(2, 4), {}, "theta_rows must give the row"),
        (torch.zeros(4), {"seed": -1}, "seed -1 and draw 0 must be whole numbers"),
        (torch.zeros(4), {"draw": 2**32}, "must be whole numbers"),
        (torch.zeros(4), {"cells": torch.tensor([0, 2**48])}, "counters of cells must be from 0"),
    ):
        with pytest.raises(ValueError, match=match):
            sample_counts(hidden, head, library, log_theta, **(options | changed))
