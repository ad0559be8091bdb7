"""One service of the small store of all tests of questions."""

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.engine.service.running import serving


@pytest.fixture(scope="session")
def client(forms: Path) -> Iterator[httpx.Client]:
    with serving(forms / "x.mini") as client:
        yield client
