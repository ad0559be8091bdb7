"""The routes of the page without a browser: every address that it asks for, and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from atlasvi.engine.minified.embedding import writing_embedding
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.service.page_answers import PAGE, POLICY, AtlasPage
from atlasvi.engine.service.tiles import Tiles, open_tiles
from tests.engine.service.embedded import copy_with_points
from tests.engine.service.running import refusal, serving


@pytest.fixture(scope="module")
def store(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> MinifiedStore:
    return copy_with_points(forms / "x.mini", tmp_path_factory.mktemp("routes"))


@pytest.fixture(scope="module")
def tiles(store: MinifiedStore) -> Tiles:
    return open_tiles(store)


@pytest.fixture(scope="module")
def page(store: MinifiedStore, tiles: Tiles) -> Iterator[httpx.Client]:
    with serving(store, tiles=tiles) as client:
        yield client


def test_the_page_and_all_its_files_are_there_with_a_policy_that_allows_nothing_from_elsewhere(page: httpx.Client):
    for name in ("", *(file.name for file in PAGE.iterdir())):
        response = page.get(f"/{name}")
        assert response.status_code == 200
        assert response.content == (PAGE / (name or "index.html")).read_bytes()
        assert response.headers["content-security-policy"] == POLICY
    assert "'unsafe" not in POLICY
    assert "http" not in POLICY


def test_tiles_hold_points_and_codes_in_one_order(page: httpx.Client, store: MinifiedStore, tiles: Tiles):
    index = page.get("/tiles/index.json").json()
    assert index["starts"] == [0, store.n_cells]
    assert [column["name"] for column in index["columns"]] == store.obs_columns
    number = store.obs_columns.index("cell_type")
    assert index["first"] == number
    response = page.get("/tiles/points/0")
    np.testing.assert_array_equal(np.frombuffer(response.content, "<u2").reshape(-1, 2), tiles.read_points(0))
    assert "immutable" in response.headers["cache-control"]
    column = page.get(f"/tiles/columns/{number}.json").json()
    codes = np.frombuffer(page.get(f"/tiles/columns/{number}/0").content, column["dtype"])
    assert [column["categories"][code] for code in codes] == list(store.read_column("cell_type").iloc[tiles.cells])


def test_the_tiles_are_described_once_for_all_clients(
    store: MinifiedStore, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
):
    described, describe = [], AtlasPage.describe
    monkeypatch.setattr(AtlasPage, "describe", lambda page: described.append(1) or describe(page))
    with serving(store, tiles=tiles) as client:
        first, second = (client.get("/tiles/index.json").json() for _ in range(2))
    assert first == second
    assert described == [1]


def test_conditions_of_literals_choose_the_cells_of_a_category(page: httpx.Client, store: MinifiedStore):
    for name in ("cell_type", "donor"):
        column = page.get(f"/tiles/columns/{store.obs_columns.index(name)}.json").json()
        for literal, n in zip(column["literals"], column["counts"]):
            body = {"where": [f"`{name}`.isin([{literal}])"]}
            assert page.post("/api/count", json=body).json()["columns"]["cells"] == [n]


def test_a_point_a_name_and_neighbours_are_cells_with_their_values(
    page: httpx.Client, store: MinifiedStore, tiles: Tiles
):
    cell = page.get("/tiles/cells/0/5").json()
    assert cell["cell"] == int(tiles.cells[5])
    assert cell["name"] == store.read_names()[cell["cell"]]
    assert dict(cell["values"])["cell_type"] == store.read_column("cell_type").iloc[cell["cell"]]
    assert page.get("/tiles/cell", params={"name": cell["name"]}).json() == cell
    near = page.get(f"/tiles/neighbours/{cell['cell']}?k=5").json()["neighbours"]
    qzm = store.read_latent(0, store.n_cells)[0]
    distances = np.linalg.norm(qzm - qzm[cell["cell"]], axis=1)
    assert [one["cell"] for one in near] == np.argsort(distances)[1:6].tolist()
    np.testing.assert_allclose([one["distance"] for one in near], np.sort(distances)[1:6], rtol=1e-4)


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/tiles/points/9", 400, "there is no tile 9"),
        ("/tiles/columns/99.json", 400, "there is no column 99"),
        ("/tiles/columns/99/0", 400, "there is no column 99"),
        ("/tiles/columns/0/9", 400, "there is no tile 9"),
        ("/tiles/cells/0/99", 400, "no point 99"),
        ("/tiles/cell?name=nobody", 400, "no gene, column or cell has the name 'nobody'"),
        ("/tiles/neighbours/99999", 400, "there is no cell 99999"),
        ("/tiles/neighbours/0?k=0", 400, "from 1 to 1,000"),
        ("/tiles/neighbours/0?k=many", 400, "from 1 to 1,000"),
        ("/tiles/genes/0?gene=nothing", 400, "no gene 'nothing'"),
        ("/tiles/genes/9?gene=g1", 400, "there is no tile 9"),
        ("/tiles/points/../../x", 404, "nothing at this address"),
        ("/page.py", 404, "nothing at this address"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence_without_a_path(
    page: httpx.Client, store: MinifiedStore, address: str, status: int, sentence: str
):
    refused = refusal(page.get(address), status)
    assert sentence in refused
    assert str(Path(store.path).parent) not in refused


def test_a_cell_without_coordinates_is_told_and_is_a_neighbour(forms: Path, tmp_path: Path):
    copied = copy_with_points(forms / "x.mini", tmp_path)
    points = copied.read_embedding()
    points[7] = np.nan
    with writing_embedding(copied, {"method": "test"}, replace=True) as append:
        append(points)
    opened = MinifiedStore(copied.path)
    with serving(opened, tiles=open_tiles(opened)) as client:
        cell = client.get("/tiles/cell", params={"name": str(opened.take_names(np.array([7]))[0])}).json()
        assert (cell["cell"], cell["x"], cell["y"]) == (7, None, None)
        near = client.get("/tiles/neighbours/0", params={"k": 59}).json()["neighbours"]
    assert [each["x"] is None for each in near] == [each["cell"] == 7 for each in near]
    assert len(near) == 59


def test_without_the_token_no_part_of_the_page_is_given(store: MinifiedStore, tiles: Tiles):
    with serving(store, tiles=tiles, token="a-long-secret") as client:
        for address in ("/", "/page.js", "/tiles/index.json", "/tiles/points/0"):
            assert client.get(address).status_code == 401
        assert client.get("/", params={"token": "a-long-secret"}, follow_redirects=True).status_code == 200
        assert client.get("/tiles/points/0").status_code == 200  # by the cookie


def test_without_a_page_there_are_no_tiles(store: MinifiedStore):
    with serving(store, page=False) as client:
        for address in ("/", "/tiles/index.json"):
            assert client.get(address).status_code == 404


def test_the_index_is_json_that_every_browser_reads(page: httpx.Client):
    assert json.loads(page.get("/tiles/index.json").text, parse_constant=pytest.fail)
