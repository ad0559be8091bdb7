"""One small model and its cells, for all tests of questions that do not change them."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make_forms` makes."""
    from tests.engine.queries.forms_of_cells import make_forms  # imports torch, which .ci/newest has not

    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder)
    return folder
