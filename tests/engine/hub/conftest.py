from pathlib import Path

import pytest

from tests.engine.hub.hub_folders import make_hub_folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder, with the cells of which it was written beside it (cells.mini); no test changes it."""
    return make_hub_folder(tmp_path_factory.mktemp("made"))
