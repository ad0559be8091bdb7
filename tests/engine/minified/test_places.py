from pathlib import Path

from atlasvi.engine.minified.places import name_place
from tests.engine.queries.forms_of_cells import make_forms


def test_what_a_path_holds_is_told_by_what_is_in_it(tmp_path: Path):
    make_forms(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "text.h5ad").write_text("no HDF5")
    places = {
        "cells.store": "cell store",
        "x.mini": "minified store",
        "run": "run",
        "model": "model",
        "x.h5ad": "minified data",
        "cells.h5ad": None,
        "cells.h5ad::layer=counts": None,
        "text.h5ad": None,
        "none": None,
    }
    assert {name: name_place(tmp_path / name) for name in places} == places


def test_torch_is_not_needed_to_tell():
    import subprocess
    import sys

    code = "import sys, atlasvi.engine.minified.places; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
