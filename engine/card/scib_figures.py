"""scib-metrics' figures of integration on a sample of the cells, where the library is installed."""

from importlib.metadata import version

import numpy as np

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Integration

NEIGHBOURS = 90  # as in the library's benchmark; 50 for kBET and 15 for connectivity are the nearest of them
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
}


def measure_by_scib(latents: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> Integration | None:
    """The figures, for labels and batches int [cells], none missing, two or more of each; None without the library.

    The error of a figure is half its difference between two random halves of the sample.
    """
    try:
        import scib_metrics  # noqa: F401
    except ImportError:
        return None
    whole = _measure(latents, labels, batches)
    order = np.random.default_rng(0).permutation(len(latents))
    halves = [_measure(*(each[part] for each in (latents, labels, batches))) for part in np.array_split(order, 2)]
    figures = {name: Estimate(value, abs(halves[0][name] - halves[1][name]) / 2) for name, value in whole.items()}
    return Integration(figures, MEANINGS, len(latents), f"scib-metrics {version('scib-metrics')}")


def _measure(latents: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> dict[str, float]:
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
    return {name: float(value) for name, value in found.items()}
