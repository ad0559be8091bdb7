"""Cells of a latent space are laid out in the plane, by UMAP or by PCA."""

import sys
import warnings

import numpy as np
import pytest

from atlasvi.engine.queries.umap_layout import import_umap, place_cells


def make_groups(n_cells: int = 300, n_groups: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    groups = np.arange(n_cells) % n_groups
    latent = rng.normal(0, 6, (n_groups, 20))[groups] + rng.normal(0, 1, (n_cells, 20))
    return latent.astype(np.float32), groups


def test_without_umap_learn_the_map_is_the_first_two_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    latent, _ = make_groups()
    method, places = place_cells(latent, seed=0)
    assert method == "PCA"
    centred = latent - latent.mean(axis=0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ axes[:2].T), rtol=1e-3, atol=1e-3)
    assert scales[0] >= scales[1]


def test_what_numba_compiles_of_umap_learn_is_kept_on_disk_for_the_next_process() -> None:
    pytest.importorskip("umap")
    assert import_umap().umap_.smooth_knn_dist.stats.cache_path is not None


@pytest.mark.slow  # numba compiles UMAP: up to 20 s
def test_umap_keeps_groups_apart_is_seeded_and_quiet_and_gives_the_threads_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("umap")
    import numba

    latent, groups = make_groups()
    threads = numba.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method, places = place_cells(latent, seed=3)
    assert method == "UMAP"
    assert numba.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(place_cells(latent, seed=3)[1], places)
    assert not np.array_equal(place_cells(latent, seed=4)[1], places)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(axis=1)] == groups).mean() > 0.95
