"""`atlasvi index` and the questions about neighbours, by their commands."""

import io
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import find_neighbours
from atlasvi.engine.cli.neighbour_commands import _is_filter
from tests.engine.api.small_models import make_adata
from tests.engine.distributed.rank_processes import run_command
from tests.engine.queries.forms_of_cells import make_forms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder, encode_covariates=False)
    make_adata(12, seed=9, batches="xy").write_h5ad(folder / "new.h5ad")
    mouse = make_adata(12, seed=9)
    mouse.var_names = [f"ENSMUSG{k}" for k in range(mouse.n_vars)]
    mouse.write_h5ad(folder / "mouse.h5ad")
    return folder


def refuse(*words: object) -> str:
    done = run_command(*words)
    assert done.returncode == 1, done.stdout
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
    return done.stderr


def test_the_command_answers_as_the_function_does(folder: Path):
    mini = folder / "x.mini"
    words = ["--of", "cell_type=B", "-k", 3, "--where", "cell_type != 'NK'", "--by", "posterior", "--columns", "donor"]
    done = run_command("query", mini, "neighbours", *words)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout), index_col=0)
    expected = find_neighbours(
        mini, of="cell_type=B", k=3, among="cell_type != 'NK'", by="posterior", columns=["donor"]
    )
    assert table.columns.tolist() == ["rank", "neighbour", "distance", "donor"]
    pd.testing.assert_frame_equal(table, expected, check_exact=False, rtol=1e-4, check_dtype=False)


def test_new_cells_are_asked_about_as_data_or_by_an_option_and_written(folder: Path):
    mini, new = folder / "x.mini", folder / "new.h5ad"
    expected = find_neighbours(mini, new_cells=new, k=2)
    for number, words in enumerate((["neighbours", "--cells", new], [new, "neighbours"])):
        out = folder / f"{number}.npz"
        done = run_command("query", mini, *words, "-k", 2, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "24 rows" in done.stdout
        arrays = np.load(out)
        assert arrays["cell"].tolist() == expected.index.tolist()
        assert arrays["neighbour"].tolist() == expected["neighbour"].tolist()
        np.testing.assert_allclose(arrays["distance"], expected["distance"], rtol=1e-5)


def test_an_index_is_built_once_and_reported(folder: Path):
    done = run_command("index", folder / "x.mini")
    assert done.returncode == 0, done.stderr
    assert "x.mini.neighbours: 60 cells in" in done.stdout
    assert "bytes per cell" in done.stdout
    assert "exists already" in refuse("index", folder / "x.mini")
    assert anndata.read_zarr(folder / "x.mini").n_obs == 60
    assert run_command("check", folder / "x.mini").returncode == 0
    checked = run_command("check", folder / "x.mini.neighbours")
    assert "2 lists of 60 cells read" in checked.stdout, checked.stderr
    assert "share of the 10 nearest cells that is found" in run_command("info", folder / "x.mini.neighbours").stdout


def test_mistakes_are_explained_in_a_sentence(folder: Path):
    mini, new = folder / "x.mini", folder / "new.h5ad"
    assert "none of the 40 genes" in refuse("query", mini, "neighbours", "--cells", folder / "mouse.h5ad")
    assert "Did you mean 'cell_type'?" in refuse("query", mini, "neighbours", "--of", "cell_typ=B")
    assert "do not exist (first: 'nobody')" in refuse("query", mini, "neighbours", "--of", "nobody")
    assert "no column 'celltype'" in refuse("query", mini, "neighbours", "--where", "celltype=B").lower()
    assert "--of would have no effect" in refuse("query", mini, "neighbours", "--of", "c0_1", "--cells", new)
    assert "--missing-genes would" in refuse("query", mini, "neighbours", "--missing-genes", "zeros")
    assert "--recall would" in refuse("query", mini, "neighbours", "--exact", "--recall", 0.9)
    assert "both new cells" in refuse("query", mini, new, "neighbours", "--cells", new)
    assert "atlasvi minify" in refuse("query", folder / "model", "neighbours")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AAAC-1", False),
        ("c0_1,c0_2", False),
        ("@names.txt", False),
        ('"a, b",c', False),
        ("cell_type=B cell", True),
        ("cell_type == 'B'", True),
        ("n > 5 and not old", True),
        ("`my column`.isna()", True),
        ("other=B", False),
    ],
)
def test_a_filter_is_told_from_names(text: str, expected: bool):
    assert _is_filter(text, ["cell_type", "n"]) is expected


def test_new_cells_are_labelled_by_the_command_as_by_the_function(folder: Path):
    from atlasvi.engine import annotate

    mini, new = folder / "x.mini", folder / "new.h5ad"
    done = run_command(
        "query",
        mini,
        "annotate",
        new,
        "--labels-key",
        "cell_type",
        "-k",
        5,
        "--columns",
        "donor",
        "--out",
        folder / "a.csv",
    )
    assert done.returncode == 0, done.stderr
    assert "12 cells. On cells of MINI" in done.stdout
    table = pd.read_csv(folder / "a.csv", index_col=0)
    expected = annotate(mini, new, "cell_type", k=5, columns=["donor"])
    assert table["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(table["probability"], expected["probability"], rtol=1e-4)
    assert "needs new cells" in refuse("query", mini, "annotate", "--labels-key", "cell_type")
    assert "no column" in refuse("query", mini, "annotate", new, "--labels-key", "celltype").lower()
