import shutil
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from atlasvi.engine import build_index, find_neighbours, minify, open_minified
from atlasvi.engine.neighbours.exact_search import to_points
from atlasvi.engine.neighbours.index_file import identify_latents, name_index
from atlasvi.engine.queries import neighbours
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError, SourceError
from atlasvi.loaders.manifest import MANIFEST, hash_file, read_manifest, write_json
from tests.engine.api.small_models import make_adata
from tests.engine.neighbours.small_latents import search_plainly
from tests.engine.queries.forms_of_cells import MINIFIED, make_forms, open_form


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder, encode_covariates=False)
    return folder


def search_frame(folder: Path, k: int = 4, by: str = "mean", chosen: np.ndarray | None = None):
    """Distances and names of the nearest cells, from all pairs."""
    store = open_minified(folder / "x.mini")
    qzm, qzv = store.read_latent(0, store.n_cells)
    points = to_points(qzm, qzv, by == "posterior")
    chosen = np.ones(len(qzm), bool) if chosen is None else chosen
    squared, cells = search_plainly(points, points, k, np.arange(len(points)), chosen)
    return np.sqrt(squared), store.read_names().to_numpy()[cells]


@pytest.mark.parametrize("by", ["mean", "posterior"])
@pytest.mark.parametrize("form", [form for form in MINIFIED if form != "minified AnnData"])
def test_neighbours_of_all_forms_of_minified_cells_are_those_of_all_pairs(folder: Path, form: str, by: str):
    table = find_neighbours(open_form(folder, form), k=4, by=by, columns=["cell_type", "n_counts"])
    distances, names = search_frame(folder, by=by)
    assert table["rank"].tolist() == [1, 2, 3, 4] * 60
    np.testing.assert_allclose(table["distance"].to_numpy().reshape(60, 4), distances, rtol=1e-5)
    assert table["neighbour"].tolist() == names.ravel().tolist()
    store = open_minified(folder / "x.mini")
    obs = pd.DataFrame({name: store.read_column(name).to_numpy() for name in ("cell_type", "n_counts")})
    obs.index = store.read_names()
    assert table["cell_type"].tolist() == obs.loc[table["neighbour"], "cell_type"].tolist()
    assert table["n_counts"].tolist() == obs.loc[table["neighbour"], "n_counts"].tolist()


def test_a_missing_value_of_a_neighbour_stays_missing(folder: Path, tmp_path: Path):
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.obs["site"] = pd.Categorical(np.where(np.arange(60) % 2, "lung", None))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    minify(folder / "model", tmp_path / "cells.h5ad", tmp_path / "y.mini")
    table = find_neighbours(tmp_path / "y.mini", columns=["site"], k=2)
    expected = adata.obs["site"].astype(object).loc[table["neighbour"]]
    assert table["site"].where(table["site"].notna(), "?").tolist() == expected.where(expected.notna(), "?").tolist()


def test_chosen_cells_are_asked_and_are_neighbours(folder: Path):
    table = find_neighbours(folder / "x.mini", of="cell_type=B", among="cell_type != 'B'", k=3)
    types = open_minified(folder / "x.mini").read_column("cell_type")
    _, names = search_frame(folder, k=3, chosen=(types != "B").to_numpy())
    assert table["neighbour"].tolist() == names[types == "B"].ravel().tolist()
    assert set(table.index) == set(open_minified(folder / "x.mini").read_names()[types == "B"])


def test_new_cells_are_encoded_and_are_nobody_s_own(folder: Path):
    table = find_neighbours(folder / "x.mini", new_cells=folder / "cells.h5ad", k=1)
    assert table["neighbour"].tolist() == table.index.tolist()
    assert table["distance"].max() < 1e-5
    other = find_neighbours(folder / "x.mini", new_cells=make_adata(10, seed=4, batches="xyz"), k=2)
    assert len(other) == 20


def test_more_neighbours_than_cells_are_all_others(folder: Path):
    table = find_neighbours(folder / "x.mini", of=[3], k=100)
    assert table["rank"].tolist() == list(range(1, 60))
    assert sorted([*table["neighbour"], table.index[0]]) == sorted(open_minified(folder / "x.mini").read_names())


@pytest.fixture
def indexed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with an index that is used although the cells are few."""
    monkeypatch.setattr(neighbours, "FEW_CELLS", 5)
    if not name_index(folder / "x.mini").exists():
        build_index(open_minified(folder / "x.mini"))
    return folder / "x.mini"


@pytest.mark.parametrize("by", ["mean", "posterior"])
def test_an_index_finds_nearly_the_same(indexed: Path, folder: Path, by: str):
    table = find_neighbours(indexed, k=4, by=by, recall=1)
    distances, names = search_frame(folder, by=by)
    near = np.abs(table["distance"].to_numpy().reshape(60, 4) - distances) < 0.01
    assert near.mean() > (0.95 if by == "mean" else 0.75)  # by posterior, among 16 candidates by mean
    exact = find_neighbours(indexed, k=4, by=by, exact=True)
    assert exact["neighbour"].tolist() == names.ravel().tolist()


def test_chosen_cells_are_found_with_an_index(indexed: Path, folder: Path):
    types = open_minified(indexed).read_column("cell_type")
    table = find_neighbours(indexed, among="cell_type=NK", k=3)
    distances, _ = search_frame(folder, k=3, chosen=(types == "NK").to_numpy())
    np.testing.assert_allclose(table["distance"].to_numpy().reshape(60, 3), distances, atol=0.03)


def test_an_index_of_another_store_is_noticed(indexed: Path, folder: Path, tmp_path: Path):
    name_index(indexed).rename(tmp_path / "kept")
    build_index(open_minified(indexed), tmp_path / "right")
    make_forms(tmp_path, encode_covariates=False, gene_likelihood="zinb")  # of the same sizes
    build_index(open_minified(tmp_path / "x.mini"), name_index(indexed))
    with pytest.raises(SourceError, match="not of the latents"):
        find_neighbours(indexed)
    assert len(find_neighbours(indexed, exact=True)) == 60 * 15
    assert len(find_neighbours(indexed, index=tmp_path / "right")) == 60 * 15


def test_a_long_exact_search_says_how_to_build_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    make_forms(tmp_path)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 3_000)
    with pytest.raises(QueryError, match=r"60 cells with 60 takes minutes.*atlasvi index .*x\.mini.*--exact"):
        find_neighbours(tmp_path / "x.mini")
    assert len(find_neighbours(tmp_path / "x.mini", exact=True)) == 60 * 15
    assert len(find_neighbours(tmp_path / "x.mini", of=[0, 1])) == 30


def test_wrong_questions_are_refused(folder: Path):
    mini = folder / "x.mini"
    for options, error, sentence in [
        ({"k": 0}, QueryError, "k is 0"),
        ({"by": "cosine"}, QueryError, "by is 'cosine': use one of mean, posterior"),
        ({"recall": 1.5}, QueryError, "recall is 1.5"),
        ({"columns": ["cell_typ"]}, ColumnError, "cell_type"),
        ({"among": "n_counts < 0"}, ColumnError, "true for no cell"),
        ({"among": np.zeros(60, bool)}, QueryError, "none of its cells is chosen"),
        ({"of": [0], "new_cells": folder / "cells.h5ad"}, QueryError, "pass one of them"),
    ]:
        with pytest.raises(error, match=sentence), warnings.catch_warnings():
            find_neighbours(mini, **options)


def test_a_store_in_which_one_chunk_was_replaced_is_another_one(folder: Path, tmp_path: Path):
    """In lists of older versions its crc32c stays: of content and its own crc32c together, it is a constant."""
    mini = tmp_path / "x.mini"
    shutil.copytree(folder / "x.mini", mini)

    def list_as_of_old() -> dict[str, tuple[int, str]]:
        files = {name: hash_file(mini / name, like="") for name in read_manifest(mini) or {}}
        write_json(mini / MANIFEST, {"files": files})
        return files

    listed = list_as_of_old()
    before = identify_latents(open_minified(mini))
    latents = zarr.open_group(mini, mode="r+")["obsm/scvi_latent_qzm"]
    latents[7, 1] = 0.5
    assert list_as_of_old() == listed
    assert identify_latents(open_minified(mini)) != before
