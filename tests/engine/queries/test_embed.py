"""Every cell of a store gets a place: from a UMAP of a sample, or beside its neighbours in it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries import embed as module
from atlasvi.engine.queries.embed import embed
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError, MissingDependencyError, OutputError, SourceError

pytest.importorskip("umap")
N = 60  # cells of `forms`


@pytest.fixture(autouse=True)
def quick_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two latents instead of UMAP, which numba compiles for 20 s; slow tests use it."""

    def lay_out(latent: np.ndarray, near: np.ndarray, distances: np.ndarray, *options: float) -> np.ndarray:
        assert (near[:, 0] == np.arange(len(latent))).all()
        assert (distances[:, 0] == 0).all()
        assert (np.diff(distances, axis=1) >= 0).all()
        return 10 * latent[:, :2].astype(float)

    monkeypatch.setattr(module, "lay_out", lay_out)


@pytest.fixture
def mini(forms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms / "x.mini", tmp_path / "x.mini"))


def test_all_cells_are_placed_and_the_same_seed_places_them_the_same(mini: Path, monkeypatch: pytest.MonkeyPatch):
    told = []
    report = embed(mini, sample=40, n_neighbours=5, progress=lambda *event: told.append(event))
    assert (report.n_cells, report.method, report.trustworthiness) == (N, "UMAP", None)
    assert 30 <= report.n_sample < N
    first = MinifiedStore(mini).read_embedding()
    assert first.shape == (N, 2)
    assert np.isfinite(first).all()
    assert ("placing cells", N, N) in told
    assert ("choosing a sample", N, N) in told
    own = 10 * MinifiedStore(mini).read_latent(0, N)[0][:, :2]
    assert (first == own).all(axis=1).sum() == report.n_sample
    monkeypatch.setattr(module, "SLICE_CELLS", 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    embed(mini, sample=40, n_neighbours=5, replace=True)
    np.testing.assert_array_equal(MinifiedStore(mini).read_embedding(), first)
    embed(mini, sample=40, n_neighbours=5, seed=1, replace=True)
    assert not np.array_equal(MinifiedStore(mini).read_embedding(), first)


def test_an_index_of_the_sample_places_cells_where_exact_search_does(mini: Path, monkeypatch: pytest.MonkeyPatch):
    embed(mini, sample=40, n_neighbours=5)
    exact = MinifiedStore(mini).read_embedding()
    monkeypatch.setattr(module, "MOST_PAIRS", 0)
    embed(mini, sample=40, n_neighbours=5, replace=True)
    away = np.linalg.norm(MinifiedStore(mini).read_embedding() - exact, axis=1)
    assert np.median(away) < 0.05 * np.ptp(exact)


def test_each_value_of_the_column_is_in_the_sample(mini: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(module, "choose_sample", lambda codes, *rest: seen.append(codes) or np.arange(30))
    embed(mini, sample=30, strata="batch")
    codes = MinifiedStore(mini).read_column("batch").cat.codes
    np.testing.assert_array_equal(seen[0], codes)


@pytest.mark.parametrize("n_neighbours", [15, 100])
def test_a_store_with_no_more_cells_than_the_sample_has_a_map_of_all(mini: Path, n_neighbours: int):
    report = embed(mini, n_neighbours=n_neighbours)
    assert report.n_sample == N
    assert report.method == ("UMAP" if n_neighbours < N else "PCA")
    assert np.ptp(MinifiedStore(mini).read_embedding(), axis=0).min() > 0


def test_what_can_not_be_done_is_said_before_anything_is_computed(mini: Path, forms: Path, monkeypatch):
    with pytest.raises(SourceError, match=r"x.h5ad: it is minified data of scvi-tools; coordinates are written into"):
        embed(forms / "x.h5ad")
    with pytest.raises(ColumnError, match=r"no column 'bach' .* Did you mean 'batch'\?"):
        embed(mini, strata="bach")
    with pytest.raises(QueryError, match=r"with 3 cells of each value of obs column 'batch', .* instead of 2"):
        embed(mini, strata="batch", sample=2, n_neighbours=2)
    with pytest.raises(QueryError, match="min_distance is 2"):
        embed(mini, min_distance=2)
    with pytest.raises(QueryError, match="sample is 1: it must be at least 2"):
        embed(mini, sample=1)
    embed(mini)
    with pytest.raises(OutputError, match="obsm has X_umap already"):
        embed(mini)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingDependencyError, match=r"An embedding needs umap-learn: pip install 'atlasvi\[plots\]'"):
        embed(mini)
