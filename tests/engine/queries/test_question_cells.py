"""Cells of every kind are asked alike, and only what a question needs is read."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import SCVI, MinifiedStore
from atlasvi.engine.model.covariates import Setup, SetupKeys
from atlasvi.engine.queries import obs_rows, question_cells
from atlasvi.engine.queries.latents import read_latents
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells
from atlasvi.loaders.errors import ColumnError, SourceError
from atlasvi.loaders.tables.store_tables import TableReader
from tests.engine.queries.forms_of_cells import COUNTED, MINIFIED, make_forms, open_form


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("forms")
    make_forms(place)
    return place


@pytest.mark.parametrize("form", [*MINIFIED, *COUNTED])
def test_every_kind_of_data_gives_the_same_answers(folder: Path, form: str):
    model = SCVI.load(folder / "model", open_form(folder, form))
    expected = SCVI.load(folder / "model", anndata.read_h5ad(folder / "cells.h5ad"))
    assert isinstance(model.ask(), MinifiedCells if form in MINIFIED else CountedCells)
    names = expected.adata.obs_names
    order = model.ask().read_names().get_indexer(names)  # a cell store has its own
    np.testing.assert_allclose(
        model.get_latent_representation(indices=order), expected.get_latent_representation(), rtol=1e-4, atol=1e-5
    )
    some = model.get_normalized_expression(indices=order[[5, 2, 5]], n_samples=300, library_size="latent")
    assert some.index.tolist() == names[[5, 2, 5]].tolist()
    theirs = expected.get_normalized_expression(indices=[5, 2, 5], n_samples=300, library_size="latent")
    np.testing.assert_allclose(some.sum(1), theirs.sum(1), rtol=1e-3)
    groups = model.differential_expression(idx1="cell_type == 'B'", all_stats=False, n_samples_overall=20)
    assert len(groups) == 40


def test_a_model_is_loaded_on_minified_data_that_is_open(folder: Path):
    opened = open_form(folder, "minified file, opened")
    model = SCVI.load(folder / "model", opened)
    assert model.minified_data_type == "latent_posterior_parameters"
    assert np.array_equal(model.get_latent_representation(), MinifiedStore(folder / "x.mini").read_latent(0, 60)[0])


@pytest.mark.parametrize("form", ["minified store", "cell store"])
def test_obs_is_read_for_the_cells_that_are_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    monkeypatch.setattr(obs_rows, "SLICE_CELLS", 10)
    monkeypatch.setattr(question_cells, "SLICE_CELLS", 10)
    read: list[list[int]] = []
    real = TableReader._read

    def spy(self: TableReader, name: str, rows: slice | np.ndarray) -> object:
        read.append([rows.start, rows.stop] if isinstance(rows, slice) else rows.tolist())
        return real(self, name, rows)

    monkeypatch.setattr(TableReader, "_read", spy)
    model = SCVI.load(folder / "model", open_form(folder, form))
    model.get_latent_representation(indices=[33])
    assert read == ([] if form == "minified store" else [[30, 40]])  # latents that were kept need no covariates
    values = model.get_normalized_expression(indices=[33, 31], return_numpy=True)
    assert values.shape == (2, 40)
    assert all(rows == ([31, 33] if form == "minified store" else [30, 40]) for rows in read)


def test_latents_that_were_kept_are_read_for_the_cells_that_are_asked_about(folder: Path, monkeypatch):
    monkeypatch.setattr(question_cells, "SLICE_CELLS", 2)
    read: list[list[int]] = []
    real = MinifiedStore.take_latent

    def spy(self: MinifiedStore, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        read.append(cells.tolist())
        return real(self, cells)

    monkeypatch.setattr(MinifiedStore, "take_latent", spy)
    model = SCVI.load(folder / "model", folder / "x.mini")
    assert model.get_latent_representation(indices=[57, 3, 5]).shape == (3, 4)
    assert read == [[3, 5], [57]]


@pytest.mark.parametrize("kind", ["AnnData", "file"])
def test_a_batch_that_the_model_does_not_know_hinders_the_cells_of_it_alone(folder: Path, tmp_path: Path, kind: str):
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    batches = adata.obs["batch"].astype(str).to_numpy()
    batches[[40, 50]] = "new"
    adata.obs["batch"] = pd.Categorical(batches)
    adata.write_h5ad(tmp_path / "new.h5ad")
    model = SCVI.load(folder / "model", folder / "x.mini")
    data = adata if kind == "AnnData" else tmp_path / "new.h5ad"
    before = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(data, indices=range(40)), before[:40], atol=1e-5)
    with pytest.raises(ColumnError, match="'batch' holds 'new', which is not among the batches"):
        model.get_latent_representation(data, indices=[39, 40])
    factors = adata.obs["percent_mito"].to_numpy().copy()
    factors[50] = np.nan
    adata.obs["percent_mito"], adata.obs["batch"] = factors, "a"
    setup = Setup(keys=SetupKeys(continuous_covariate_keys=("percent_mito",)))
    cells = CountedCells(open_question_cells(adata, model.run).source, model.run.genes, setup)
    assert cells.read_codes(cells.setup, np.array([49, 51]))["continuous"].shape == (2, 1)
    with pytest.raises(ColumnError, match=r"missing values \(1 cells, first: cell 50\)"):
        cells.read_codes(cells.setup, np.array([50, 51]))


def test_cells_of_a_file_that_were_joined_to_minified_ones_are_named(folder: Path, tmp_path: Path):
    joined = anndata.read_h5ad(folder / "x.h5ad")
    joined.obsm["scvi_latent_qzm"][7] = np.nan
    joined.write_h5ad(tmp_path / "joined.h5ad")
    model = SCVI.load(folder / "model", tmp_path / "joined.h5ad")
    assert model.get_latent_representation(indices=[6, 8]).shape == (2, 4)
    for question in (model.get_latent_representation, model.get_normalized_expression):
        with pytest.raises(SourceError, match=r"joined\.h5ad: .* 1 cells have no latents \(first: 'c0_7'\)"):
            question()


def test_minified_data_of_another_model_is_refused_whatever_its_form(folder: Path, tmp_path: Path):
    other = anndata.read_h5ad(folder / "x.h5ad")[:, 1:].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    for data in (other, tmp_path / "other.h5ad"):
        with pytest.raises(SourceError, match="whose gene 'g0' is missing: name the model"):
            SCVI.load(folder / "model", data)


def test_latents_come_back_in_the_order_that_cells_are_asked_in(folder: Path):
    model = SCVI.load(folder / "model", folder / "cells.store")
    whole = read_latents(model.module, model.ask(), np.arange(60))
    some = read_latents(model.module, model.ask(), np.array([9, 0, 59, 9]))
    for all_of_them, few in zip(whole, some):
        np.testing.assert_allclose(few, all_of_them[[9, 0, 59, 9]], rtol=1e-5, atol=1e-6)
