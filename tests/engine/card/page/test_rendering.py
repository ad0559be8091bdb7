"""The page in a browser (see tests/engine/browser.py)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlasvi.engine.card.model_card import PARTS
from atlasvi.engine.card.page import make_page
from tests.engine.browser import find_violations, open_page, running_browser
from tests.engine.card.cards import make_card
from tests.engine.card.page.test_page import CARDS, make_hostile_card

pytestmark = pytest.mark.slow
WIDTHS, THEMES = (360, 1280, 1920), ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as chromium:
        yield chromium


def _open(browser: Any, text: str, folder: Path, *wanted: Any, **options: Any) -> Any:
    file = folder / "card.html"
    file.write_text(text, "utf-8")
    return open_page(browser, file.as_uri(), *wanted, **options)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_loaded_and_nothing_is_wider_than_the_screen(
    browser: Any, tmp_path: Path, width: int, theme: str
) -> None:
    page = _open(browser, make_page(make_card(with_parts=PARTS)), tmp_path, width, theme)
    assert page.requested == [(tmp_path / "card.html").as_uri()]
    assert page.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart text')].filter(e => e.getClientRects().length).map(e => "
        "parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getBoundingClientRect().width "
        "/ e.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 9.5
    assert max(sizes) <= 24


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize(("width", "theme"), [(360, "light"), (1280, "dark"), (1920, "light")])
def test_axe_finds_nothing(browser: Any, tmp_path: Path, card: Any, width: int, theme: str) -> None:
    page = _open(browser, make_page(card), tmp_path, width, theme, bypass_csp=True)
    assert find_violations(page) == []


def test_hostile_names_run_nothing(browser: Any, tmp_path: Path) -> None:
    page = _open(browser, make_page(make_hostile_card()), tmp_path)
    assert len(page.requested) == 1
    assert page.said == []
    assert page.evaluate("document.scripts.length + document.images.length") == 0


def test_a_category_is_chosen_by_keyboard_and_the_others_fade_without_a_script(browser: Any, tmp_path: Path) -> None:
    page = _open(browser, make_page(make_card()), tmp_path, java_script_enabled=False)
    page.locator("input[name=show-label]").first.focus()
    page.keyboard.press("ArrowDown")
    chosen, others = (
        page.locator(".map").first.locator(".p.g0").first,
        page.locator(".map").first.locator(".p.g1").first,
    )
    assert [each.evaluate("e => getComputedStyle(e).opacity") for each in (chosen, others)] == ["1", "0.07"]


def test_the_skip_link_is_the_first_stop_of_the_keyboard_and_leads_to_the_card(browser: Any, tmp_path: Path) -> None:
    page = _open(browser, make_page(make_card()), tmp_path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "card"


def test_paper_is_white_also_for_a_reader_of_the_dark_theme_and_shows_all_tables(browser: Any, tmp_path: Path) -> None:
    page = _open(browser, make_page(make_card(with_parts=PARTS)), tmp_path, theme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = page.evaluate("[...document.querySelectorAll('table')].map(e => e.getBoundingClientRect().height)")
    assert min(heights) > 10
