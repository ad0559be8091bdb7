import numpy as np
import pytest

from atlasvi.engine.card.integration import find_neighbours, measure_integration, silhouettes

metrics = pytest.importorskip("sklearn.metrics")
RANDOM = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [100, 60, 40])
BATCHES = RANDOM.integers(0, 2, 200)
APART = 4 * np.eye(3)[LABELS] + RANDOM.normal(size=(200, 3))


def test_silhouettes_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr("atlasvi.engine.card.integration.CELLS_AT_ONCE", 33)
    codes = np.append(LABELS[:-1], 3)  # one cell alone in its group
    np.testing.assert_allclose(silhouettes(APART, codes), metrics.silhouette_samples(APART, codes), atol=1e-9)


def test_cells_without_a_code_are_left_out():
    codes = LABELS.copy()
    codes[::5] = -1
    found = silhouettes(APART, codes)
    np.testing.assert_allclose(found[codes >= 0], metrics.silhouette_samples(APART[codes >= 0], codes[codes >= 0]))
    assert not found[codes < 0].any()


def test_neighbours_are_the_nearest_other_cells():
    distances = np.linalg.norm(APART[:, None] - APART, axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = np.sort(np.argsort(distances, axis=1)[:, :15], axis=1)
    np.testing.assert_array_equal(np.sort(find_neighbours(APART), axis=1), expected)


def test_labels_apart_and_batches_mixed_score_high_and_the_other_way_round_low():
    good, said = measure_integration(APART, LABELS, BATCHES)
    assert said == []
    assert good.n_cells == 200
    assert good.figures["neighbour_labels"].value > 0.9
    assert good.figures["batch_entropy"].value > 0.85
    assert good.figures["silhouette_batch"].value > 0.9
    bad, _ = measure_integration(6 * np.eye(3)[BATCHES] + RANDOM.normal(size=(200, 3)), LABELS, BATCHES)
    for name, estimate in good.figures.items():
        assert 0 <= bad.figures[name].value < estimate.value - 0.1
        assert 0 <= estimate.error < 0.1
    assert good.figures["batch_entropy"].error > 0
    assert set(good.meanings) == set(good.figures)


@pytest.mark.parametrize(("labels", "batches"), [(None, BATCHES), (LABELS, None), (np.zeros(200, int), BATCHES)])
def test_what_one_label_or_no_batch_leaves_undefined_is_said(labels, batches):
    found, said = measure_integration(APART, labels, batches)
    assert len(said) == 1
    assert ("labels" in said[0]) == (batches is not None)
    assert set(found.figures) == (
        {"silhouette_label", "neighbour_labels"} if batches is None else {"silhouette_batch", "batch_entropy"}
    )


def test_nothing_to_compare_and_too_few_cells_give_none():
    assert measure_integration(APART, None, None)[0] is None
    found, said = measure_integration(APART[:9], LABELS[:9], BATCHES[:9])
    assert found is None
    assert "too few for neighbours" in said[-1]
