"""One language of filters for the command line and for Python."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.queries.cell_choice import choose_cells, count_cells, draw_indices, find_cells, sample_cells
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells, QueryError
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.errors import ColumnError
from tests.engine.queries.forms_of_cells import make_forms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("forms")
    make_forms(place)
    return place


@pytest.fixture(scope="module")
def cells(folder: Path) -> dict[str, CountedCells | MinifiedCells]:
    model = open_model(folder / "model")
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    return {
        "store": MinifiedCells(open_minified(folder / "x.mini")),
        "file": MinifiedCells(open_minified(folder / "x.h5ad")),
        "memory": open_question_cells(adata, model),
        "source": open_question_cells(folder / "cells.h5ad", model),
    }


@pytest.mark.parametrize("kind", ["store", "file", "memory", "source"])
def test_cells_are_chosen_alike_by_conditions_expressions_masks_and_indices(folder: Path, cells, kind: str):
    obs, asked = anndata.read_h5ad(folder / "cells.h5ad").obs, cells[kind]
    is_b = (obs["cell_type"] == "B").to_numpy()
    expected = np.flatnonzero(is_b)
    for where in ("cell_type=B", "cell_type == 'B'", "cell_type=='B'", is_b, expected, expected.tolist()):
        assert np.array_equal(choose_cells(asked, where=where), expected)
    both = np.flatnonzero(is_b & (obs["n_counts"] > 100) & (obs["batch"] == "a"))
    assert np.array_equal(choose_cells(asked, where=["cell_type=B", "n_counts > 100", "batch == 'a'"]), both)
    assert np.array_equal(choose_cells(asked, where=["cell_type=B,NK", "n_counts>100"], limit=2), np.flatnonzero(
        obs["cell_type"].isin(["B", "NK"]) & (obs["n_counts"] > 100)
    )[:2])  # fmt: skip
    assert choose_cells(asked, names=["c0_9", "c0_2"], where="donor=0,1").tolist() == [2, 9]
    assert choose_cells(asked, limit=3).tolist() == [0, 1, 2]
    assert len(choose_cells(asked)) == 60
    assert find_cells(asked, [5, -1, 5]).tolist() == [5, 59, 5]  # as they are asked for


def test_text_that_holds_an_equals_sign_and_truth_values_are_found(cells):
    adata = cells["memory"].source.adata
    adata.obs["sign"] = pd.Categorical(["=x", "a=b", "x"] * 20)
    adata.obs["odd"] = np.arange(60) % 2 == 1
    asked = CountedCells(MemoryCells(adata), adata.var_names.tolist(), cells["memory"].setup)
    third = np.arange(0, 60, 3)
    assert np.array_equal(choose_cells(asked, where="sign==x"), third)  # the value =x, as ever
    assert np.array_equal(choose_cells(asked, where="sign=='x'"), third + 2)
    assert np.array_equal(choose_cells(asked, where="sign=a=b"), third + 1)
    assert np.array_equal(choose_cells(asked, where="sign in ['a=b']"), third + 1)
    assert np.array_equal(choose_cells(asked, where="odd"), np.arange(1, 60, 2))
    assert np.array_equal(choose_cells(asked, where="odd=True"), np.arange(1, 60, 2))


def test_a_missing_value_is_no_value_that_is_there(cells):
    adata = anndata.AnnData(cells["memory"].source.adata.X.copy(), cells["memory"].source.adata.obs.copy())
    adata.obs["gaps"] = pd.Categorical([None] * 60, categories=["x"])
    adata.obs["numbers"] = np.where(np.arange(60) < 58, np.nan, 1.5)
    adata.var_names = cells["memory"].source.genes
    asked = CountedCells(MemoryCells(adata), adata.var_names.tolist(), cells["memory"].setup)
    with pytest.raises(QueryError, match=r"no cell has gaps = 'x' \(there are: none\)\.$"):
        choose_cells(asked, where="gaps=x")
    with pytest.raises(QueryError, match=r"no cell has numbers = 'nan' \(there are: 1.5\)\.$"):
        choose_cells(asked, where="numbers=nan")


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("cell_type", QueryError, "write it as COLUMN=VALUE"),
        ("tissue=lung", ColumnError, "obs has no column 'tissue'"),
        ("tissue == 'lung'", ColumnError, "obs has no column 'tissue'"),
        ("cell_type=C", QueryError, r"no cell has cell_type = 'C' \(there are: B, NK, T\)"),
        ("cell_type == 'C'", ColumnError, "is true for no cell"),
        ("n_counts >", ColumnError, "is not an expression over obs columns"),
        ("cell_type ==", ColumnError, "is not an expression over obs columns"),
        ("cell_type = B", ColumnError, "is not an expression over obs columns"),
        ("cell_type=b", QueryError, r"no cell has cell_type = 'b' .* Did you mean 'B'\?"),
        ("CELL_TYPE=B", ColumnError, r"Did you mean 'cell_type'\?"),
        ([60], QueryError, "there is no cell 60"),
        (np.ones(3, bool), QueryError, "the mask has 3 values for 60 cells"),
        ([0.5], QueryError, "by their indices or by a mask"),
        ("cell_typ=B", ColumnError, r"no column 'cell_typ' .* Did you mean 'cell_type'\?"),
        ("n_counts=-1", QueryError, r"no cell has n_counts = '-1' \(there are: "),
        ("n_counts=many", QueryError, r"no cell has n_counts = 'many'"),
        ("cell_type=B, M", QueryError, r"no cell has cell_type = 'M' \(there are: B, NK, T\)"),
        (["cell_type=B", "cell_type=T"], QueryError, "no cell meets 'cell_type=B' and 'cell_type=T'"),
        ("tissue=" + "(" * 900, ColumnError, "obs has no column 'tissue'"),
        ("n_counts\0=1", ColumnError, "obs has no column"),
        ("cell_type.map(print) == 1", ColumnError, r"holds 'cell_type.map\(print\)'"),
    ],
)
def test_what_chooses_no_cells_is_said_in_a_sentence(cells, where, error, message):
    for kind in ("store", "source"):
        with pytest.raises(error, match=message):
            choose_cells(cells[kind], where=where)


def test_a_sample_of_cells_is_ascending_and_drawn_from_the_generator():
    indices = np.array([9, 3, 7, 1])
    assert sample_cells(indices, 9, torch.Generator()).tolist() == [1, 3, 7, 9]
    first, again = (sample_cells(indices, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert len(first) == 2
    assert first[0] < first[1]


@pytest.mark.parametrize("kind", ["store", "file", "memory", "source"])
def test_a_random_sample_is_of_the_chosen_cells_and_the_same_from_the_same_seed(cells, kind: str):
    of_b = choose_cells(cells[kind], where="cell_type=B")
    for options, chosen in ({}, np.arange(60)), ({"where": "cell_type=B"}, of_b), ({"names": ["c0_9", "c0_2"]}, [2, 9]):
        first, again = (choose_cells(cells[kind], **options, sample=2, seed=seed) for seed in (4, 4))
        assert np.array_equal(first, again)
        assert len(first) == 2
        assert first[0] < first[1]
        assert set(first.tolist()) <= set(np.asarray(chosen).tolist())
        assert np.array_equal(choose_cells(cells[kind], **options, sample=99), chosen)
    assert len({tuple(choose_cells(cells[kind], sample=5, seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(QueryError, match="use one of the two"):
        choose_cells(cells[kind], limit=1, sample=1)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_every_cell_is_drawn_equally_often_and_none_twice(n: int):
    times = np.zeros(6, int)
    for seed in range(600):
        drawn = draw_indices(6, n, np.random.default_rng(seed))
        assert (np.diff(drawn) > 0).all()
        assert len(drawn) == n
        times[drawn] += 1
    assert (np.abs(times - 100 * n) < 45).all()  # 4.5 deviations at most


def test_a_few_of_very_many_cells_are_drawn_without_a_list_of_all():
    drawn = draw_indices(10**15, 1_000, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 1_000


@pytest.mark.parametrize("kind", ["store", "file", "memory", "source"])
def test_cells_are_counted_as_they_are_chosen(cells, kind: str):
    for options in ({}, {"where": "cell_type=B"}, {"where": ["cell_type=B,T", "n_counts > 100"]}, {"names": ["c0_9"]}):
        assert count_cells(cells[kind], **options) == len(choose_cells(cells[kind], **options))
    assert count_cells(cells[kind], where="n_counts > 1e9") == 0
    assert count_cells(cells[kind], ["c0_9"], ["n_counts > 1e9"]) == 0
    with pytest.raises(QueryError, match="no cell has cell_type = 'C'"):
        count_cells(cells[kind], where="cell_type=C")


def test_values_of_any_type_are_found_by_their_text(cells):
    adata = cells["memory"].source.adata.copy()
    adata.obs["whole"] = np.arange(60) % 3
    adata.obs["small"] = np.array([0.1, 2.0, np.nan] * 20, np.float32)
    adata.obs["masked"] = pd.array([None, 7, 2**60] * 20, "Int64")
    adata.obs["text"] = [["a, b", "a", "b"][k % 3] for k in range(60)]
    adata.obs["level"] = pd.Categorical([1, 2, 3] * 20)
    asked = CountedCells(MemoryCells(adata), adata.var_names.tolist(), cells["memory"].setup)
    rows = [np.arange(k, 60, 3).tolist() for k in range(3)]
    for where, found in {
        "whole=1": rows[1],
        "whole=0,2": sorted(rows[0] + rows[2]),
        "small=0.1": rows[0],
        "small=2": rows[1],
        "small=2.0,0.1": sorted(rows[0] + rows[1]),
        "masked=7": rows[1],
        f"masked={2**60}": rows[2],
        "text=a, b": rows[0],
        "text=b,a": sorted(rows[1] + rows[2]),
        "level=2": rows[1],
    }.items():
        assert choose_cells(asked, where=where).tolist() == found, where


def test_all_cells_of_a_name_that_repeats_are_chosen(cells):
    adata = cells["memory"].source.adata.copy()
    adata.obs_names = [f"n{k % 50}" for k in range(60)]
    asked = CountedCells(MemoryCells(adata), adata.var_names.tolist(), cells["memory"].setup)
    assert choose_cells(asked, names=["n3", "n20"]).tolist() == [3, 20, 53]
