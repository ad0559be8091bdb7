"""Labels of cells, and the cells of some labels."""

import numpy as np
import pytest
import torch

from atlasvi.engine.queries import labels as labels_module
from atlasvi.engine.queries.labels import Members, draw_members, sample_members


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(labels_module, "SLICE_CELLS", 7)


def test_members_are_taken_from_their_places_as_from_a_list_of_them():
    rng = np.random.default_rng(0)
    labels, chosen = rng.integers(0, 5, 100).astype(np.uint8), np.array([True, False, False, True, False])
    members, listed = Members(labels, chosen), np.flatnonzero(np.isin(labels, [0, 3]))
    assert len(members) == len(listed)
    assert members.to_indices().tolist() == listed.tolist()
    places = rng.integers(0, len(listed), 50)
    assert members.take(places).tolist() == listed[places].tolist()
    assert Members.of(listed, 100).to_indices().tolist() == listed.tolist()


def test_a_slice_without_members_is_skipped():
    members = Members(np.repeat(np.array([0, 1, 0], np.uint8), 20), np.array([False, True]))
    assert members.take(np.array([19, 0, 5])).tolist() == [39, 20, 25]


def test_cells_of_each_label_are_drawn_with_replacement_from_all_of_them():
    labels = np.random.default_rng(0).integers(0, 5, 100).astype(np.uint8)
    sizes, generator = np.bincount(labels, minlength=6), torch.Generator().manual_seed(0)
    wanted = [(3, 1000), (0, 0), (1, 7), (3, 10)]
    found = draw_members(labels, sizes, wanted, generator)
    assert [len(each) for each in found] == [n for _, n in wanted]
    for (label, _), each in zip(wanted, found):
        assert (labels[each] == label).all()
    assert set(found[0].tolist()) == set(np.flatnonzero(labels == 3).tolist())
    assert (np.diff(found[0]) < 0).any()  # in no order


@pytest.mark.parametrize("n", [1, 3, 15, 200])
def test_cells_of_each_label_are_sampled_without_replacement(n: int):
    labels = np.random.default_rng(1).choice(4, 300, p=[0.7, 0.2, 0.05, 0.05]).astype(np.uint8)
    sizes = np.bincount(labels)[:3]  # the last label is left out
    found = sample_members(labels, sizes, n, torch.Generator().manual_seed(0))
    assert np.bincount(labels[found], minlength=4).tolist() == [*np.minimum(sizes, n).tolist(), 0]
    assert (np.diff(found) > 0).all()


def test_every_cell_is_as_likely_in_a_sample():
    labels, generator = np.zeros(40, np.uint8), torch.Generator().manual_seed(0)
    times = np.zeros(40)
    for _ in range(2000):
        times[sample_members(labels, np.array([40]), 5, generator)] += 1
    assert abs(times - 250).max() < 5 * np.sqrt(250)
