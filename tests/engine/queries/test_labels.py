"""Labels of cells, and the cells of some labels."""

import numpy as np
import pytest

from atlasvi.engine.queries import labels as labels_module
from atlasvi.engine.queries.labels import Members


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
