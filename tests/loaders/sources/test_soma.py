"""TileDB-SOMA experiments, ours and others', give what tiledbsoma reads from them."""

import shutil
import sys
import tarfile
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import CountsError, GeneError, MissingDependencyError, SourceError
from atlasvi.loaders.sources.open_source import open_source
from atlasvi.loaders.sources.soma import TILEDB_CONFIG, IdRuns, choose_layer
from tests.loaders.sources.soma_experiments import write_soma, write_until_whole

tiledbsoma = pytest.importorskip("tiledbsoma")


def annotated(n_cells: int = 20, n_genes: int = 6, dense: bool = False) -> ad.AnnData:
    rng = np.random.default_rng(0)
    matrix = (rng.integers(0, 9, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.4)).astype("float32")
    obs = pd.DataFrame(
        {"batch": pd.Categorical([f"b{i % 3}" for i in range(n_cells)]), "n": np.arange(n_cells)},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"symbol": [f"s{i}" for i in range(n_genes)]}, index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(matrix if dense else sp.csr_matrix(matrix), obs, var)


@pytest.mark.parametrize("name", ["soma-exp-pbmc-small", "soma-exp-pbmc-small-pre-1.15"])
@pytest.mark.parametrize("layer", [None, "counts", "data", "scale_data"])
def test_experiments_of_others_read_as_tiledbsoma_reads_them(shared, tmp_path, name, layer):
    with tarfile.open(shared / "data" / "soma" / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path / name, filter="data")
    folder = min(tmp_path.rglob("__tiledb_group.tdb"), key=lambda path: len(path.parts)).parent
    context = tiledbsoma.SOMATileDBContext(tiledb_config=dict(TILEDB_CONFIG))
    with tiledbsoma.open(str(folder), context=context) as experiment:
        x = experiment.ms["RNA"]["X"][layer or "data"]
        expected = x.read().coos(x.shape).concat().to_scipy().toarray()
        obs = experiment.obs.read().concat().to_pandas().set_index("obs_id")
        genes = experiment.ms["RNA"].var.read().concat().to_pandas()["var_id"]

    source = open_source(folder, layer=layer)
    assert source.layers == ["counts", "data", "scale_data"]
    np.testing.assert_array_equal(source.read_counts(0, 80).toarray(), expected)
    np.testing.assert_array_equal(source.read_counts(7, 30).toarray(), expected[7:30])
    assert list(source.var.index) == list(genes)
    ours = source.read_obs(0, 80)
    assert list(ours.index) == list(obs.index)
    for column in obs.columns.drop("soma_joinid"):
        assert list(ours[column]) == list(obs[column]), column
    pd.testing.assert_frame_equal(source.read_obs(7, 30), ours.iloc[7:30])
    pd.testing.assert_series_equal(source.read_obs(0, 0).dtypes, ours.dtypes)
    source.close()


@pytest.mark.parametrize("dense", [False, True])
def test_what_tiledbsoma_writes_comes_back(tmp_path, dense):
    adata = annotated(dense=dense)
    source = open_source(write_soma(adata, tmp_path / "soma"))
    expected = adata.X if dense else adata.X.toarray()
    rows = source.read_counts(0, 20)
    assert rows.has_canonical_format
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), expected)
    np.testing.assert_array_equal(source.read_counts(3, 17).toarray(), expected[3:17])
    assert source.read_counts(4, 4).shape == (0, 6)
    assert list(source.var.index) == list(adata.var_names)
    assert list(source.var["symbol"]) == list(adata.var["symbol"])
    obs = source.read_obs(5, 6)
    assert list(obs.index) == ["cell5"]
    assert list(obs["batch"].cat.categories) == ["b0", "b1", "b2"]
    source.close()


def test_cells_that_were_deleted_leave_no_rows(tmp_path):
    adata = annotated()
    path = write_soma(adata, tmp_path / "soma")
    # Make holes by writing obs anew without some joinids, as a subset of an atlas has them.
    kept = np.array([0, 1, 5, 6, 7, 12, 19])
    with tiledbsoma.open(str(path)) as experiment:
        table = experiment.obs.read().concat()
        schema = table.schema
    shutil.rmtree(path / "obs")

    def write_obs() -> None:
        with tiledbsoma.DataFrame.create(str(path / "obs"), schema=schema, domain=[(0, 19)]) as frame:
            frame.write(table.take(kept))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_until_whole(path, path / "obs", write_obs)
    source = open_source(path)
    assert source.n_cells == 7
    np.testing.assert_array_equal(source.read_counts(0, 7).toarray(), adata.X.toarray()[kept])
    np.testing.assert_array_equal(source.read_counts(2, 6).toarray(), adata.X.toarray()[kept[2:6]])
    assert list(source.read_obs(2, 6).index) == [f"cell{i}" for i in kept[2:6]]


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(1, 50))
def test_ids_with_holes_and_rows_are_turned_into_each_other(ids, piece):
    ascending = np.array(sorted(ids))
    shuffled = np.random.default_rng(0).permutation(ascending)
    runs = IdRuns(np.split(shuffled, range(piece, len(shuffled), piece)))
    assert runs.n_ids == len(ids)
    assert [runs.to_id(row) for row in range(len(ids))] == ascending.tolist()
    every = np.arange(-1, 203)
    rows, known = runs.to_row(every)
    assert every[known].tolist() == ascending.tolist()
    assert rows[known].tolist() == list(range(len(ids)))


def test_numbers_that_may_be_missing_have_one_type_in_every_slice(tmp_path):
    adata = annotated()
    adata.obs["maybe"] = pd.array([None if i == 3 else i for i in range(20)], dtype="Int64")
    source = open_source(write_soma(adata, tmp_path / "soma"))
    assert {str(source.read_obs(i, i + 2)["maybe"].dtype) for i in (0, 3, 8)} == {"Int64"}
    assert source.read_obs(3, 4)["maybe"].isna().all()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["data", "raw"], "data"), (["normalized", "raw"], "raw"), (["raw"], "raw"), (["x"], "x")],
)
def test_of_the_layers_of_a_measurement_the_usual_one_is_read(names, chosen):
    assert choose_layer("a", "RNA", names, None) == chosen


def test_of_unusual_layers_one_must_be_named():
    with pytest.raises(SourceError, match=r"several layers and none called data or raw; .* one of: x, y"):
        choose_layer("a", "RNA", ["x", "y"], None)


def test_layers_and_measurements_that_are_not_there_are_answered_with_those_that_are(tmp_path):
    path = write_soma(annotated(), tmp_path / "soma", measurement_name="rna", X_layer_name="raw_counts")
    source = open_source(path)  # the only ones there
    assert source.layers == ["raw_counts"]
    with pytest.raises(SourceError, match=r"measurement rna has no layer 'counts'; .* one of: raw_counts"):
        open_source(path, layer="counts")
    with pytest.raises(SourceError, match="no measurement 'RNA'; choose one of: rna"):
        open_source(path, measurement="RNA")


def test_a_part_of_an_experiment_is_refused(tmp_path):
    path = write_soma(annotated(), tmp_path / "soma")
    with pytest.raises(SourceError, match="a SOMACollection, not a SOMAExperiment"):
        open_source(path / "ms")


def test_genes_without_names_ask_for_a_column(tmp_path):
    path = write_soma(annotated(), tmp_path / "soma", var_id_name="ensembl")
    with pytest.raises(GeneError, match=r"6 of 6 genes have no name .*--gene-column \(there are: .*ensembl"):
        open_source(path)
    assert open_source(path, gene_column="ensembl").var.index[0] == "gene0"


def test_a_damaged_experiment_is_refused_when_it_is_read(tmp_path):
    path = write_soma(annotated(), tmp_path / "soma")
    for file in (path / "ms" / "RNA" / "X" / "data" / "__fragments").rglob("*.tdb"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SourceError, match="it is damaged or cut short"):
        open_source(path).read_counts(0, 20)


def test_without_tiledbsoma_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = write_soma(annotated(), tmp_path / "soma")
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'atlasvi\[soma\]'"):
        open_source(path)


@pytest.mark.parametrize("value", [2, 300, 70_000])
def test_counts_read_as_blocks_are_those_of_the_slices(tmp_path, value):
    adata = annotated(300, 40)
    adata.X.data[5] = value
    path = write_soma(adata, tmp_path / "soma")
    source = open_source(path)
    for start, stop in [(0, 300), (17, 211), (299, 300)]:
        rows = source.read_narrow(start, stop)
        assert (rows is None) == (value > 65_535 and start == 0)  # left to the careful way
        if rows is not None:
            indptr, indices, counts = rows.to_csr()
            read = sp.csr_matrix((counts, indices, indptr), shape=(stop - start, 40))
            assert (read != source.read_counts(start, stop)).nnz == 0
            assert rows.first == start
            assert rows.counts.dtype == (np.uint16 if start == 0 and value > 255 else np.uint8)


def test_genes_that_were_deleted_leave_no_columns_in_blocks(tmp_path):
    adata = annotated()
    path = write_soma(adata, tmp_path / "soma")
    kept = np.array([0, 2, 5])
    var = path / "ms" / "RNA" / "var"
    with tiledbsoma.open(str(var)) as frame:
        table = frame.read().concat()
    shutil.rmtree(var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tiledbsoma.DataFrame.create(str(var), schema=table.schema, domain=[(0, 5)]) as frame:
            frame.write(table.take(kept))
    indptr, indices, counts = open_source(path).read_narrow(0, 20).to_csr()
    read = sp.csr_matrix((counts, indices, indptr), shape=(20, 3))
    np.testing.assert_array_equal(read.toarray(), adata.X.toarray()[:, kept])


def test_cells_come_straight_from_an_experiment(tmp_path):
    adata = annotated(500, 30)
    cells = open_cells(write_soma(adata, tmp_path / "soma"), empty_cells="keep")
    loader = pytest.importorskip("atlasvi.loaders.batches.loader")  # its batches are torch's tensors
    for batch in loader.BatchLoader(cells, 64, seed=0):
        np.testing.assert_array_equal(batch.to_dense().numpy(), adata.X.toarray()[batch.rows.numpy()])


def test_what_is_no_count_in_an_experiment_is_refused_with_its_place(tmp_path):
    adata = annotated(30, 10)
    adata.X.data[:] = np.maximum(adata.X.data, 1)
    adata.X.data[7] = 0.5
    cells = open_cells(write_soma(adata, tmp_path / "soma"), empty_cells="keep")
    row = int(np.searchsorted(adata.X.indptr, 7, side="right")) - 1
    with pytest.raises(CountsError, match=rf"not whole numbers \(first: 0.5 at cell 'cell{row}'"):
        cells.read_block(0)


def test_a_relative_path_is_that_of_the_folder_where_one_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n_cells in (20, 7):
        (tmp_path / str(n_cells)).mkdir()
        write_soma(annotated()[:n_cells].copy(), tmp_path / str(n_cells) / "soma")
    for n_cells in (20, 7):  # TileDB itself would open the first one again
        monkeypatch.chdir(tmp_path / str(n_cells))
        assert open_source("soma").n_cells == n_cells
