"""Names stand where their categories are densest, and do not cover each other."""

import itertools

import numpy as np

from atlasvi.engine.plots.map_labels import Label, find_anchors, spread_labels

RANDOM = np.random.default_rng(0)


def test_a_name_stands_in_the_middle_of_its_category() -> None:
    middles = RANDOM.uniform(0.15, 0.85, (5, 2))
    codes = np.repeat(np.arange(5), 400)
    anchors = find_anchors(middles[codes] + RANDOM.normal(0, 0.02, (2000, 2)), codes, 5)
    for code, middle in enumerate(middles):
        np.testing.assert_allclose(anchors[code], middle, atol=0.03)


def test_a_category_in_two_parts_has_its_name_in_the_denser_and_one_hidden_in_another_has_none() -> None:
    places = np.concatenate([RANDOM.normal(at, 0.02, (n, 2)) for at, n in ((0.2, 500), (0.8, 200), (0.5, 900))])
    hidden = RANDOM.normal(0.5, 0.02, (30, 2))
    codes = np.repeat([0, 0, 1, 2], [500, 200, 900, 30])
    anchors = find_anchors(np.concatenate([places, hidden]), codes, 3)
    assert set(anchors) == {0, 1}
    np.testing.assert_allclose(anchors[0], 0.2, atol=0.03)


def test_mixed_categories_and_none_have_no_names() -> None:
    places, codes = RANDOM.random((3000, 2)), RANDOM.integers(12, size=3000)
    assert find_anchors(places, codes, 12) == {}
    assert find_anchors(places, np.full(3000, -1), 3) == {}
    assert find_anchors(places[:0], codes[:0], 0) == {}


def covers(one: Label, other: Label, size: tuple[float, float]) -> bool:
    return all(abs(a - b) < side - 1e-6 for a, b, side in zip(one.place, other.place, size))


def test_names_move_apart_and_stay_in_the_picture() -> None:
    size = (0.15, 0.03)
    anchors = {code: (0.5, 0.5) if code < 3 else (0.99, 0.01 + 0.02 * code) for code in range(12)}
    labels = spread_labels({code: f"name {code}" for code in anchors}, anchors, dict.fromkeys(anchors, size))
    assert labels is not None
    assert [label.text for label in labels] == [f"name {code}" for code in range(12)]
    assert not any(covers(*pair, size) for pair in itertools.combinations(labels, 2))
    for label in labels:
        assert all(side / 2 - 1e-9 <= at <= 1 - side / 2 + 1e-9 for at, side in zip(label.place, size))
    far = spread_labels({0: "a"}, {0: (0.3, 0.4)}, {0: size})
    assert far == [Label(0, "a", (0.3, 0.4), (0.3, 0.4))]


def test_too_many_or_too_long_names_have_no_room() -> None:
    anchors = dict.fromkeys(range(40), (0.5, 0.5))
    assert spread_labels({}, anchors, dict.fromkeys(anchors, (0.3, 0.04))) is None
    assert spread_labels({}, {0: (0.5, 0.5)}, {0: (0.95, 0.02)}) is None
    assert spread_labels({}, {}, {}) == []
