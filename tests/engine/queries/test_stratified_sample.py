import numpy as np

from atlasvi.engine.queries.stratified_sample import choose_sample

LABELS = np.repeat([0, 1, 2, 3], [50_000, 9_000, 60, 3])


def test_each_label_has_its_proportion_and_no_fewer_than_the_least():
    chosen = choose_sample(LABELS, 5_000, 20, seed=1)
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(LABELS[chosen])
    assert counts.tolist() == [round(5_000 * 50_000 / len(LABELS)), round(5_000 * 9_000 / len(LABELS)), 20, 3]
    first = chosen[chosen < 50_000]
    assert abs(first.mean() / 25_000 - 1) < 0.05  # from the whole label, not from its beginning


def test_the_sample_depends_on_the_seed_alone_and_leaves_out_cells_without_a_label():
    labels = LABELS.copy()
    labels[::3] = -1
    chosen = choose_sample(labels, 1_000, 5, seed=1)
    assert (labels[chosen] >= 0).all()
    np.testing.assert_array_equal(chosen, choose_sample(labels, 1_000, 5, seed=1))
    assert not np.array_equal(chosen, choose_sample(labels, 1_000, 5, seed=2))


def test_a_sample_as_large_as_the_data_is_the_data():
    labels = np.array([0, -1, 2, 2])
    assert choose_sample(labels, 3, 1, seed=0).tolist() == [0, 2, 3]
    assert choose_sample(np.full(4, -1), 3, 1, seed=0).tolist() == []
