"""The page of an atlas in a browser (see tests/engine/browser.py), served, and as a static folder."""

import contextlib
import functools
import http.server
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlasvi.engine.minified.embedding import writing_embedding
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.markers import compare
from atlasvi.engine.queries.neighbours import find_neighbours
from atlasvi.engine.queries.question_cells import MinifiedCells
from atlasvi.engine.service.static_page import write_static_page
from atlasvi.engine.service.tiles import open_tiles
from tests.engine.browser import find_violations, open_page, running_browser
from tests.engine.service.running import serving

pytestmark = pytest.mark.slow
LABELS, HIGH = "cell_type", 22.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def store(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> MinifiedStore:
    """The small store, with its cell types beside each other: in columns, ten units apart, at random heights."""
    mini = shutil.copytree(forms / "x.mini", tmp_path_factory.mktemp("page") / "x.mini")
    opened = MinifiedStore(mini)
    random = np.random.default_rng(0)
    types = opened.read_column(LABELS).cat.codes.to_numpy()
    with writing_embedding(opened, {"method": "test"}) as append:
        append(np.stack([10 * types + random.uniform(0, 3, len(types)), random.uniform(0, HIGH, len(types))], 1))
    return MinifiedStore(mini)


@pytest.fixture(scope="module")
def address(store: MinifiedStore) -> Iterator[str]:
    with serving(store, tiles=open_tiles(store)) as client:
        yield str(client.base_url)


def wait(page: Any) -> Any:
    page.wait_for_selector("canvas[data-complete=true]")
    return page


def draw_around(page: Any, store: MinifiedStore, cells: np.ndarray) -> None:
    """Draw a lasso around the cells, which are alone in their part of the picture, with the mouse and Shift."""
    box = page.locator("#stage").bounding_box()
    points = store.read_embedding()
    low, high = points.min(0), points.max(0)
    scale = 0.92 * min(np.array([box["width"], box["height"]]) / (high - low))

    def to_screen(x: float, y: float) -> tuple[float, float]:
        middle = (low + high) / 2
        return (
            box["x"] + box["width"] / 2 + (x - middle[0]) * scale,
            box["y"] + box["height"] / 2 - (y - middle[1]) * scale,
        )

    (x0, y0), (x1, y1) = points[cells].min(0) - 0.3, points[cells].max(0) + 0.3
    page.keyboard.down("Shift")
    page.mouse.move(*to_screen(x0, y0))
    page.mouse.down()
    for corner in ((x1, y0), (x1, y1), (x0, y1), (x0, y0 + 0.1)):
        page.mouse.move(*to_screen(*corner), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")


def find_type(store: MinifiedStore, code: int) -> np.ndarray:
    return np.flatnonzero(store.read_column(LABELS).cat.codes.to_numpy() == code)


def read_table(page: Any, name: str) -> list[list[str]]:
    page.wait_for_selector(f"#{name} tbody tr")
    rows = page.locator(f"#{name} tbody tr").all()
    return [[cell.inner_text().strip() for cell in row.locator("td").all()] for row in rows]


def count_pixels(page: Any, colour: str) -> int:
    """Pixels of the canvas in a colour of the theme."""
    script = """name => {
      const from = document.getElementById("canvas");
      const copy = Object.assign(document.createElement("canvas"), { width: from.width, height: from.height });
      const paper = copy.getContext("2d");
      paper.drawImage(from, 0, 0);
      const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      const { data } = paper.getImageData(0, 0, copy.width, copy.height);
      let n = 0;
      for (let k = 0; k < data.length; k += 4) n += data[k] === r && data[k + 1] === g && data[k + 2] === b;
      return n;
    }"""
    return page.evaluate(script, colour)


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (1280, "light"), (1920, "dark")])
def test_all_cells_are_drawn_in_the_colours_of_their_types_and_nothing_else_is_asked_for(
    browser: Any, address: str, store: MinifiedStore, width: int, theme: str
) -> None:
    page = wait(open_page(browser, address, width, theme))
    assert page.get_attribute("canvas", "data-points") == str(store.n_cells)
    n_types = len(store.read_column(LABELS).cat.categories)
    assert min(count_pixels(page, f"c{k}") for k in range(n_types)) > 20
    assert count_pixels(page, f"c{n_types}") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.said == []
    assert [each for each in page.requested if not each.startswith((address, "data:,"))] == []


def test_the_lasso_selects_and_lists_composition_and_markers_as_python_does(
    browser: Any, address: str, store: MinifiedStore
) -> None:
    page = wait(open_page(browser, address))
    cells = find_type(store, 1)
    draw_around(page, store, cells)
    page.wait_for_selector("#selected")
    assert page.inner_text("#selected") == f"{len(cells)} cells"
    page.select_option("#composition-column", label="batch")
    page.wait_for_selector("#composition th:text-is('batch')")
    found = {name: int(n) for name, n, _ in read_table(page, "composition")}
    assert found == Counter(map(str, store.read_column("batch").iloc[cells]))
    page.click("#find-markers")
    expected = compare(store, cells, top=25)
    table = read_table(page, "marker-table")
    assert [row[0] for row in table] == list(expected.index)
    np.testing.assert_allclose([float(row[1]) for row in table], expected["lfc_mean"], rtol=6e-4)


def test_the_selection_is_saved_with_its_columns(browser: Any, address: str, store: MinifiedStore) -> None:
    page = wait(open_page(browser, address))
    cells = find_type(store, 0)
    draw_around(page, store, cells)
    with page.expect_download() as download:
        page.click("#save-cells")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].split(",")[0] == "cell"
    assert {line.split(",")[0] for line in lines[1:]} == set(store.take_names(cells))
    with page.expect_download() as download:
        page.click("#save-picture")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_legend_filters_and_the_link_holds_what_is_shown(browser: Any, address: str, store: MinifiedStore) -> None:
    page = wait(open_page(browser, address))
    page.click("[data-code='1']")
    page.wait_for_url(lambda url: "only." in url)
    page.click("#zoom-in")
    page.wait_for_url(lambda url: "at=" in url)
    draw_around(page, store, find_type(store, 1))
    page.wait_for_selector("#selected")
    assert page.inner_text("#selected") == "0 cells"
    page.wait_for_timeout(400)  # the view is written into the address with a delay
    other = wait(open_page(browser, page.url))
    assert not other.is_checked("[data-code='1']")
    other.wait_for_selector("#selected")
    assert count_pixels(other, "c1") == 0
    other.wait_for_timeout(400)
    assert other.url == page.url


def test_a_gene_colours_the_cells_and_the_highest_is_the_darkest(
    browser: Any, address: str, store: MinifiedStore
) -> None:
    gene = store.run.genes[3]
    page = wait(open_page(browser, address))
    with page.expect_response(lambda response: "/tiles/genes/" in response.url) as answer:
        page.fill("#wanted", gene)
        page.press("#wanted", "Enter")
    codes = np.frombuffer(answer.value.body(), "<u2")
    parts = slice_expression(store.run, MinifiedCells(store), genes=[gene], library_size=10_000)
    values = np.log1p(np.concatenate([part[:, 0] for _, part in parts]))
    shown = codes[np.argsort(open_tiles(store).cells)] * np.log1p(10_000) / 65534
    np.testing.assert_allclose(shown, values, atol=1e-4)
    page.wait_for_selector("#legend .bar")
    assert page.eval_on_selector("#colour", "e => e.selectedOptions[0].textContent") == gene


def test_a_cell_is_found_by_name_and_its_neighbours_are_those_of_python(
    browser: Any, address: str, store: MinifiedStore
) -> None:
    name = str(store.read_names(7, 8)[0])
    page = wait(open_page(browser, address))
    page.fill("#wanted", name)
    page.press("#wanted", "Enter")
    page.wait_for_selector("#cell-name")
    assert page.inner_text("#cell-name") == name
    page.click("#find-neighbours")
    expected = find_neighbours(store, [7], k=30)
    assert [row[0] for row in read_table(page, "neighbours")] == expected["neighbour"].tolist()
    assert page.locator("#marks .near").count() == 30


def test_a_name_that_nothing_has_is_said_in_a_sentence(browser: Any, address: str) -> None:
    page = wait(open_page(browser, address))
    page.fill("#wanted", "nobody")
    page.press("#wanted", "Enter")
    page.wait_for_selector("#banner:visible")
    assert "no gene, column or cell has the name 'nobody'" in page.inner_text("#banner")
    page.click("#dismiss")
    assert page.is_hidden("#banner")


def test_a_click_shows_the_cell_under_it(browser: Any, address: str, store: MinifiedStore) -> None:
    page = wait(open_page(browser, address))
    page.focus("#stage")
    page.keyboard.press("Enter")  # the cell nearest to the middle, at most 40 pixels away
    page.fill("#wanted", str(store.read_names(3, 4)[0]))
    page.press("#wanted", "Enter")
    page.wait_for_selector(f"#cell-name:text-is('{store.read_names(3, 4)[0]}')")
    page.wait_for_selector("canvas[data-complete=true]")
    x, y = page.evaluate(
        "(() => { const e = [...document.querySelectorAll('#marks circle')].at(-1); "
        "return [e.getAttribute('cx'), e.getAttribute('cy')].map(Number) })()"
    )
    page.keyboard.press("Escape")
    box = page.locator("#stage").bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_selector("#cell-name")
    assert page.inner_text("#cell-name") == store.read_names(3, 4)[0]
    page.click("#find-neighbours")
    assert len(read_table(page, "neighbours")) == 30


def test_the_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(browser: Any, store: MinifiedStore) -> None:
    tiles, cells = open_tiles(store), find_type(store, 1)
    with contextlib.ExitStack() as running:
        client = running.enter_context(serving(store, tiles=tiles))
        port = client.base_url.port
        page = wait(open_page(browser, str(client.base_url)))
        draw_around(page, store, cells)
        page.wait_for_selector("#selected")
    page.click("#find-markers")
    page.wait_for_selector("#banner:visible")
    assert "does not answer" in page.inner_text("#banner")
    with serving(store, tiles=tiles, port=port):
        table = read_table(page, "marker-table")
        assert [row[0] for row in table] == list(compare(store, cells, top=25).index)
        assert page.is_hidden("#banner")


def test_all_can_be_done_with_the_keyboard(browser: Any, address: str, store: MinifiedStore) -> None:
    page = wait(open_page(browser, address))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "stage":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("v")
    page.wait_for_selector("#selected")
    assert page.inner_text("#selected") == f"{store.n_cells} cells"
    page.keyboard.press("Escape")
    page.wait_for_selector("#select-view")
    page.keyboard.press("l")
    assert page.get_attribute("#lasso", "aria-pressed") == "true"
    page.keyboard.press("l")
    before = page.url
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(lambda url: url != before)
    page.focus("[data-code='0']")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.dataset.code") == "0"
    assert not page.is_checked("[data-code='0']")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing(browser: Any, address: str, store: MinifiedStore, width: int, theme: str) -> None:
    page = wait(open_page(browser, address, width, theme, bypass_csp=True))
    draw_around(page, store, find_type(store, 1))
    page.click("#find-markers")
    page.wait_for_selector("#marker-table")
    page.fill("#wanted", str(store.read_names(7, 8)[0]))
    page.press("#wanted", "Enter")
    page.wait_for_selector("#cell-name")
    assert find_violations(page) == []


def test_a_store_without_coordinates_says_which_command_makes_them(browser: Any, forms: Path) -> None:
    with serving(forms / "x.mini") as client:
        page = open_page(browser, str(client.base_url))
        page.wait_for_selector("#banner:visible")
        assert "atlasvi embed MINI" in page.inner_text("#banner")


def test_a_static_folder_draws_selects_and_saves_without_a_service(
    browser: Any, store: MinifiedStore, tmp_path: Path
) -> None:
    write_static_page(store, open_tiles(store), tmp_path / "out")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "out"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = wait(open_page(browser, f"http://127.0.0.1:{server.server_port}/"))
        cells = find_type(store, 1)
        draw_around(page, store, cells)
        page.wait_for_selector("#selected")
        assert page.inner_text("#selected") == f"{len(cells)} cells"
        assert page.locator("#find-markers").count() == 0
        assert "need the model" in page.inner_text("#left-out")
        with page.expect_download() as download:
            page.click("#save-cells")
        lines = Path(download.value.path()).read_text().splitlines()
        assert {line.split(",")[0] for line in lines[1:]} == set(store.take_names(cells))
        name = str(store.read_names(7, 8)[0])
        page.fill("#wanted", name)
        page.press("#wanted", "Enter")
        page.wait_for_selector("#cell-name")
        assert page.inner_text("#cell-name") == name
        assert page.said == []
        assert not any("/api/" in each for each in page.requested)
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
