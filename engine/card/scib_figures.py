"""scib-metrics' figures of integration on a sample of the cells, where the library is installed."""

from importlib.metadata import version

import numpy as np
from scipy import sparse

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.label_moments import normalise
from atlasvi.engine.card.model_card import Integration

NEIGHBOURS = 90  # as in the library's benchmark; 50 for kBET and 15 for connectivity are the nearest of them
COMPONENTS = 50  # of counts, scanpy's default
MEANINGS = {
    "isolated_labels": "Silhouette of labels that are in few batches.",
    "nmi_kmeans": "Normalised mutual information of labels and k-means clusters.",
    "ari_kmeans": "Adjusted Rand index of labels and k-means clusters.",
    "silhouette_label": "Silhouette width of the labels, scaled to 0 to 1.",
    "clisi": "Labels among neighbours (cLISI, scaled): 1 where neighbours have one label.",
    "bras": "Batch removal adapted silhouette.",
    "ilisi": "Batches among neighbours (iLISI, scaled): 1 where all batches are among neighbours.",
    "kbet": "Acceptance of kBET, mean over labels.",
    "graph_connectivity": "Fraction of a label's cells in its largest connected component of the neighbours' graph.",
    "pcr_comparison": f"How much less of the variance batches explain in the latents than in the first {COMPONENTS} "
    "principal components of log counts: 1 where they explain nothing.",
}


def measure_by_scib(
    latents: np.ndarray, labels: np.ndarray, batches: np.ndarray, counts: sparse.csr_matrix | None = None
) -> Integration | None:
    """The figures, for labels and batches int [cells], none missing, two or more of each; None without the library.

    counts  [cells, genes] of the same cells; None: without the comparison with principal components
    The error of a figure is half its difference between two random halves of the sample.
    """
    try:
        import scib_metrics  # noqa: F401
    except ImportError:
        return None
    arrays = [latents, labels, batches, *([] if counts is None else [find_components(counts)])]
    whole = _measure(*arrays)
    order = np.random.default_rng(0).permutation(len(latents))
    halves = [_measure(*(each[part] for each in arrays)) for part in np.array_split(order, 2)]
    figures = {name: Estimate(value, abs(halves[0][name] - halves[1][name]) / 2) for name, value in whole.items()}
    return Integration(
        figures, {name: MEANINGS[name] for name in figures}, len(latents), f"scib-metrics {version('scib-metrics')}"
    )


def find_components(counts: sparse.csr_matrix) -> np.ndarray:
    """The first principal components of log1p of counts scaled to 10,000 per cell, float64 [cells, at most 50]."""
    from sklearn.decomposition import PCA

    n = min(COMPONENTS, *(size - 1 for size in counts.shape))
    return PCA(n, svd_solver="arpack", random_state=0).fit_transform(normalise(counts))  # sparse, never centred densely


def _measure(
    latents: np.ndarray, labels: np.ndarray, batches: np.ndarray, components: np.ndarray | None = None
) -> dict[str, float]:
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import pynndescent

    near = pynndescent(latents, min(NEIGHBOURS, len(latents) - 1), random_state=0)
    clusters = scib.nmi_ari_cluster_labels_kmeans(latents, labels)
    found = {
        "isolated_labels": scib.isolated_labels(latents, labels, batches),
        "nmi_kmeans": clusters["nmi"],
        "ari_kmeans": clusters["ari"],
        "silhouette_label": scib.silhouette_label(latents, labels),
        "clisi": scib.clisi_knn(near, labels),
        "bras": scib.bras(latents, labels, batches),
        "ilisi": scib.ilisi_knn(near, batches),
        "kbet": scib.kbet_per_label(near.subset_neighbors(n=min(50, len(latents) - 1)), batches, labels),
        "graph_connectivity": scib.graph_connectivity(near.subset_neighbors(n=15), labels),
    }
    if components is not None:
        found["pcr_comparison"] = scib.pcr_comparison(components, latents, batches, categorical=True)
    return {name: float(value) for name, value in found.items()}
