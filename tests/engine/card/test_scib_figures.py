import sys

import numpy as np
import pytest

from atlasvi.engine.card.scib_figures import MEANINGS, measure_by_scib

LABELS = np.repeat([0, 1, 2], [80, 60, 60])
BATCHES = np.random.default_rng(0).integers(0, 2, 200)
LATENTS = (4 * np.eye(3)[LABELS] + np.random.default_rng(1).normal(size=(200, 3))).astype(np.float32)


def test_without_the_library_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    assert measure_by_scib(LATENTS, LABELS, BATCHES) is None


@pytest.mark.slow
def test_its_figures_are_between_0_and_1_with_errors():
    pytest.importorskip("scib_metrics")
    found = measure_by_scib(LATENTS, LABELS, BATCHES)
    assert set(found.figures) == set(found.meanings) == set(MEANINGS)
    assert all(0 <= estimate.value <= 1 for estimate in found.figures.values())
    assert found.figures["nmi_kmeans"].value > 0.8
    assert found.computed_by.startswith("scib-metrics")
