"""All kinds of source give the same matrix, and what is none is told what it is."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlasvi.loaders.errors import AtlasviError, ColumnError, GeneError, SourceError
from atlasvi.loaders.sources.open_source import open_source
from tests.loaders.sources.soma_experiments import write_soma

LAYOUTS = [
    "h5ad csr",
    "h5ad csc",
    "h5ad dense",
    "zarr2 csr",
    "zarr3 csr",
    "zarr3 csc",
    "zarr3 dense",
    "zarr zip",
    "tenx h5",
    "tenx mtx",
    "soma",
]


def annotated(matrix: sp.csr_matrix) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(matrix.shape[0])])
    return ad.AnnData(matrix, obs, pd.DataFrame(index=[f"gene{i}" for i in range(matrix.shape[1])]))


def write_as(layout: str, adata: ad.AnnData, folder: Path) -> Path:
    """Write `adata` (CSR) in one of LAYOUTS; return the path to open."""
    kind, _, form = layout.partition(" ")
    folder.mkdir(parents=True)
    if form in ("csc", "dense"):
        adata = ad.AnnData(adata.X.tocsc() if form == "csc" else adata.X.toarray(), adata.obs, adata.var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "h5ad":
            adata.write_h5ad(folder / "a.h5ad")
            return folder / "a.h5ad"
        if kind.startswith("zarr"):
            with ad.settings.override(zarr_write_format=2 if kind == "zarr2" else 3):
                adata.write_zarr(folder / "a.zarr")
            return (
                Path(shutil.make_archive(str(folder / "a"), "zip", folder / "a.zarr"))
                if form == "zip"
                else folder / "a.zarr"
            )
        if kind == "soma":
            return write_soma(adata, folder / "soma")
    return write_tenx_h5(adata, folder / "a.h5") if form == "h5" else write_tenx_mtx(adata, folder)


def write_tenx_h5(adata: ad.AnnData, path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in {
            "data": adata.X.data.astype("int32"),
            "indices": adata.X.indices.astype("int64"),
            "indptr": adata.X.indptr.astype("int64"),
            "shape": np.array(adata.shape[::-1], "int32"),
            "barcodes": adata.obs_names.to_numpy().astype("S"),
            "features/id": adata.var_names.to_numpy().astype("S"),
            "features/name": adata.var_names.to_numpy().astype("S"),
            "features/feature_type": np.full(adata.n_vars, b"Gene Expression"),
        }.items():
            group[name] = values
    return path


def write_tenx_mtx(adata: ad.AnnData, folder: Path) -> Path:
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.astype("int64").tocoo(), symmetry="general")
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    (folder / "features.tsv").write_text("".join(f"{name}\t{name}\tGene Expression\n" for name in adata.var_names))
    return folder


def counts_of(values: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(values.astype("float32"))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "soma"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(
        np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 0, 1, 2, 300])
    ),
    data=st.data(),
)
def test_any_matrix_read_in_any_pieces_is_the_same_from_every_layout(tmp_path_factory, layout, values, data):
    assume(values.any() or layout != "zarr3 dense")  # of a chunk of zeros nothing is written, as if it were lost
    check_pieces(layout, values, data, tmp_path_factory.mktemp("layout"))


@settings(max_examples=3, deadline=None)  # an experiment takes a third of a second to write
@given(data=st.data())
def test_any_pieces_of_a_soma_experiment_are_those_of_the_matrix(tmp_path_factory, data):
    values = np.random.default_rng(0).poisson(0.5, (11, 4))
    check_pieces("soma", values, data, tmp_path_factory.mktemp("soma"))


def check_pieces(layout: str, values: np.ndarray, data: st.DataObject, folder: Path) -> None:
    path = write_as(layout, annotated(counts_of(values)), folder / "in")
    source = open_source(path, scratch=folder)
    assert source.n_cells == len(values)
    assert list(source.var.index) == [f"gene{i}" for i in range(values.shape[1])]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    for start, stop in zip([0, *cuts], [*cuts, len(values)]):
        rows = source.read_counts(start, stop)
        assert rows.has_canonical_format
        assert np.count_nonzero(rows.data) == rows.nnz
        np.testing.assert_array_equal(rows.toarray(), values[start:stop])
        assert list(source.read_obs(start, stop).index) == [f"cell{i}" for i in range(start, stop)]
    source.close()
    assert [entry.name for entry in folder.iterdir()] == ["in"]
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def visium(shared):
    adata = ad.read_h5ad(shared / "data" / "visium.h5ad")
    return adata, adata.X.sorted_indices()


def test_visium_is_the_same_matrix_from_10x_and_h5ad(shared, visium, tmp_path):
    adata, matrix = visium
    for path in (shared / "data" / "visium.h5ad", shared / "data" / "visium_10x"):
        source = open_source(path, scratch=tmp_path)
        assert (source.read_counts(0, source.n_cells) != matrix).nnz == 0
        assert list(source.var.index) == list(adata.var_names)
        assert list(source.read_obs(0, source.n_cells).index) == list(adata.obs_names)
        source.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_visium_written_in_every_layout_is_the_same_matrix(visium, tmp_path, layout):
    adata, matrix = visium
    n_cells = 100 if "dense" in layout or "mtx" in layout else adata.n_obs
    path = write_as(layout, adata[:n_cells].copy(), tmp_path / "in")
    source = open_source(path, scratch=tmp_path)
    pieces = [source.read_counts(i, min(i + 700, n_cells)) for i in range(0, n_cells, 700)]
    assert (sp.vstack(pieces) != matrix[:n_cells]).nnz == 0
    assert list(source.var.index) == list(adata.var_names)
    assert list(source.read_obs(0, n_cells).index) == list(adata.obs_names[:n_cells])
    source.close()


def test_every_file_of_the_readers_folder_is_read_or_refused_in_one_sentence(shared, tmp_path):
    folder = shared / "data" / "readers"
    refused = {}
    for path in sorted(folder.rglob("*")):
        try:
            source = open_source(path, scratch=tmp_path)
        except AtlasviError as error:
            refused[str(path.relative_to(folder))] = str(error)
            continue
        assert source.read_counts(0, source.n_cells).shape == (source.n_cells, len(source.var))
        assert len(source.read_obs(0, source.n_cells)) == source.n_cells
        source.close()
    files = {name for name in refused if (folder / name).is_file() and not name.endswith((".tsv", ".tsv.gz"))}
    assert files == {
        "anndata/v0.11.4/adata.h5ad",  # no X
        "anndata/v0.11.4/adata.zarr.zip",
        "scanpy/10x_1.2.0/multiple_genomes.h5",  # asks which genome
    }
    assert all(message.startswith(str(folder / name)) and "\n" not in message for name, message in refused.items())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5ad", b"", "the file is empty"),
        ("a.h5ad", b"not HDF5 at all", "its content is not: it is damaged or cut short"),
        ("a.h5ad", b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged or cut short"),
        ("a.zarr.zip", b"PK\x03\x04 not a zip", "damaged or cut short"),
        ("a.zip", b"nothing", "damaged or cut short"),
        ("a.tar.gz", b"\x1f\x8b123", "an archive; unpack it"),
        ("a.h5ad.gz", b"\x1f\x8b123", r"a compressed file; unpack it \(gunzip\)"),
        ("a.rds", b"\x1f\x8b123", "an R file; write it as .h5ad from R"),
        ("a.csv", b"a,b\n1,2\n", "a table of text"),
        ("a.bin", b"\x00\x01", "no known format; known are: .h5ad, "),
    ],
)
def test_what_is_no_source_is_told_what_it_seems_to_be(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["matrix/x", "row_attrs/x", "col_attrs/x"], "a loom file; convert it"),
        (["mod/rna/X", "mod/adt/X"], "it has no obs, so it is not an AnnData file"),
        (["mod/a/X", "mod/b/X"], "MuData, which has several of these: a, b"),
        (["barcode_idx/x", "count/x"], "a 10x molecule_info file"),
        (["assays/RNA"], "an h5Seurat file"),
        (["model_weights/x"], r"an HDF5 file of no known format \(it holds: model_weights\)"),
        (["obs/x"], "it has no var, so it is not an AnnData file"),
        (["matrix/x"], "it has no matrix"),
    ],
)
def test_hdf5_of_other_kinds_is_recognised(tmp_path, groups, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for group in groups:
            file.create_group(group)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "a.h5")


def test_a_path_that_is_not_there_or_not_here_is_refused(tmp_path):
    with pytest.raises(SourceError, match="there is no such file or folder"):
        open_source(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match="addresses of this kind are not read; there are s3://BUCKET/NAME"):
        open_source("ftp://host/a.zarr")


def test_a_folder_of_sources_points_to_them(tmp_path):
    annotated(counts_of(np.eye(3))).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match=r"no matrix of its own; pass what lies in it: .*a.h5ad"):
        open_source(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    annotated(counts_of(np.eye(3))).write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").chmod(0)
    with pytest.raises(SourceError, match="no permission"):
        open_source(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["A", "B", "A", "B", "A"], r"2 gene names occur more than once \(first: 'A', 3 times\).*there are: id, part"),
        (["A", "", "C", "", "E"], r"2 of 5 genes have no name \(first: gene number 2\).*there are: id, part"),
    ],
)
def test_gene_names_that_repeat_or_miss_are_refused_unless_another_column_names_them(tmp_path, names, message):
    adata = annotated(counts_of(np.eye(5)))
    adata.var = pd.DataFrame({"id": [f"ENSG{i}" for i in range(5)], "part": [None, *"bcde"]}, index=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(GeneError, match=message):
        open_source(tmp_path / "a.h5ad")
    with pytest.raises(GeneError, match="1 of 5 genes have no name"):
        open_source(tmp_path / "a.h5ad", gene_column="part")
    with pytest.raises(ColumnError, match=r"no column 'ids' to name genes by \(there are: id, part\)"):
        open_source(tmp_path / "a.h5ad", gene_column="ids")
    source = open_source(tmp_path / "a.h5ad", gene_column="id")
    assert list(source.var.index) == [f"ENSG{i}" for i in range(5)]
    assert source.var.index.name == "id"
    assert list(source.var["var_names"]) == names


def test_sources_neither_print_nor_warn(tmp_path):
    adata = annotated(counts_of(np.eye(4)))
    paths = [write_as(layout, adata, tmp_path / str(i)) for i, layout in enumerate(LAYOUTS)]
    program = (
        "import sys; from atlasvi.loaders.sources.open_source import open_source\n"
        "for path in sys.argv[1:]:\n"
        "    source = open_source(path); source.read_counts(0, 4); source.read_obs(0, 4); source.close()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, *map(str, paths)], capture_output=True, text=True, check=False
    )
    from_libraries = [line for line in done.stderr.splitlines() if "site-packages" in line]  # on being imported
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == "" or from_libraries, done.stderr
