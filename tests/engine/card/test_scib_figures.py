import sys

import numpy as np
import pytest
from scipy import sparse

from atlasvi.engine.card.label_moments import normalise
from atlasvi.engine.card.scib_figures import MEANINGS, find_components, measure_by_scib

LABELS = np.repeat([0, 1, 2], [80, 60, 60])
BATCHES = np.random.default_rng(0).integers(0, 2, 200)
LATENTS = (4 * np.eye(3)[LABELS] + np.random.default_rng(1).normal(size=(200, 3))).astype(np.float32)
RATES = np.exp(np.random.default_rng(2).normal(size=(2, 30)))[BATCHES]  # a gene's mean depends on the batch
COUNTS = sparse.csr_matrix(np.random.default_rng(3).poisson(3 * RATES).astype(np.float32))


def test_without_the_library_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    assert measure_by_scib(LATENTS, LABELS, BATCHES) is None


@pytest.mark.slow
def test_its_figures_are_between_0_and_1_with_errors():
    pytest.importorskip("scib_metrics")
    assert "pcr_comparison" not in measure_by_scib(LATENTS, LABELS, BATCHES).figures
    found = measure_by_scib(LATENTS, LABELS, BATCHES, COUNTS)
    assert set(found.figures) == set(found.meanings) == set(MEANINGS)
    assert found.figures["pcr_comparison"].value > 0.9  # batches scale counts, and are not in the latents
    assert all(0 <= estimate.value <= 1 for estimate in found.figures.values())
    assert found.figures["nmi_kmeans"].value > 0.8
    assert found.computed_by.startswith("scib-metrics")


def test_components_of_sparse_counts_are_those_of_the_centred_matrix():
    pytest.importorskip("sklearn")
    found = find_components(COUNTS)
    assert found.shape == (200, 29)
    dense = normalise(COUNTS).toarray()
    _, sizes, axes = np.linalg.svd(dense - dense.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs((dense - dense.mean(0)) @ axes[:29].T), atol=1e-6)
    np.testing.assert_allclose((found**2).sum(0), sizes[:29] ** 2, rtol=1e-9)
