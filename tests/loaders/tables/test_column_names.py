"""Names of columns that a store can hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.tables.column_names import MOST_BYTES, find_storable_names, set_reserved_aside


def test_names_of_our_own_columns_are_set_aside_each_time():
    assert set_reserved_aside(["batch", "source"]) == {"source": "source_before"}
    twice = {"source": "source_before", "source_before": "source_before_before"}
    assert set_reserved_aside(["source", "source_before"]) == twice
    assert set_reserved_aside(["batch"]) == {}


@pytest.mark.parametrize("name", ["n counts", "a/b", "Zell-Typ 2", "batch", "x" * MOST_BYTES, "\u00b5m"])
def test_names_that_a_store_can_hold_stay(name: str):
    assert find_storable_names([name]) == {}


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("_index", "_index_before"),
        ("", "column_"),
        ("..", "column_.."),
        ("a//b", "a__b"),
        ("zarr.json", "column_zarr.json"),
        ("nul\0", "nul_"),
        ("x" * 300, "x" * 200),
    ],
)
def test_names_that_no_store_can_hold_get_the_nearest_that_it_can(name: str, new: str):
    assert find_storable_names([name]) == {name: new}


def test_a_name_that_leads_through_another_column_or_is_the_same_path_is_changed():
    assert find_storable_names(["a", "a/b"]) == {"a/b": "a_b"}
    assert find_storable_names(["a/b", "a\\b", "a_b"]) == {"a/b": "a_b_2"}
    assert find_storable_names(["_/a", "/"]) == {"/": "__2"}


@given(st.lists(st.text(st.sampled_from("a/\\._\0"), max_size=4) | st.just("_index"), unique=True, max_size=6))
def test_names_are_unique_and_none_leads_through_another_afterwards(names: list[str]):
    renamed = find_storable_names(names)
    after = [renamed.get(name, name) for name in names]
    assert len({name.replace("\\", "/") for name in after}) == len(names)
    assert find_storable_names(after) == {}
