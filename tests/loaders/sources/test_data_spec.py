"""Each source says for itself how it is read: behind its path, or in a table of sources."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st

from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.storage import Storage
from atlasvi.loaders.sources.data_spec import DataSpec, list_sources, parse_source
from atlasvi.loaders.sources.open_source import open_source
from tests.loaders.sources.test_mtx_folder import CELLS, GENES, lines, matrix_text, write

COUNTS = sp.csr_matrix(np.array([[1, 0, 2, 3], [0, 4, 0, 1], [5, 0, 0, 2]], np.float32))


def annotated(genes: list[str] = GENES, **columns) -> ad.AnnData:
    var = pd.DataFrame(columns, index=genes)
    return ad.AnnData(COUNTS.copy(), pd.DataFrame(index=[f"c{k}" for k in range(3)]), var)


def test_options_stand_behind_the_path():
    spec = parse_source("a.h5ad::layer=raw, gene_column=id", gene_column="other", measurement="RNA")
    assert spec == DataSpec("a.h5ad", layer="raw", gene_column="id", measurement="RNA")
    assert parse_source("a.h5ad") == DataSpec("a.h5ad")
    assert parse_source("s3://bucket/a.zarr").path == "s3://bucket/a.zarr"


@pytest.mark.parametrize(
    "text",
    [
        "a.h5ad",
        "a.h5ad::layer=raw counts",
        "a.zarr::gene_column=id,missing_chunks=zeros",
        'a.h5ad::layer="raw, of 2020",empty_cells=keep',
    ],
)
def test_a_source_is_written_as_it_was_given_and_from_the_root_for_other_processes(tmp_path, monkeypatch, text):
    assert str(parse_source(text)) == text
    assert parse_source(text).make_absolute() == parse_source(text)  # there is no such file
    monkeypatch.chdir(tmp_path)
    (tmp_path / parse_source(text).path).touch()
    assert str(parse_source(text).make_absolute()) == f"{tmp_path}/{text}"


LAYERS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


@given(layer=LAYERS, gene_column=st.none() | LAYERS, values=st.sampled_from([None, "counts", "numbers"]))
@example(layer="n" * 300, gene_column=None, values=None)  # longer than a file's name may be
def test_any_spec_comes_back_from_its_text_and_from_its_record(layer, gene_column, values):
    spec = DataSpec("a.h5ad", layer=layer, gene_column=gene_column, values=values)
    assert parse_source(str(spec)) == spec == DataSpec.from_record(spec.to_record())


def test_options_that_were_not_given_are_those_of_other_data_where_they_mean_the_same():
    usual = DataSpec("a.h5ad", layer="counts", gene_column="id", empty_cells="keep", format="h5ad")
    filled = DataSpec("b.zarr", layer="X").fill_from(usual, "zarr")
    assert filled == DataSpec("b.zarr", layer="X", gene_column="id", empty_cells="keep", format="zarr")
    assert DataSpec("soma").fill_from(usual, "soma") == DataSpec("soma", empty_cells="keep", format="soma")


@pytest.mark.parametrize(
    "record",
    [1, {}, {"path": 3}, {"path": "a", "layer": 5}, {"path": "a", "lair": "b"}, {"path": "a", "values": "words"}],
)
def test_a_record_of_something_else_is_refused(record):
    with pytest.raises(SourceError, match=r"does not say how data was opened|values is 'words'"):
        DataSpec.from_record(record)


def test_each_source_of_an_ingest_says_for_itself_what_becomes_of_cells_without_counts(tmp_path):
    empty = annotated()
    empty.X[1] = 0
    empty.X.eliminate_zeros()
    for name in "ab":
        empty.write_h5ad(tmp_path / f"{name}.h5ad")
    sources = [f"{tmp_path}/a.h5ad::empty_cells=keep", f"{tmp_path}/b.h5ad::empty_cells=drop"]
    report = ingest(sources, tmp_path / "store", workers=1)
    assert (report.n_cells, report.dropped_cells) == (5, 1)
    with pytest.raises(SourceError, match="only ingest drops cells"):
        open_cells(sources[1])


def test_what_ingest_chose_is_not_chosen_again_of_its_store(tmp_path):
    annotated().write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "store", workers=1)
    with pytest.raises(SourceError, match="so layer can't be chosen again"):
        open_cells(tmp_path / "store", layer="raw")


def test_genes_go_by_the_index_if_that_is_said(tmp_path):
    annotated(symbol=list("ABCD")).write_h5ad(tmp_path / "a.h5ad")
    like = DataSpec("other.h5ad", gene_column="symbol", format="h5ad")
    assert open_cells(tmp_path / "a.h5ad", like=like).genes.tolist() == list("ABCD")
    assert open_cells(f"{tmp_path}/a.h5ad::gene_column=_index", like=like).genes.tolist() == GENES


def test_a_path_that_holds_the_mark_itself_is_a_path(tmp_path):
    annotated().write_h5ad(tmp_path / "a::layer=b.h5ad")
    assert open_source(tmp_path / "a::layer=b.h5ad").layer == "X"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.h5ad::lair=raw", "lair = 'raw' is not a source's option; there are: layer, gene_column"),
        ("a.h5ad::layer", "'layer' is not an option; write PATH::OPTION=VALUE"),
        ("a.h5ad::missing_chunks=yes", "missing_chunks is 'yes'; it can be refuse or zeros"),
    ],
)
def test_what_is_no_option_is_refused(text, message):
    with pytest.raises(SourceError, match=message):
        parse_source(text)


def write_four(folder: Path) -> list[str]:
    """Counts in raw beside a normalised X, in X alone, under symbols with ids in a column, and in a 10x folder."""
    norm = annotated(symbol=list("ABCD"))
    norm.raw = norm.copy()
    norm.X = norm.X * np.float32(0.37)
    norm.write_h5ad(folder / "norm.h5ad")
    annotated(symbol=list("ABCD")).write_h5ad(folder / "plain.h5ad")
    annotated(list("ABCD"), id=[f"{gene}" for gene in GENES]).write_h5ad(folder / "symbols.h5ad")
    write(folder / "10x", matrix__mtx=matrix_text(), genes__tsv=lines(GENES), barcodes__tsv=lines(CELLS))
    return [str(folder / name) for name in ("norm.h5ad", "plain.h5ad", "symbols.h5ad::gene_column=id", "10x")]


def assert_joined(store: Path, n_sources: int = 4) -> None:
    joined = ad.read_zarr(store)
    assert joined.var_names.tolist() == GENES
    assert joined.n_obs == 3 * n_sources
    rows = joined[joined.obs["source"].astype(str).str.endswith(".h5ad")]
    order = rows.obs["source_row"].to_numpy()
    assert (rows.X.toarray() == COUNTS.toarray()[order]).all()


def test_counts_in_raw_or_x_and_genes_under_two_names_are_ingested_together(tmp_path):
    report = ingest(write_four(tmp_path), tmp_path / "store", workers=1)
    assert_joined(tmp_path / "store")
    assert any("the counts are those of raw, as X does not hold whole numbers" in note for note in report.notes)
    assert "Genes that all sources have: 4 of 4." in report.notes


def test_a_table_of_sources_says_the_same_with_paths_from_its_folder(tmp_path):
    write_four(tmp_path)
    (tmp_path / "sources.toml").write_text(
        '[[source]]\npath = "norm.h5ad"\nlayer = "raw"\n[[source]]\npath = "symbols.h5ad"\ngene_column = "id"\n'
    )
    ingest(tmp_path / "sources.toml", tmp_path / "store", workers=1)
    assert_joined(tmp_path / "store", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has entries \[\[source\]\]"),
        ("[[source]]\nlayer = 'raw'\n", r"an entry \[\[source\]\] has no path"),
        ("[[source]]\npath = 'a'\nlayer = 1\n", "layer = 1 is not a source's option"),
        ("[[source]]\npath = 'a'\nlayr = 'b'\n", "layr = 'b' is not a source's option"),
        ("not toml", "can't be read as TOML"),
        ("[[source]]\npath = 'a'\n[other]\n", "nothing else"),
    ],
)
def test_a_table_that_can_not_be_read_says_why(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SourceError, match=message):
        list_sources([tmp_path / "s.toml"])


def test_x_is_read_where_raw_holds_no_counts_either(tmp_path):
    adata = annotated()
    adata.X = adata.X * np.float32(0.5)
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    source = open_source(tmp_path / "a.h5ad")
    assert (source.layer, source.notes) == ("X", [])


def test_a_layer_that_one_source_lacks_is_answered_with_how_to_say_it_for_each(tmp_path):
    annotated().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match=r"it has no layer 'raw' \(this file has: X\): .*a.h5ad::layer=NAME"):
        open_source(tmp_path / "a.h5ad", layer="raw")


def test_versions_of_ensembl_ids_are_dropped_if_asked_for(tmp_path):
    names = ["ENSG00000141510.16", "ENSG00000002586.20_PAR_Y", "ENSMUSG00000051951.6", "RP11-34P13.7"]
    annotated(names).write_h5ad(tmp_path / "a.h5ad")
    source = open_source(f"{tmp_path / 'a.h5ad'}::gene_versions=drop")
    expected = ["ENSG00000141510", "ENSG00000002586_PAR_Y", "ENSMUSG00000051951", "RP11-34P13.7"]
    assert source.var.index.tolist() == expected


def write_multimodal(path: Path, folder: str, names: list[str]) -> Path:
    import h5py
    import zarr
    from anndata.io import write_elem

    root = h5py.File(path, "w") if path.suffix == ".h5mu" else zarr.open_group(path, mode="w", zarr_format=3)
    group = root.create_group(folder)
    for k, name in enumerate(names):
        adata = annotated()
        adata.X = adata.X * (k + 1)
        write_elem(group, name, adata)
    if path.suffix == ".h5mu":  # as MuData writes: tables of all modalities beside them
        write_elem(root, "obs", annotated().obs)
        write_elem(root, "var", annotated().var)
        root.close()
    return path


@pytest.mark.parametrize(("name", "folder"), [("a.h5mu", "mod"), ("a.zarr", "mod"), ("a.zarr", "tables")])
def test_of_mudata_and_spatialdata_one_modality_or_table_is_read(tmp_path, name, folder):
    path = write_multimodal(tmp_path / name, folder, ["prot", "rna"])
    assert (open_source(path).read_counts(0, 3) != COUNTS * 2).nnz == 0
    assert (open_source(path, measurement="prot").read_counts(0, 3) != COUNTS).nnz == 0
    with pytest.raises(SourceError, match=r"has no 'atac' of these: prot, rna; name .* --measurement NAME"):
        open_source(path, measurement="atac")


def test_of_several_tables_one_must_be_named(tmp_path):
    path = write_multimodal(tmp_path / "a.zarr", "tables", ["one", "two"])
    with pytest.raises(SourceError, match="SpatialData, which has several of these: one, two"):
        open_source(path)


def test_the_layer_of_an_anndata_in_memory_is_that_of_files_of_anndata_alone(tmp_path):
    adata = annotated()
    adata.layers["counts"] = adata.X
    like = MemoryCells(adata, "counts").spec
    adata.write_h5ad(tmp_path / "a.h5ad")
    write(tmp_path / "10x", matrix__mtx=matrix_text(), genes__tsv=lines(GENES), barcodes__tsv=lines(CELLS))
    assert open_cells(tmp_path / "a.h5ad", like=like).layer == "counts"
    assert open_cells(tmp_path / "10x", like=like).layer is None


def test_how_a_bucket_is_reached_is_kept_with_the_data_and_used_for_that_bucket_alone(monkeypatch):
    monkeypatch.setenv("ATLASVI_STORAGE", "endpoint=https://minio:9000,region=lab")
    spec = parse_source("s3://atlases/a.h5ad::region=other,layer=raw")
    assert (spec.endpoint, spec.region, spec.layer) == ("https://minio:9000", "other", "raw")
    monkeypatch.setenv("ATLASVI_STORAGE", "")
    again = DataSpec.from_record(spec.to_record())
    assert again == spec == parse_source(str(spec))
    assert again.storage == Storage(endpoint="https://minio:9000", region="other")
    assert again.place == to_place("s3://atlases/a.h5ad", again.storage)
    assert again.leave_out_storage() == parse_source("s3://atlases/a.h5ad::layer=raw")
    usual = replace(spec, format="h5ad")
    assert DataSpec("s3://atlases/b.h5ad").fill_from(usual, "h5ad").endpoint == "https://minio:9000"
    for other in ("s3://others/b.h5ad", "gs://atlases/b.h5ad", "b.h5ad"):
        filled = DataSpec(other).fill_from(usual, "h5ad")
        assert (filled.endpoint, filled.layer) == (None, "raw")
    with pytest.raises(SourceError, match="it is a local path, so leave out endpoint"):
        parse_source("a.h5ad::endpoint=https://minio:9000")
