import subprocess
import sys
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.stats

from atlasvi.engine import simulation as module
from atlasvi.engine.simulation import Process, SimulationError, draw_negative_binomial, simulate
from atlasvi.loaders.errors import OutputError


def expected_moments(data: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each count, [cells, genes], from what the file says of itself alone."""
    profiles = data.varm["type_profiles"][:, data.obs["cell_type"].cat.codes].T
    rates = profiles * data.varm["batch_effects"][:, data.obs["batch"].cat.codes].T
    rates *= np.exp(data.obsm["state"] @ data.varm["programs"].T)
    mean = data.obs["library"].to_numpy()[:, None] * rates / rates.sum(axis=1, keepdims=True)
    return mean, mean + mean**2 / data.var["theta"].to_numpy()


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> anndata.AnnData:
    out = tmp_path_factory.mktemp("simulate") / "atlas.h5ad"
    simulate(out, 3000, 1000, 3, 12, seed=4)
    return anndata.read_h5ad(out)


def test_anndata_reads_the_shape_and_the_columns_that_were_asked_for(atlas: anndata.AnnData) -> None:
    assert atlas.shape == (3000, 1000)
    assert (atlas.X.dtype, atlas.X.indices.dtype, atlas.X.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert atlas.X.has_canonical_format
    assert list(atlas.obs.columns) == ["batch", "cell_type", "library"]
    assert list(atlas.obs["batch"].cat.categories) == ["batch_0", "batch_1", "batch_2"]
    assert list(atlas.obs["cell_type"].cat.categories) == [f"type_{t:02d}" for t in range(12)]
    assert atlas.obs["batch"].nunique() == 3
    assert atlas.obs["cell_type"].nunique() == 12
    assert atlas.obs_names.is_unique
    assert atlas.var_names.is_unique
    assert atlas.uns["simulation"]["seed"] == 4
    np.testing.assert_allclose(atlas.varm["type_profiles"].sum(axis=0), 1)


def test_counts_look_like_droplet_data(atlas: anndata.AnnData) -> None:
    totals = np.asarray(atlas.X.sum(axis=1)).ravel()
    assert totals.min() > 0
    assert 300 < np.median(totals) < 900
    assert 0.85 < 1 - atlas.X.nnz / (3000 * 1000) < 0.93
    assert 0.45 < (atlas.X.data == 1).mean() < 0.65
    assert atlas.X.data.max() > 255
    assert (atlas.X.data > 255).mean() < 0.003


def test_means_and_variances_are_those_of_the_negative_binomial_of_the_truth(atlas: anndata.AnnData) -> None:
    mean, variance = expected_moments(atlas)
    counts = atlas.X.toarray().astype(np.float64)
    for axis in (0, 1):  # of genes over cells, of cells over genes: standard normal if the sums are many
        score = (counts - mean).sum(axis=axis) / np.sqrt(variance.sum(axis=axis))
        assert abs(score.mean()) < 4 / np.sqrt(len(score))
        assert 0.9 < score.std() < 1.1
    often = mean.mean(axis=0) > 1  # squared deviations of rare genes vary too much to be held to anything
    ratio = ((counts - mean) ** 2 / variance)[:, often].mean()
    assert ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("mean", [1e-5, 0.02, 0.7, 7.9, 8.1, 60.0])
@pytest.mark.parametrize("theta", [0.05, 1.0, 80.0])
def test_draws_follow_the_negative_binomial(mean: float, theta: float) -> None:
    n = 100_000
    rng = np.random.default_rng(7)
    drawn = draw_negative_binomial(np.full(n, mean), np.full(n, theta), rng.random(n), rng)
    law = scipy.stats.nbinom(theta, theta / (theta + mean))
    edges = np.unique(law.ppf([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 0.9999]))
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * n
    found = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(expected))
    likely = expected > 5
    if likely.sum() > 1:
        score = ((found - expected)[likely] ** 2 / expected[likely]).sum()
        assert scipy.stats.chi2(likely.sum()).sf(score) > 1e-4
    assert abs(drawn.mean() - mean) < 5 * np.sqrt((mean + mean**2 / theta) / n)


def test_inversion_gives_the_count_whose_tail_holds_the_uniform() -> None:
    rng = np.random.default_rng(0)
    mean, theta, uniform = rng.uniform(0.01, 8, 500), rng.lognormal(0, 1.5, 500), rng.random(500)
    drawn = draw_negative_binomial(mean, theta, uniform, rng)
    np.testing.assert_array_equal(drawn, scipy.stats.nbinom(theta, theta / (theta + mean)).isf(uniform))


def test_the_same_seed_gives_the_same_content_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        simulate(tmp_path / name, 300, 200, 2, 3, seed)
    a, b, c = (anndata.read_h5ad(tmp_path / name) for name in "abc")
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs)
    assert a.var.equals(b.var)
    assert (a.X != c.X).nnz > 0


def test_memory_does_not_grow_with_the_number_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 1 << 16)
    simulate(tmp_path / "first", 50, 100, 2, 3, seed=0)  # imports done
    peaks = []
    for n_cells in (2_000, 20_000):
        tracemalloc.start()
        simulate(tmp_path / str(n_cells), n_cells, 100, 2, 3, seed=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]  # ten times the cells; the largest of more blocks is a little larger


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (12, 3, 12, 12), (5, 400, 1, 5), (150, 1, 140, 2)])
def test_every_batch_and_type_is_there_and_no_cell_is_empty(tmp_path: Path, shape: tuple[int, int, int, int]) -> None:
    for seed in range(3):
        out = tmp_path / f"{seed}.h5ad"
        simulate(out, *shape, seed, process=Process(median_library=0.5))
        data = anndata.read_h5ad(out)
        assert data.shape == shape[:2]
        assert (data.obs["batch"].nunique(), data.obs["cell_type"].nunique()) == shape[2:]
        assert data.X.sum(axis=1).min() > 0
        assert data.X.has_canonical_format


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((0, 5, 1, 1), "0 cells"),
        ((5, 0, 1, 1), "0 genes"),
        ((5, 5, 0, 1), "0 batches"),
        ((5, 5, 1, 6), "6 types do not fit in 5 cells"),
        ((5, 5, 6, 1), "6 batches do not fit in 5 cells"),
    ],
)
def test_a_shape_that_can_not_be_is_refused_in_a_sentence(
    tmp_path: Path, shape: tuple[int, int, int, int], said: str
) -> None:
    with pytest.raises(SimulationError, match=said):
        simulate(tmp_path / "a.h5ad", *shape, seed=0)
    with pytest.raises(SimulationError, match="seed -1"):
        simulate(tmp_path / "a.h5ad", 5, 5, 1, 1, seed=-1)
    with pytest.raises(SimulationError, match="median_theta"):
        simulate(tmp_path / "a.h5ad", 5, 5, 1, 1, seed=0, process=Process(median_theta=0))
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.h5ad"
    out.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        simulate(out, 5, 5, 1, 1, seed=0)
    assert out.read_text() == "precious"
    with pytest.raises(OutputError, match="there is no folder"):
        simulate(out / "below.h5ad", 5, 5, 1, 1, seed=0)
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own: HDF5 left to itself ends it. A limit on the size of files stands for the disk."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from atlasvi.engine.simulation import simulate; simulate(sys.argv[1], 500, 400, 1, 1, seed=0)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.h5ad")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "OutputError" in done.stderr
    assert "a.h5ad: the disk is full" in done.stderr
    assert not list(tmp_path.iterdir())
