from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries.markers import compare
from atlasvi.engine.service.tiles import open_tiles
from tests.engine.service.embedded import copy_with_points
from tests.engine.service.running import ask, ask_table, refusal, serving

LEFT = [[-100, -100], [2.5, -100], [2.5, 100], [-100, 100]]


@pytest.fixture(scope="module")
def store(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> MinifiedStore:
    return copy_with_points(forms / "x.mini", tmp_path_factory.mktemp("areas"))


@pytest.fixture(scope="module")
def placed(store: MinifiedStore) -> Iterator[httpx.Client]:
    with serving(store, tiles=open_tiles(store)) as client:
        yield client


def find_left(store: MinifiedStore) -> np.ndarray:
    return np.flatnonzero(store.read_embedding()[:, 0] < 2.5)


def test_a_polygon_chooses_the_cells_of_any_question_about_cells(store: MinifiedStore, placed: httpx.Client):
    left = find_left(store)
    assert 5 < len(left) < store.n_cells - 5
    for question in ("latent", "library"):
        assert ask_table(placed, question, polygon=LEFT)["cell"] == list(store.take_names(left))
    assert ask(placed, "count", polygon=LEFT).json()["columns"]["cells"] == [len(left)]


def test_a_polygon_is_one_condition_beside_the_others(store: MinifiedStore, placed: httpx.Client):
    left, batch = find_left(store), store.read_column("batch")
    expected = left[batch.iloc[left].to_numpy() == "a"]
    assert ask_table(placed, "library", polygon=LEFT, where="batch=a")["cell"] == list(store.take_names(expected))
    rows = [*expected[:3].tolist(), int(np.setdiff1d(np.arange(store.n_cells), left)[0])]
    assert ask_table(placed, "library", polygon=LEFT, rows=rows)["cell"] == list(store.take_names(expected[:3]))


def test_an_area_is_compared_with_all_other_cells_or_with_another(store: MinifiedStore, placed: httpx.Client):
    left, batch = find_left(store), store.read_column("batch").to_numpy()
    a, b = (left[batch[left] == name] for name in ("a", "b"))
    found = ask_table(placed, "compare", first={"polygon": LEFT}, n_samples=200)
    assert found["gene"] == list(compare(store, left, n_samples=200, top=50).index)
    areas = [{"polygon": LEFT, "where": [f"batch={name}"]} for name in "ab"]
    found = ask_table(placed, "compare", first=areas[0], second=areas[1], n_samples=200)
    expected = compare(store, a, b, n_samples=200, top=50)
    assert found["gene"] == list(expected.index)
    np.testing.assert_allclose(found["lfc_mean"], expected["lfc_mean"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ({"polygon": [[0, 0], [1, 1]]}, 422, "at least 3"),
        ({"polygon": [[0, 0]] * 3000}, 422, "at most 2000"),
        ({"polygon": [[0, 0, 0]] * 3}, 422, "polygon"),
        ({"polygon": [[900, 900], [901, 900], [900, 901]]}, 400, "no cell is in the polygon"),
    ],
)
def test_what_is_no_area_is_refused_in_a_sentence(
    placed: httpx.Client, options: dict[str, object], status: int, sentence: str
):
    assert sentence in refusal(ask(placed, "library", **options), status)


def test_patterns_in_the_conditions_of_an_area_are_bounded_like_those_of_a_question(placed: httpx.Client):
    area = {"polygon": LEFT, "where": ["batch.str.contains('(a+)+$')"]}
    assert "pattern" in refusal(ask(placed, "compare", first=area), 400)


def test_a_question_that_is_not_about_chosen_cells_takes_no_polygon(placed: httpx.Client):
    refused = refusal(ask(placed, "compare", first="batch=a", polygon=LEFT), 422)
    assert "no option 'polygon'" in refused


def test_a_store_without_coordinates_says_which_command_makes_them(client: httpx.Client):
    assert "atlasvi embed MINI" in refusal(ask(client, "library", polygon=LEFT), 400)
