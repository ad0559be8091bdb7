from pathlib import Path

import pytest

from tests.engine.training.small_runs import write_cells


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")
