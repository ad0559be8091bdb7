import shutil
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata.io import write_elem
from scipy import sparse

from atlasvi.engine.api.scvi import SCVI
from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.engine.queries.answer_tables import write_table
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.queries.minified_queries import read_expression, read_latent
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.training.train import train
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.added_columns import add_obs_columns
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import ColumnError, GeneError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.text_as_objects import text_as_objects

GENES = [f"g{k}" for k in range(30)]


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    """A model with drawn weights: what minify does not depend on how good it is."""
    settings = ModelSettings(n_genes=30, n_batches=2, n_hidden=16, n_latent=3, n_layers=2)
    model = VAE(settings, torch.Generator().manual_seed(0)).eval()
    return TrainedRun(model, GENES, Setup.from_saved({"batch_key": "batch", "batch_categories": ["a", "b"]}))


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 cells of two batches and three types, in an h5ad."""
    path = tmp_path_factory.mktemp("data") / "counts.h5ad"
    rng = np.random.default_rng(0)
    matrix = rng.poisson(1.0, (150, 30)).astype(np.float32)
    obs = pd.DataFrame({"batch": pd.Categorical(list("ab") * 75), "type": ["B cell", "T, naive", "NK"] * 50})
    obs.index = [f"cell{k}" for k in range(150)]
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def minified(run: TrainedRun, counts: Path) -> Path:
    minify(run, counts, counts.with_name("mini"))
    return counts.with_name("mini")


@pytest.fixture
def mini(minified: Path, tmp_path: Path) -> MinifiedStore:
    """A store of this test's own, which it may change."""
    return MinifiedStore(shutil.copytree(minified, tmp_path / "mini"))


def posterior(run: TrainedRun, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """qzm, qzv and library of all cells of a source, in its order, straight from the model."""
    data = open_cells(path)
    (batch,) = BatchLoader(data, 1000, 0, codes=run.setup.read_codes(data), shuffle=False)
    with torch.inference_mode():
        qzm, qzv = run.model.encode(batch)
    return qzm.numpy(), qzv.numpy(), batch.library.numpy()


@pytest.mark.parametrize("source_order", [False, True])
def test_the_minified_store_is_plain_anndata_with_the_posterior_of_every_cell(run, counts, tmp_path, source_order):
    ingest([counts, counts], tmp_path / "store")
    minify(run, tmp_path / "store", tmp_path / "mini", source_order=source_order, batch_size=32)
    mini, source = anndata.read_zarr(tmp_path / "mini"), anndata.read_h5ad(counts)
    qzm, qzv, library = posterior(run, counts)
    rows = mini.obs["source_row"].to_numpy()
    assert mini.shape == (300, 30)
    assert mini.X.nnz == 0
    assert mini.uns["_scvi_adata_minify_type"] == "latent_posterior_parameters"
    assert np.allclose(mini.obsm["scvi_latent_qzm"], qzm[rows], atol=1e-5)
    assert np.allclose(mini.obsm["scvi_latent_qzv"], qzv[rows], rtol=1e-5)
    assert np.array_equal(mini.obs["observed_lib_size"], library[rows])
    assert mini.obs["type"].tolist() == source.obs["type"].iloc[rows].tolist()
    in_order = rows.tolist() == list(range(150)) * 2
    assert in_order == source_order
    if source_order:
        assert mini.obs_names.tolist() == source.obs_names.tolist() * 2


def test_source_order_holds_across_buckets(run, counts, tmp_path, monkeypatch):
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 10)
    ingest(counts, tmp_path / "store")
    minify(run, tmp_path / "store", tmp_path / "mini", source_order=True, batch_size=10)
    assert anndata.read_zarr(tmp_path / "mini").obs["source_row"].tolist() == list(range(150))


def test_genes_are_put_in_the_order_of_the_model_and_others_left_out(run, counts, tmp_path):
    source = anndata.read_h5ad(counts)
    more = anndata.AnnData(
        np.concatenate([np.full((150, 1), 7, np.float32), source.X[:, ::-1]], axis=1),
        obs=source.obs,
        var=pd.DataFrame(index=["other", *GENES[::-1]]),
    )
    more.write_h5ad(tmp_path / "more.h5ad")
    minify(run, tmp_path / "more.h5ad", tmp_path / "mini")
    mini = anndata.read_zarr(tmp_path / "mini")
    assert mini.var_names.tolist() == GENES
    assert np.allclose(mini.obsm["scvi_latent_qzm"], posterior(run, counts)[0], atol=1e-5)


def test_missing_genes_and_unknown_batches_are_named(run, counts, tmp_path):
    source = anndata.read_h5ad(counts)
    source[:, 1:].copy().write_h5ad(tmp_path / "fewer.h5ad")
    with pytest.raises(GeneError, match=r"1 of the 30 genes of the model are not there \(first: 'g0'\)"):
        minify(run, tmp_path / "fewer.h5ad", tmp_path / "mini")
    source.obs["batch"] = ["a", "z"] * 75
    source.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ColumnError, match=r"'batch' holds 'z', which is not among the batches .*a, b"):
        minify(run, tmp_path / "other.h5ad", tmp_path / "mini")
    assert not (tmp_path / "mini").exists()


def test_an_output_that_exists_is_untouched(run, counts, tmp_path):
    (tmp_path / "mini").mkdir()
    with pytest.raises(OutputError, match="mini exists already"):
        minify(run, counts, tmp_path / "mini")


def test_latents_come_in_slices_of_the_cells_asked_for(run, counts, mini, monkeypatch):
    from atlasvi.engine.queries import question_cells

    monkeypatch.setattr(question_cells, "SLICE_CELLS", 2)
    qzm, qzv, _ = posterior(run, counts)
    cells = np.array([3, 50, 149])
    parts = list(read_latent(mini, cells))
    assert [list(names) for names, _, _ in parts] == [["cell3", "cell50"], ["cell149"]]
    assert np.allclose(np.concatenate([part[1] for part in parts]), qzm[cells], atol=1e-5)
    assert np.allclose(np.concatenate([part[2] for part in parts]), qzv[cells], rtol=1e-5)
    assert sum(len(names) for names, _, _ in read_latent(mini)) == 150


@pytest.mark.parametrize("library_size", [1.0, 10_000.0, "observed"])
def test_expression_is_decoded_at_the_posterior_mean_in_the_cells_own_batch(run, counts, mini, library_size):
    qzm, _, library = posterior(run, counts)
    with torch.inference_mode():
        proportions = run.model.proportions(torch.from_numpy(qzm), {"batch": torch.arange(150) % 2}).numpy()
    scale = library[:, None] if library_size == "observed" else library_size
    everything = np.concatenate([values for _, values in read_expression(mini, library_size=library_size)])
    assert np.allclose(everything, proportions * scale, rtol=1e-4)
    some = np.concatenate([values for _, values in read_expression(mini, ["g7", "g2"], np.array([5, 9]), library_size)])
    assert np.allclose(some, (proportions * scale)[[5, 9]][:, [7, 2]], rtol=1e-4)


def test_cells_are_chosen_by_name_and_by_obs(mini):
    assert choose_cells(mini).tolist() == list(range(150))
    assert choose_cells(mini, where=["type=NK"]).tolist() == list(range(2, 150, 3))
    assert choose_cells(mini, where=["type=B cell,NK", "batch=a"], limit=3).tolist() == [0, 2, 6]
    assert choose_cells(mini, where=["type=T, naive"], limit=2).tolist() == [1, 4]  # a value with a comma of its own
    assert choose_cells(mini, names=["cell9", "cell2"]).tolist() == [2, 9]


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        (dict(where=["type"]), QueryError, "write it as COLUMN=VALUE"),
        (dict(where=["type=C cell"]), QueryError, r"no cell has type = 'C cell' \(there are: B cell, NK, T, naive\)"),
        (dict(where=["tissue=lung"]), ColumnError, "obs has no column 'tissue' .*batch, type"),
        (dict(names=["cell1", "nobody"]), QueryError, "1 of the cells do not exist .*'nobody'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(mini, question, error, message):
    with pytest.raises(error, match=message):
        choose_cells(mini, **question)


def test_an_unknown_gene_or_library_size_is_refused_before_anything_is_decoded(mini):
    with pytest.raises(GeneError, match=r"no gene .g300. in the model .*similar: g"):
        read_expression(mini, ["g300"])
    with pytest.raises(QueryError, match="use a number from 1e-12 to"):
        read_expression(mini, library_size="many")


@pytest.mark.parametrize("name", ["answer.csv", "answer.tsv", "answer.csv.gz"])
def test_answers_are_written_as_tables(mini, tmp_path, name):
    rows = write_table(read_expression(mini, ["g1", "g2"]), ["g1", "g2"], tmp_path / name)
    table = pd.read_csv(tmp_path / name, sep="\t" if ".tsv" in name else ",", index_col=0)
    assert rows == len(table) == 150
    assert np.allclose(table, np.concatenate([values for _, values in read_expression(mini, ["g1", "g2"])]), rtol=1e-5)


def test_answers_are_written_as_arrays_and_other_files_are_refused(mini, tmp_path):
    write_table(read_expression(mini, ["g1"], np.array([0, 1])), ["g1"], tmp_path / "answer.npz")
    answer = np.load(tmp_path / "answer.npz")
    assert (answer["cells"].tolist(), answer["columns"].tolist(), answer["values"].shape) == (
        ["cell0", "cell1"],
        ["g1"],
        (2, 1),
    )
    with pytest.raises(QueryError, match=r"answer.pdf: use a file name that ends in"):
        write_table(read_expression(mini, ["g1"]), ["g1"], tmp_path / "answer.pdf")


def test_what_is_no_minified_store_or_of_a_newer_format_is_refused(mini, tmp_path):
    assert is_minified_store(mini.path)
    with pytest.raises(SourceError, match="is not a minified store"):
        MinifiedStore(tmp_path)
    metadata = Path(mini.path) / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"format_version": 3', '"format_version": 9'))
    with pytest.raises(SourceError, match="format 9, and this atlasvi reads up to 3: upgrade"):
        MinifiedStore(mini.path)


def test_a_model_that_scvi_tools_saved_minifies_to_its_own_posterior(shared, tmp_path):
    minify(shared / "scvi_models/onek1k_seed", shared / "data/onek1k.h5ad", tmp_path / "mini")
    mini = anndata.read_zarr(tmp_path / "mini")
    theirs = anndata.read_h5ad(shared / "scvi_models/onek1k_seed/minified.h5ad")
    assert mini.obs_names.tolist() == theirs.obs_names.tolist()
    for name in ("scvi_latent_qzm", "scvi_latent_qzv"):
        assert np.allclose(mini.obsm[name], theirs.obsm[name], rtol=1e-4, atol=1e-5)
    assert np.array_equal(mini.obs["observed_lib_size"], theirs.obs["observed_lib_size"])


def plain(column: pd.Series) -> list:
    """Values as plain Python has them; None where missing."""
    return [None if pd.isna(value) else value for value in column.astype(object)]


@pytest.mark.parametrize("source_order", [False, True])
def test_columns_of_any_type_are_kept_exactly_by_a_minified_store(run, counts, tmp_path, source_order):
    adata = anndata.read_h5ad(counts)
    numbers = np.arange(150)
    adata.obs["id"] = pd.array([None if k % 7 == 0 else 2**60 + k for k in numbers.tolist()], "Int64")
    adata.obs["sick"] = pd.array([None if k % 5 == 0 else k % 2 == 0 for k in numbers], "boolean")
    adata.obs["dose"] = pd.Categorical((numbers % 3).astype(np.float32) / 10)
    adata.obs["big"] = np.uint64(2**64 - 1) - numbers.astype(np.uint64)
    adata.obs["slash"] = numbers.astype(np.int8)
    adata.var["chromosome"] = pd.Categorical([None, 1, 2] * 10)
    adata.var["length"] = pd.array([None, 2**60 + 1, 3] * 10, "Int64")
    adata.write_h5ad(tmp_path / "typed.h5ad")
    with h5py.File(tmp_path / "typed.h5ad", "r+") as file:  # anndata reads such names, and no longer writes them
        file["obs"].move("slash", "a/b")
        order = [{"slash": "a/b"}.get(name, name) for name in file["obs"].attrs["column-order"]]
        file["obs"].attrs["column-order"] = np.array(order, h5py.string_dtype())
    in_memory = adata.copy()
    in_memory.obs["day"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(numbers, "D")
    in_memory.obs["age"] = pd.cut(numbers, 3)
    in_memory.obs["name"] = [None if k % 2 else f"n{k}" for k in numbers]
    before = text_as_objects(adata.obs)
    for k, data in enumerate((open_cells(tmp_path / "typed.h5ad"), MemoryCells(in_memory))):
        minify(run, data, tmp_path / f"{k}", source_order=source_order)
        store = MinifiedStore(tmp_path / f"{k}")
        for found in (store.obs.read(0, 150), text_as_objects(anndata.read_zarr(store.path).obs)):
            found = found.rename(columns={"a/b": "slash"})
            for name in ("id", "sick", "dose", "big", "slash", "batch", "type"):
                assert plain(found[name]) == plain(adata.obs[name])
                assert found[name].dtype == before[name].dtype or name == "type"
        for name in adata.var:
            assert plain(store.var[name]) == plain(adata.var[name])
    assert plain(found["day"]) == plain(in_memory.obs["day"])
    assert plain(found["name"]) == plain(in_memory.obs["name"])
    assert found["age"].astype(str).tolist() == in_memory.obs["age"].astype(str).tolist()
    write_minified_h5ad(store, tmp_path / "one.h5ad")
    again = anndata.read_h5ad(tmp_path / "one.h5ad").obs
    assert plain(again["id"]) == plain(adata.obs["id"])
    assert again["day"].astype(str).tolist()[:2] == ["2020-01-01 00:00:00", "2020-01-02 00:00:00"]


def test_columns_added_to_a_minified_store_choose_its_cells(mini):
    table = pd.DataFrame({"leiden": [k // 50 for k in range(150)]}, index=[f"cell{k}" for k in range(150)])
    add_obs_columns(mini.path, table.iloc[::-1])
    opened = MinifiedStore(mini.path)
    assert choose_cells(opened, where=["leiden=0,1"], limit=60).tolist() == list(range(60))
    assert choose_cells(opened, where=["leiden=2"]).tolist() == list(range(100, 150))
    assert anndata.read_zarr(mini.path).obs["leiden"].tolist() == table["leiden"].tolist()


def write_layered(folder: Path, kind: str) -> Path:
    """60 cells x 12 genes with other counts in X than in the layer, under other names in the column symbol."""
    counts = np.random.default_rng(0).poisson(3.0, (60, 12)).astype(np.float32)
    adata = anndata.AnnData(counts[::-1].copy(), layers={"counts": counts})
    adata.var["symbol"] = [f"s{k}" for k in range(12)]
    if kind == "h5ad":
        adata.write_h5ad(folder / "cells.h5ad")
        return folder / "cells.h5ad"
    place = folder / "cells.zarr"  # a collection of annbatch
    root = zarr.open_group(place, mode="w", zarr_format=3)
    for k in range(2):
        write_elem(root, f"dataset_{k}", adata[30 * k : 30 * k + 30].copy())
    return place


@pytest.mark.parametrize("kind", ["h5ad", "collection"])
def test_a_path_is_opened_as_the_data_of_the_run_was(tmp_path: Path, kind: str):
    """Or else X would be encoded where a layer was trained on, without a word, and genes would go by other names."""
    place = write_layered(tmp_path, kind)
    data = open_cells(place, layer="counts", gene_column="symbol")
    run = train(data, tmp_path / "run", epochs=1, settings={"n_hidden": 8, "n_latent": 2, "n_layers": 1})
    assert load_run(tmp_path / "run").data == data.spec
    minify(run, data, tmp_path / "opened.mini")
    minify(tmp_path / "run", place, tmp_path / "by-path.mini")
    latents = [MinifiedStore(tmp_path / name).read_latent(0, 60)[0] for name in ("opened.mini", "by-path.mini")]
    assert np.array_equal(*latents)
    model = SCVI.load(tmp_path / "run", accelerator="cpu")
    assert np.array_equal(model.get_latent_representation(str(place)), latents[0])
    assert SCVI.load(tmp_path / "by-path.mini", accelerator="cpu").run.data == data.spec


def test_a_model_of_cells_seen_through_the_genes_of_another_opens_paths_as_they_were_opened(tmp_path: Path):
    place = write_layered(tmp_path, "h5ad")
    reference = SCVI(f"{place}::gene_column=symbol", layer="counts", n_hidden=8, n_latent=2)
    reference.is_trained = True
    prepared = SCVI.prepare_query(place, reference)
    assert prepared.spec == reference.run.data
    model = SCVI(prepared, n_hidden=8, n_latent=2)
    model.is_trained = True
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", accelerator="cpu")
    assert (loaded.run.setup.layer, loaded.run.data) == ("counts", prepared.spec)
    expected = model.get_latent_representation()
    assert np.array_equal(loaded.get_latent_representation(place), expected)


def test_what_fails_leaves_no_temporary_files_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A matrix that is not stored by rows is sorted into temporary files, which go with what was opened."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    counts = sparse.random(60, 12, 0.5, "csc", np.float32, np.random.default_rng(0))
    counts.data = np.ceil(counts.data * 5)
    anndata.AnnData(counts, var=pd.DataFrame(index=GENES[:12])).write_h5ad(tmp_path / "cells.h5ad")
    other = anndata.AnnData(counts.tocsr(), obs=pd.DataFrame({"batch": ["a", "b"] * 30}, index=map(str, range(60))))
    other.var_names = GENES[:12]
    other.write_h5ad(tmp_path / "other.h5ad")
    settings = {"n_hidden": 8, "n_latent": 2, "n_layers": 1}
    run = train(tmp_path / "other.h5ad", tmp_path / "run", batch_key="batch", epochs=1, settings=settings)
    with pytest.raises(ColumnError, match="batch"):
        minify(run, tmp_path / "cells.h5ad", tmp_path / "mini")
    assert list((tmp_path / "temporary").glob("atlasvi*")) == []
