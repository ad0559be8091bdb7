"""Cells of a latent space in the plane, by UMAP (McInnes, Healy and Melville 2018, arXiv:1802.03426) or by PCA."""

import contextlib
import functools
import warnings
from typing import Any

import numpy as np

N_NEIGHBOURS = 15
N_EPOCHS = 200
MIN_DISTANCE = 0.4  # so that groups fill the panel; with UMAP's default of 0.1 they are dots


def place_cells(latent: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    """Place cells, float [cells, d], in the plane: (method, float [cells, 2]); the longer side is horizontal.

    The method is "UMAP", or "PCA" for a few cells and where umap-learn is not installed.
    """
    latent = latent.astype(np.float64)
    if len(latent) <= N_NEIGHBOURS or import_umap() is None:
        return "PCA", find_components(latent)
    from sklearn.neighbors import NearestNeighbors

    distances, neighbours = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(latent).kneighbors(latent)
    return "UMAP", lay_out(latent, neighbours, distances, seed)


def lay_out(
    latent: np.ndarray,
    neighbours: np.ndarray,
    distances: np.ndarray,
    seed: int,
    min_distance: float = MIN_DISTANCE,
    n_epochs: int = N_EPOCHS,
) -> np.ndarray:
    """UMAP of cells whose neighbours are known, float64 [cells, 2], turned so that the longer side is horizontal.

    latent      float [cells, d]
    neighbours  int [cells, k], nearest first, each cell its own first neighbour; distances, float [cells, k], likewise
    The same arguments give the same coordinates. umap-learn must be installed.
    """
    import numba

    umap, components = import_umap(), find_components(latent)
    threads = numba.get_num_threads()  # a seeded UMAP sets numba to one thread, and does not reset it if it fails
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            placed = umap.UMAP(
                n_neighbors=neighbours.shape[1],
                n_epochs=n_epochs,
                min_dist=min_distance,
                init=10 * components / (np.abs(components).max() or 1),
                random_state=seed % 2**32,
                precomputed_knn=(neighbours, distances),
            ).fit_transform(latent)
    finally:
        numba.set_num_threads(threads)
    return find_components(placed.astype(np.float64))


def import_umap() -> Any:
    """The module of umap-learn; None if it, or scikit-learn, is not installed."""
    try:
        with warnings.catch_warnings():  # umap-learn warns if tensorflow is missing
            warnings.simplefilter("ignore")
            import sklearn.neighbors  # noqa: F401
            import umap
    except ImportError:
        return None
    _keep_compiled(umap)
    return umap


@functools.cache
def _keep_compiled(umap: Any) -> None:
    """Let numba keep on disk what it compiles of umap-learn, which does not ask for it: five seconds a process."""
    for name in ("smooth_knn_dist", "compute_membership_strengths"):
        with contextlib.suppress(AttributeError, RuntimeError):  # another release; a disk without room for a cache
            getattr(umap.umap_, name).enable_caching()


def find_components(values: np.ndarray) -> np.ndarray:
    """First two principal components, float64 [n, 2], of [n, d]; zeros if there are fewer. Signs are fixed."""
    centred = values - values.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    components = np.zeros((len(values), 2))
    components[:, : axes.shape[1]] = centred @ axes
    return components
