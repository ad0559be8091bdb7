"""Pages in a browser: needs playwright, axe-playwright-python and a Chromium (its path in CHROMIUM, or installed).

pip install playwright axe-playwright-python && pytest -m slow tests/engine/card/page tests/engine/service
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# WebGL is computed by the processor, so that no graphics card is needed
ARGUMENTS = ["--no-sandbox", "--no-zygote", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@contextmanager
def running_browser() -> Iterator[Any]:
    """A headless Chromium; skips the test if there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as running:
        path = path or running.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("there is no Chromium: name one in CHROMIUM")
        chromium = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


def open_page(browser: Any, address: str, width: int = 1280, theme: str = "light", **options: Any) -> Any:
    """A page, with the addresses that it asked for in `requested`, and what its console and dialogs said in `said`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options).new_page()
    page.set_default_timeout(60_000)
    page.requested, page.said = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: page.said.append(dialog.message))
    page.goto(address)
    return page


def find_violations(page: Any) -> list[tuple[str, str]]:
    """What axe finds wrong in a page that was opened with bypass_csp: axe itself is a script, which policies refuse."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    page.evaluate((Path(spec.origin).parent / "axe.min.js").read_text("utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]
