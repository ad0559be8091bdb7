"""Count files that once failed, or passed in a bad way: each is read rightly, or refused in a sentence."""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from scipy.io import mmread

from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import MissingDependencyError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.open_source import open_source
from tests.engine.distributed.rank_processes import run_command

ENSEMBL = [f"ENSG{k:011d}" for k in range(12)]
BARCODES = [f"BC{k:03d}-1" for k in range(60)]


@pytest.fixture
def files(faults: Path) -> Path:
    return faults / "files"


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., anndata.AnnData]:
    """Ingests sources; returns what anndata reads from the store, its cells in the order of the sources."""

    def store(*sources: Path | str, **options) -> anndata.AnnData:
        ingest(list(sources), tmp_path / "store", **options)
        adata = anndata.read_zarr(tmp_path / "store")
        return adata[np.lexsort((adata.obs["source_row"], adata.obs["source"].cat.codes))].copy()

    return store


def read(path: Path | str, **options) -> anndata.AnnData:
    source = open_source(path, **options)
    try:
        return anndata.AnnData(
            source.read_counts(0, source.n_cells), source.read_obs(0, source.n_cells), source.var.copy()
        )
    finally:
        source.close()


def assert_is_matrix(adata: anndata.AnnData, mtx: Path, genes: list[str], cells: list[str]) -> None:
    """The matrix of an .mtx of genes x cells, and its names."""
    assert adata.var_names.tolist() == genes
    assert adata.obs_names.tolist() == cells
    assert (adata.X.toarray() == mmread(mtx).toarray().T).all()


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr", "written_by_anndata_0.11.4.h5ad"])
def test_columns_with_a_slash_are_read_by_their_whole_name(files: Path, store, name: str):
    adata = store(files / "01-slash-in-obs-column" / name)
    assert adata.obs["G1/S"].tolist() == list(range(60))
    if name == "x.h5ad":
        assert set(adata.obs["CD4/CD8"]) == {"a", "b"}
    assert run_command("info", files / "01-slash-in-obs-column" / name).returncode == 0


def test_a_feature_without_a_type_is_named_by_its_line(files: Path):
    with pytest.raises(SourceError, match=r"features.tsv.gz: line 12 \(GFP\) does not say the type of its feature"):
        read(files / "02-ragged-features-tsv")


def test_once_it_has_one_antibodies_are_no_genes(files: Path, tmp_path: Path):
    for path in (files / "02-ragged-features-tsv").glob("*.gz"):
        content = gzip.decompress(path.read_bytes())
        if path.name == "features.tsv.gz":
            content = content.rstrip(b"\n") + b"\tGene Expression\n"
        (tmp_path / path.name.removesuffix(".gz")).write_bytes(content)
    assert read(tmp_path).var_names.tolist() == [*ENSEMBL[:9], "GFP"]


@pytest.mark.parametrize("name", ["03-quoted-features-tsv", "14b-genes-header", "14c-barcodes-header", "16-bom"])
def test_quotes_header_lines_and_a_byte_order_mark_are_no_part_of_names(files: Path, store, name: str):
    adata = store(files / name)
    assert_is_matrix(adata, files / name / "matrix.mtx", ENSEMBL, BARCODES)
    assert adata.var["gene_symbols"].tolist() == [f"SYM{k}" for k in range(12)]


def test_one_number_is_one_category_in_every_file_and_ids_are_exact(files: Path, store):
    folder = files / "04-numeric-categories-and-64bit-ids"
    a, b = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in "ab")
    obs = store(folder / "a.h5ad", folder / "b.h5ad").obs
    assert obs["cat"].cat.categories.tolist() == [1, 2, 3]
    assert obs["cat"].tolist() == [*a.obs["cat"], *b.obs["cat"]]
    assert obs["big"].tolist() == [*a.obs["big"], *b.obs["big"]]
    assert obs["nul"].tolist() == [*a.obs["nul"], *b.obs["nul"]]
    assert obs["only"][:60].tolist() == a.obs["only"].tolist()
    assert obs["only"][60:].isna().all()
    assert a.obs["big"].iloc[0] > 2**53  # beyond which a float is not exact


def test_ids_are_exact_in_a_store_of_one_file(files: Path, store):
    path = files / "04-numeric-categories-and-64bit-ids" / "a.h5ad"
    obs, expected = store(path).obs, anndata.read_h5ad(path).obs
    for name in ("cat", "num", "mix", "big", "only", "nul"):
        assert obs[name].tolist() == expected[name].tolist()
        assert not pd.api.types.is_float_dtype(obs[name].dtype)


def test_a_missing_number_of_a_categorical_of_genes_stays_missing(files: Path, store):
    path = files / "06-var-int-category-missing" / "x.h5ad"
    var, expected = store(path).var, anndata.read_h5ad(path).var
    pd.testing.assert_frame_equal(var[["chromosome", "flag", "len"]], expected, check_names=False)
    assert expected["chromosome"].isna().sum() == 4


def test_columns_that_differ_by_case_leave_a_store_that_can_be_used(files: Path, store, tmp_path: Path):
    path = files / "07-columns-differ-by-case" / "x.h5ad"
    obs, expected = store(path).obs, anndata.read_h5ad(path).obs
    for name in ("Study", "study", "Donor", "donor"):
        assert obs[name].tolist() == expected[name].tolist()
    assert run_command("info", tmp_path / "store").returncode == 0
    assert open_cells(tmp_path / "store").read_column("Study").dtype == "category"


@pytest.mark.parametrize("name", ["x.h5ad", "written_by_anndata_0.12.6.h5ad"])
def test_categories_can_be_nullable_text(files: Path, store, name: str):
    path = files / "08-nullable-string-categories" / name
    donor = store(path).obs["donor"]
    assert donor.cat.categories.tolist() == ["d1", "d2"]
    assert donor.tolist() == anndata.read_h5ad(path).obs["donor"].tolist()


def test_files_whose_counts_and_names_lie_elsewhere_are_stored_together(files: Path, store):
    folder = files / "09-counts-in-X-or-raw-and-names"
    normalised, raw_only, symbols = (
        anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("norm_and_raw", "raw_only", "scanpy_style")
    )
    adata = store(
        f"{folder / 'norm_and_raw.h5ad'}::layer=raw",
        folder / "raw_only.h5ad",
        f"{folder / 'scanpy_style.h5ad'}::gene_column=gene_ids",
        folder / "10x",
    )
    assert adata.var_names.tolist() == ENSEMBL
    parts = [normalised.raw.X, raw_only.X, symbols.X, sp.csr_matrix(mmread(folder / "10x" / "matrix.mtx")).T]
    got = {path: adata[adata.obs["source"] == path].X.toarray() for path in adata.obs["source"].cat.categories}
    expected = dict(zip(("norm_and_raw.h5ad", "raw_only.h5ad", "scanpy_style.h5ad", "10x"), parts))
    assert {Path(path).name for path in got} == set(expected)
    for path, counts in got.items():
        assert (counts == expected[Path(path).name].toarray()).all()


def test_without_a_word_the_counts_are_in_raw_where_x_is_normalised(files: Path, tmp_path: Path):
    folder = files / "09-counts-in-X-or-raw-and-names"
    done = run_command("ingest", folder / "norm_and_raw.h5ad", folder / "raw_only.h5ad", "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "norm_and_raw.h5ad: the counts are those of raw, as X does not hold whole numbers" in done.stdout
    expected = [anndata.read_h5ad(folder / "norm_and_raw.h5ad").raw.X, anndata.read_h5ad(folder / "raw_only.h5ad").X]
    assert anndata.read_zarr(tmp_path / "out").X.sum() == sum(part.sum() for part in expected)


def test_a_filter_of_hdf5plugin_is_named_where_it_is_not_there_and_used_where_it_is(files: Path, monkeypatch):
    path = files / "10-hdf5plugin-zstd" / "zstd.h5ad"
    if h5py.h5z.filter_avail(32015):
        assert read(path).X.sum() == 809
        return
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # not to be imported
    with pytest.raises(MissingDependencyError, match=r"filter 32015 \(zstd\), .* pip install hdf5plugin"):
        open_source(path)


@pytest.mark.parametrize("measurement", [None, "rna"])
def test_the_rna_of_a_mudata_file_is_read(files: Path, measurement: str | None):
    path = files / "11-h5mu" / "x.h5mu"
    adata = read(path, measurement=measurement)
    with h5py.File(path) as file:
        expected = anndata.io.read_elem(file["mod/rna"])
        others = sorted(set(file["mod"]) - {"rna"})
    assert (adata.X != expected.X).nnz == 0
    assert adata.obs_names.tolist() == expected.obs_names.tolist()
    with pytest.raises(SourceError, match=f"these: {', '.join(sorted([*others, 'rna']))}; name the one with"):
        read(path, measurement="protein")


def test_missing_text_stays_missing_however_many_texts_there_are(files: Path, store, tmp_path: Path):
    (tmp_path / "x.h5ad").write_bytes(gzip.decompress((files / "12-text-many-values-missing/x.h5ad.gz").read_bytes()))
    cdr3, expected = store(tmp_path / "x.h5ad").obs["cdr3"], anndata.read_h5ad(tmp_path / "x.h5ad").obs["cdr3"]
    assert cdr3.isna().sum() == 200
    assert (cdr3.isna() == expected.isna()).all()
    assert cdr3.dropna().tolist() == expected.dropna().tolist()


@pytest.mark.parametrize(
    ("name", "mtx"),
    [
        ("13-kb", "cells_x_genes.mtx"),
        ("13-alevin", "quants_mat.mtx"),
        ("13-parse", "count_matrix.mtx"),
    ],
)
def test_folders_of_other_tools_are_read_cells_by_genes(files: Path, store, name: str, mtx: str):
    adata = store(files / name)
    assert adata.var_names.tolist() == ENSEMBL
    assert adata.obs_names.tolist() == BARCODES
    assert (adata.X.toarray() == mmread(files / name / mtx).toarray()).all()
    assert (read(files / name / mtx).X.toarray() == adata.X.toarray()).all()  # by the name of the matrix too
    if name == "13-parse":
        assert adata.obs["sample"].tolist() == ["s1"] * 60
        assert adata.var["gene_symbols"].tolist() == [f"SYM{k}" for k in range(12)]


@pytest.mark.parametrize("name", list("abcde"))
def test_names_that_geo_gives_are_found(files: Path, store, name: str):
    folder = files / "14-geo-names" / name
    mtx = next(path for path in folder.glob("*.mtx.gz") if not path.name.startswith("."))
    assert_is_matrix(store(folder), mtx, ENSEMBL, BARCODES)


def test_a_layer_with_stored_zeros_is_read_as_zarr_reads_it(files: Path, store):
    path = files / "15-zarr-explicit-zero-chunks" / "ez3.zarr"
    layer = zarr.open_group(path, mode="r", use_consolidated=False)["layers/unspliced"]
    expected = sp.csr_matrix((layer["data"][:], layer["indices"][:], layer["indptr"][:]), layer.attrs["shape"])
    adata = store(path, layer="unspliced", empty_cells="keep")
    assert (expected != adata.X).nnz == 0
    assert expected.sum() > 0
    done = run_command("info", f"{path}::layer=unspliced")
    assert "missing chunks of layers/unspliced/data are read as zeros" in done.stdout


def test_files_that_share_one_gene_are_joined_only_if_that_is_asked_for(files: Path, tmp_path: Path):
    a, b = (files / "17-union-one-shared-gene" / f"{name}.h5ad" for name in "ab")
    refused = run_command("ingest", a, b, "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert "share 1 of 12 genes" in refused.stderr
    assert "without the versions of the ids it would be 12: pass PATH::gene_versions=drop" in refused.stderr
    assert not (tmp_path / "out").exists()
    union = run_command("ingest", a, b, "--genes", "union", "--out", tmp_path / "union")
    assert "Genes that all sources have: 1 of 23." in union.stdout
    dropped = run_command("ingest", a, f"{b}::gene_versions=drop", "--out", tmp_path / "dropped")
    assert "Genes that all sources have: 12 of 12." in dropped.stdout
    assert anndata.read_zarr(tmp_path / "dropped").var_names.tolist() == [*ENSEMBL[:11], "GFP"]


@pytest.mark.parametrize(
    ("name", "first", "n_changed"),
    [
        ("Solo.out/Gene/raw/UniqueAndMult-EM.mtx", "2.25", 495),
        ("x.h5ad", "2.0000001", 495),
        ("y.h5ad", "1.9000000000000001", 227),
    ],
)
def test_fractions_are_named_in_full_and_rounded_if_that_is_asked_for(
    files: Path, tmp_path: Path, name: str, first: str, n_changed: int
):
    path = files / "18-fractional" / name
    refused = run_command("ingest", path, "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert "holds values that are not whole numbers (first: " + first in refused.stderr
    assert "ingest --round rounds them" in refused.stderr
    rounded = run_command("ingest", path, "--round", "--out", tmp_path / "out")
    assert rounded.returncode == 0
    assert f"{n_changed} of 495 stored values" in rounded.stdout
    values = mmread(path).T if path.suffix == ".mtx" else anndata.read_h5ad(path).X
    order = np.argsort(anndata.read_zarr(tmp_path / "out").obs["source_row"])
    assert (anndata.read_zarr(tmp_path / "out").X[order].toarray() == np.round(values.toarray())).all()


@pytest.mark.parametrize("where", ["raw", "filtered", "raw/UniqueAndMult-Rescue.mtx"])
def test_of_the_matrices_of_starsolo_those_of_whole_counts_are_read(files: Path, where: str):
    path = files / "18-fractional" / "Solo.out" / "Gene" / where
    assert (read(path).X.toarray() == mmread(path / "matrix.mtx" if path.is_dir() else path).toarray().T).all()


@pytest.mark.parametrize("inside", ["s.zarr", "s.zarr/tables/table"])
def test_the_table_of_a_spatialdata_store_is_read(files: Path, inside: str):
    adata = read(files / "19-spatialdata" / inside)
    expected = anndata.read_zarr(files / "19-spatialdata" / "s.zarr" / "tables" / "table")
    assert (adata.X != expected.X).nnz == 0
    assert adata.obs_names.tolist() == expected.obs_names.tolist()


def test_of_two_copies_of_a_matrix_one_is_read(files: Path, store):
    folder = files / "20-gz-and-plain"
    names = [[f"{letter}{k}" for k in range(n)] for letter, n in (("g", 12), ("b", 60))]
    assert_is_matrix(store(folder), folder / "matrix.mtx", *names)
