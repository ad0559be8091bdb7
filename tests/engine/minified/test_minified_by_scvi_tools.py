import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

from atlasvi.engine.api.scvi import SCVI
from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified, open_minified
from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.queries.minified_queries import read_expression, read_latent
from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools
from atlasvi.loaders.errors import ColumnError, OutputError, SourceError
from atlasvi.loaders.tables import anndata_tables
from tests.engine.scvi_tools.test_model_directories import MODELS, make_data


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    make_data().write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


@pytest.mark.parametrize("name", ["plain", "old-1.0.4", "embedded", "factor"])
def test_minified_data_as_one_file_answers_as_the_store_does(counts: Path, tmp_path: Path, name: str):
    """The file is laid out as scvi-tools' own; check_directories.py has scvi-tools open it."""
    minify(MODELS / name, f"{counts}::layer=X", tmp_path / "mini")  # where the model had its counts or not
    write_minified_h5ad(tmp_path / "mini", tmp_path / "mini.h5ad")
    store, file = open_minified(tmp_path / "mini"), open_minified(tmp_path / "mini.h5ad", MODELS / name)
    assert isinstance(store, MinifiedStore)
    assert isinstance(file, ScviMinified)
    with np.load(MODELS / name / "expected.npz") as expected:
        ((_, qzm, qzv),) = read_latent(file)
        np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(qzv, expected["qzv"], rtol=1e-4, atol=1e-5)
        ((_, mean),) = read_expression(file, library_size="observed")
        np.testing.assert_allclose(mean, expected["mean"], rtol=1e-4, atol=1e-5)
    (names, ours), (theirs_names, theirs) = (next(read_expression(each, ["g3", "g1"])) for each in (store, file))
    assert list(names) == list(theirs_names)
    assert np.array_equal(ours, theirs)
    assert choose_cells(file, where=["donor=d1"]).tolist() == choose_cells(store, where=["donor=d1"]).tolist()


def test_one_column_of_a_file_is_read_without_the_others(counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    minify(MODELS / "plain", f"{counts}::layer=X", tmp_path / "mini")
    write_minified_h5ad(tmp_path / "mini", tmp_path / "mini.h5ad")
    store, file = open_minified(tmp_path / "mini"), open_minified(tmp_path / "mini.h5ad")
    read: list[str] = []
    real = anndata_tables.read_text
    monkeypatch.setattr(anndata_tables, "read_text", lambda array, *rows: read.append(array.name) or real(array, *rows))
    rows = np.array([1, 4, 5])
    assert file.take_names(rows).tolist() == store.take_names(rows).tolist()
    assert set(read) == {"/obs/_index"}
    read.clear()
    taken = file.take_column("observed_lib_size", rows)
    assert np.array_equal(taken, store.take_column("observed_lib_size", rows))
    assert np.array_equal(taken, file.read_column("observed_lib_size", 0, 6).iloc[rows])
    assert set(read) == {"/obs/observed_lib_size"}
    for found, expected in zip(file.take_latent(rows), store.take_latent(rows)):
        assert np.array_equal(found, expected)


def test_data_that_scvi_tools_minified_is_asked_with_the_model_beside_it(shared: Path):
    folder = shared / "scvi_models" / "onek1k_zinb"
    data = open_minified(folder / "minified.h5ad")
    assert isinstance(data, ScviMinified)
    assert (data.n_cells, data.n_latent, data.kind) == (7811, 10, "latent_posterior_parameters")
    with np.load(folder / "expected.npz") as expected:
        rows = expected["rows"]
        qzm = np.concatenate([part for _, part, _ in read_latent(data, rows)])
        np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5)
        mean = np.concatenate([part for _, part in read_expression(data, None, rows, "observed")])
        np.testing.assert_allclose(mean, expected["px_rate_at_qzm"], rtol=1e-4, atol=1e-5)


def test_names_of_older_versions_are_known(counts: Path, tmp_path: Path):
    minify(MODELS / "old-1.0.4", counts, tmp_path / "mini")
    data = anndata.read_zarr(tmp_path / "mini")
    del data.uns["atlasvi"]
    for name in ("qzm", "qzv"):
        data.obsm[f"_scvi_latent_{name}"] = data.obsm.pop(f"scvi_latent_{name}")
    data.obs = data.obs.rename(columns={"observed_lib_size": "_scvi_observed_lib_size"})
    shutil.copytree(MODELS / "old-1.0.4", tmp_path / "model")
    data.write_h5ad(tmp_path / "model" / "adata.h5ad")
    file = open_minified(tmp_path / "model" / "adata.h5ad")
    ((_, values),) = read_expression(file, library_size="observed")
    ((_, expected),) = read_expression(MinifiedStore(tmp_path / "mini"), library_size="observed")
    assert np.array_equal(values, expected)


def test_what_is_not_minified_or_of_another_model_is_said(counts: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="is not minified data"):
        open_minified(counts, MODELS / "plain")
    minify(MODELS / "plain", counts, tmp_path / "mini")
    write_minified_h5ad(tmp_path / "mini", tmp_path / "mini.h5ad")
    alone = open_minified(tmp_path / "mini.h5ad")
    assert sum(len(names) for names, _, _ in read_latent(alone)) == alone.n_cells  # which needs no model
    with pytest.raises(SourceError, match=r"no model\.pt is beside it: name the model's directory: .* --model DIR"):
        read_expression(alone)
    with pytest.raises(SourceError, match="is not a run directory"):
        open_minified(tmp_path / "mini.h5ad", tmp_path)
    other = load_scvi_tools(MODELS / "plain")
    other.genes[0] = "another"
    with pytest.raises(SourceError, match="whose gene 'another' is missing: name the model"):
        open_minified(tmp_path / "mini.h5ad", other)
    with pytest.raises(OutputError, match="exists already"):
        write_minified_h5ad(tmp_path / "mini", tmp_path / "mini.h5ad")


@pytest.mark.parametrize(
    "change", [lambda values: values[:, 0], lambda values: values[:-1], lambda values: values[:, :1]]
)
def test_latents_of_another_shape_are_refused(counts: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]):
    minify(MODELS / "plain", counts, tmp_path / "mini")
    write_minified_h5ad(tmp_path / "mini", path := tmp_path / "mini.h5ad")
    with h5py.File(path, "a") as file:
        values = file["obsm/scvi_latent_qzm"][()]
        del file["obsm/scvi_latent_qzm"]
        file["obsm/scvi_latent_qzm"] = change(values)
    with pytest.raises(SourceError, match=r"is damaged: .*qzm and .*qzv of obsm have the shapes"):
        open_minified(path)


def test_a_minified_store_of_a_column_that_is_damaged_is_not_exported(counts: Path, tmp_path: Path):
    minify(MODELS / "plain", counts, tmp_path / "mini")
    (tmp_path / "mini" / "manifest.json").unlink()
    attributes = json.loads((tmp_path / "mini" / "zarr.json").read_text())
    attributes["attributes"]["atlasvi"].pop("manifest", None)  # as in an older store, whose files nobody compares
    (tmp_path / "mini" / "zarr.json").write_text(json.dumps(attributes))
    codes = zarr.open_group(tmp_path / "mini", mode="r+", use_consolidated=False)["obs/donor/codes"]
    codes[...] = np.full(codes.shape, 100, codes.dtype)
    with pytest.raises(SourceError, match=r"mini: it is damaged"):
        write_minified_h5ad(tmp_path / "mini", tmp_path / "mini.h5ad")
    assert not (tmp_path / "mini.h5ad").exists()


def test_cells_that_lack_what_the_model_takes_are_refused(counts: Path, tmp_path: Path):
    data = anndata.read_h5ad(counts)
    del data.obs["age"]
    data.write_h5ad(tmp_path / "young.h5ad")
    with pytest.raises(ColumnError, match="no column 'age'"):
        minify(MODELS / "latent", tmp_path / "young.h5ad", tmp_path / "mini")
    assert not (tmp_path / "mini").exists()


def test_a_latent_library_is_no_hindrance(counts: Path, tmp_path: Path):
    minify(MODELS / "latent", counts, tmp_path / "mini")
    ((_, shares),) = read_expression(MinifiedStore(tmp_path / "mini"))
    with np.load(MODELS / "latent" / "expected.npz") as expected:
        np.testing.assert_allclose(
            shares, expected["mean"] / expected["mean"].sum(1, keepdims=True), rtol=1e-4, atol=1e-7
        )
    assert torch.isfinite(torch.from_numpy(shares)).all()
    model = SCVI.load(tmp_path / "mini", accelerator="cpu")
    for ask in (
        lambda: model.get_normalized_expression(library_size="latent"),
        lambda: model.posterior_predictive_sample(),
        lambda: model.get_likelihood_parameters(),
        lambda: model.get_latent_library_size(),
    ):
        with pytest.raises(ValueError, match=r"infers the library size of a cell from its counts|needs the counts"):
            ask()
    for verb in (["library"], ["parameters"], ["sample"], ["expression", "--library-size", "latent"]):
        answer = CliRunner().invoke(app, ["query", str(tmp_path / "mini"), *verb])
        assert "infers the library size of a cell from its counts" in str(answer.exception), verb


def test_the_command_line_exports_models_and_cells_and_asks_them(counts: Path, tmp_path: Path):
    def atlasvi(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    keys = ["--batch-key", "batch", "--categorical-covariate-keys", "donor,sex", "--continuous-covariate-keys", "age"]
    tiny = ["--set", "n_hidden=8", "--set", "n_layers=1", "--set", "gene_likelihood=zinb", "--epochs", "1"]
    atlasvi("train", counts, "--out", tmp_path / "run", *keys, *tiny)
    atlasvi("export", tmp_path / "run", tmp_path / "theirs")
    assert list(load_scvi_tools(tmp_path / "theirs").setup.categorical_covariates) == ["donor", "sex"]
    assert "gene_likelihood: zinb" in atlasvi("info", tmp_path / "theirs")
    atlasvi("train", counts, "--out", tmp_path / "more", "--start", tmp_path / "theirs", "--epochs", 1)
    atlasvi("minify", tmp_path / "theirs", counts, "--out", tmp_path / "mini")
    atlasvi("export", tmp_path / "mini", tmp_path / "mini.h5ad")
    answers = [
        atlasvi("query", *place, "expression", "--genes", "g2,g1", "--limit", 3)
        for place in ([tmp_path / "mini"], ["--model", tmp_path / "run", tmp_path / "mini.h5ad"])
    ]
    assert answers[0] == answers[1]
    assert answers[0].startswith("cell,g2,g1")
