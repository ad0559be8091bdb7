"""`atlasvi query markers` and `compare`: the numbers are those of the Python functions, in files of every format."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasvi.engine import OpenedQuestion, compare, markers
from tests.engine.cli.test_query_commands import ask, refuse


def test_markers_are_those_of_python_in_every_format(forms: Path, tmp_path: Path):
    expected = markers(forms / "x.mini", "cell_type", top=4, n_samples=200, seed=2)
    options = ["markers", "--labels-key", "cell_type", "--top", 4, "--n-samples", 200, "--seed", 2]
    printed = ask(forms, "x.mini", *options)
    assert printed.index.tolist() == expected.index.tolist()
    assert printed.columns.tolist() == expected.columns.tolist()
    numbers = expected.columns[:14].drop("is_de_fdr_0.05")
    np.testing.assert_allclose(printed[numbers], expected[numbers], rtol=1e-5)
    ask_into = [*options, "--out"]
    for name in ("a.parquet", "a.h5ad", "a.zarr"):
        ask_nothing(forms, "x.mini", *ask_into, tmp_path / name)
    tables = [
        pd.read_parquet(tmp_path / "a.parquet").set_index("gene"),
        anndata.read_h5ad(tmp_path / "a.h5ad").obs,
        anndata.read_zarr(tmp_path / "a.zarr").obs,
    ]
    for table in tables:
        assert table["lfc_mean"].tolist() == expected["lfc_mean"].tolist()
        assert table["group1"].astype(str).tolist() == expected["group1"].tolist()
        assert table["is_de_fdr_0.05"].tolist() == expected["is_de_fdr_0.05"].tolist()


def ask_nothing(folder: Path, *words: object) -> None:
    """Ask a question whose answer goes to a file, which is said in a sentence."""
    from tests.engine.distributed.rank_processes import run_command

    done = run_command("query", folder / str(words[0]), *words[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{words[-1]}: ")


def test_labels_and_cells_are_chosen(forms: Path):
    opened = OpenedQuestion(forms / "model", str(forms / "cells.h5ad"))
    chosen = np.flatnonzero(opened.cells.read_column("batch") == "a")
    expected = markers(opened, "cell_type", labels=["NK", "B"], chosen=chosen, n_samples=100)
    options = ["--labels-key", "cell_type", "--labels", "NK,B", "--where", "batch=a", "--n-samples", 100, "--top", 0]
    found = ask(forms, "model", "cells.h5ad", "markers", *options)
    assert found["group1"].unique().tolist() == ["NK", "B"]
    assert "raw_mean1" in found
    np.testing.assert_allclose(found["lfc_mean"], expected["lfc_mean"], rtol=1e-4, atol=1e-5)


def test_two_selections_are_compared(forms: Path):
    expected = compare(forms / "x.mini", "cell_type=B", "cell_type in ['NK', 'T']", n_samples=100, delta=0.5)
    words = ["compare", "--first", "cell_type=B", "--second", "cell_type in ['NK', 'T']", "--n-samples", 100]
    found = ask(forms, "x.mini", *words, "--delta", 0.5, "--top", 0)
    np.testing.assert_allclose(found["proba_de"], expected["proba_de"])
    assert found.index.tolist() == expected.index.tolist()
    assert "are in both selections" in refuse(forms, "x.mini", "compare", "--first", "donor=0", "--second", "batch=a")
    assert "no cell has cell_type = 'C'" in refuse(
        forms, "x.mini", "markers", "--labels-key", "cell_type", "--labels", "C"
    )
