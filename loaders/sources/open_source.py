"""Recognises the format of a path, opens it as a `Source`, and checks its genes."""

from pathlib import Path

import h5py
import pandas as pd

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import ColumnError, GeneError, SourceError
from atlasvi.loaders.places.addresses import KNOWN as KNOWN_ADDRESSES
from atlasvi.loaders.places.hdf5_files import is_hdf5, open_hdf5
from atlasvi.loaders.places.object_path import ObjectPath, Place, to_place
from atlasvi.loaders.sources.anndata_files import open_anndata_zarr, open_h5ad
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source
from atlasvi.loaders.sources.matrix_market import find_mtx
from atlasvi.loaders.sources.mtx_folder import open_mtx_folder
from atlasvi.loaders.sources.soma import open_soma
from atlasvi.loaders.sources.source_protocol import Source
from atlasvi.loaders.sources.tenx import open_tenx_h5
from atlasvi.loaders.store_files import check_listed

KNOWN = (
    ".h5ad, .h5mu, a Zarr folder or .zarr.zip of AnnData, 10x .h5, a folder with an .mtx(.gz) and its lists of genes "
    "and cells, a TileDB-SOMA experiment"
)


def open_source(
    path: str | Path,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    measurement: str | None = None,
    scratch: str | Path | None = None,
) -> Source:
    """Recognise the format of `path`, open it, and check its genes.

    path         may end with options, `PATH::layer=raw,gene_column=id` (see data_spec.py)
    layer        which matrix: AnnData: a layer's name, `raw` or `X` (default: X, or raw where only that holds whole
                 numbers); SOMA: an X layer of the measurement; 10x .h5: a genome
    gene_column  column of var that names the genes (default: its index, `_index`; for 10x the gene ids)
    measurement  SOMA's measurement, MuData's modality, SpatialData's table (default: RNA, or the only one); not used
                 for other formats
    scratch      folder for temporary files (default: the system's), used for matrices that are not stored by rows

    Raises SourceError where it can't be read as counts, GeneError where gene names are missing or repeated,
    ColumnError where `gene_column` is not there, MissingDependencyError for SOMA without tiledbsoma.
    """
    return open_spec(parse_source(path, layer=layer, gene_column=gene_column, measurement=measurement), scratch)


def open_spec(spec: DataSpec, scratch: str | Path | None = None) -> Source:
    """Recognise, open and check a source; see `open_source`."""
    name = spec.path
    kind = spec.format or recognise(name, spec.place)
    source: Source
    if kind == "h5ad":
        source = open_h5ad(spec, scratch)
    elif kind == "zarr":
        check_listed(spec.place)
        source = open_anndata_zarr(spec, scratch)
    elif kind == "tenx_h5":
        source = open_tenx_h5(spec)
    elif kind == "mtx":
        source = open_mtx_folder(spec, scratch)
    else:
        source = open_soma(spec)
    try:
        source.var = name_genes(name, source.var, spec.gene_column)
        if spec.gene_versions == "drop":
            source.var = source.var.set_index(drop_versions(source.var.index))
        if source.n_cells == 0 or len(source.var) == 0:
            raise SourceError(
                f"{name}: it is empty: {source.n_cells} cells x {len(source.var)} genes; pass a file with data."
            )
        check_gene_names(name, source.var)
    except BaseException:
        source.close()
        raise
    return source


def recognise(path: str, place: Place | None = None) -> str:
    """The kind of source: h5ad, zarr, tenx_h5, mtx or soma; by content, or by the file's ending if that is not enough.

    place  of the path, if it is not the one that the usual options give
    Raises SourceError, with what to do instead, for any other file.
    """
    place = to_place(path) if place is None else place
    if isinstance(place, Path) and "://" in path and not place.exists():
        raise SourceError(f"{path}: addresses of this kind are not read; there are {KNOWN_ADDRESSES}.")
    with reading(path):
        if place.is_dir():
            return recognise_folder(path, place)
        if not place.exists():
            if isinstance(place, ObjectPath) and not place.is_listable:
                raise SourceError(
                    f"{path}: there is no such file, or it may not be read; check the name. Folders of a web server "
                    "are not read, since it does not list their files: copy the folder to this machine or into a "
                    "bucket."
                )
            raise SourceError(f"{path}: there is no such file or folder; check the name.")
        if place.stat().st_size == 0:
            raise SourceError(f"{path}: the file is empty (0 bytes); copy it again, or write it again.")
        with place.open("rb") as file:
            start = file.read(64)
        if is_hdf5(place):
            return recognise_hdf5(path, place)
    lower = place.name.lower()
    if start.startswith(b"PK"):
        return "zarr"
    if lower.endswith((".mtx", ".mtx.gz")) or start.startswith(b"%%MatrixMarket"):
        return "mtx"
    raise SourceError(f"{path}: {explain_unknown(lower, start)}")


def recognise_folder(path: str, folder: Place) -> str:
    """The kind of a folder. Raises SourceError, naming folders below it, if the counts are in one of those."""
    inside: list[Place] = sorted(folder.iterdir())  # one request, if it is in a bucket
    there = {entry.name for entry in inside}
    if there & {"__tiledb_group.tdb", "__group"}:
        return "soma"
    if there & {"zarr.json", ".zgroup", ".zmetadata"}:
        return "zarr"
    if find_mtx(folder):
        return "mtx"
    below = [entry for entry in inside if entry.is_dir() and find_mtx(entry)]
    below += sorted(file for end in ("h5ad", "h5mu", "h5") for file in folder.glob(f"*.{end}"))
    if below:
        names = ", ".join(str(entry) for entry in below[:5]) + (", ..." if len(below) > 5 else "")
        raise SourceError(f"{path}: the folder has no matrix of its own; pass what lies in it: {names}.")
    raise SourceError(f"{path}: a folder of no known format; known are: {KNOWN}.")


def recognise_hdf5(path: str, place: Place) -> str:
    """The kind of an HDF5 file by the groups in it."""
    with open_hdf5(place) as file:
        members = set(file)
        if {"obs", "var", "mod"} & members:
            return "h5ad"
        if "matrix" in members and "row_attrs" in members:
            raise SourceError(f"{path}: a loom file; convert it: anndata.io.read_loom(...).write_h5ad('counts.h5ad').")
        if "barcode_idx" in members:
            raise SourceError(f"{path}: a 10x molecule_info file; pass filtered_feature_bc_matrix.h5 beside it.")
        if "assays" in members:
            raise SourceError(f"{path}: an h5Seurat file; convert it to .h5ad (SeuratDisk::Convert).")
        if "matrix" in members or any("indptr" in group for group in file.values() if isinstance(group, h5py.Group)):
            return "tenx_h5"
    found = ", ".join(sorted(members)[:6]) or "nothing"
    raise SourceError(f"{path}: an HDF5 file of no known format (it holds: {found}); known are: {KNOWN}.")


def explain_unknown(name: str, start: bytes) -> str:
    """A sentence about a file that is not a source: what it seems to be and what to do, by its name and first bytes."""
    if name.endswith((".tar.gz", ".tgz", ".tar", ".tar.bz2", ".7z", ".rar")):
        return "an archive; unpack it and pass what is inside."
    if name.endswith(".toml"):
        return "a table of sources, which only ingest takes; pass one of its sources."
    if name.endswith((".rds", ".rda", ".rdata", ".robj")):
        return "an R file; write it as .h5ad from R (anndataR::write_h5ad or zellkonverter::writeH5AD)."
    if name.endswith((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".xlsx")):
        return (
            "a table of text; if it is a 10x file pass its folder, else write it as .h5ad "
            "(anndata.io.read_csv(...).write_h5ad('counts.h5ad'))."
        )
    if name.endswith((".h5ad", ".h5", ".hdf5", ".loom", ".h5mu")):
        return "by its name an HDF5 file, but its content is not: it is damaged or cut short; copy it again."
    if name.endswith(".zip"):
        return "by its name a zip, but its content is not: it is damaged or cut short; copy it again."
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "a compressed file; unpack it (gunzip) and pass what is inside."
    return f"no known format; known are: {KNOWN}."


def name_genes(path: str, var: pd.DataFrame, gene_column: str | None) -> pd.DataFrame:
    """`var` with the column `gene_column` as its index and the former index as a column.

    Raises ColumnError naming the columns where it is not there.
    """
    if gene_column in (None, var.index.name) or (gene_column == "_index" and "_index" not in var.columns):
        return var
    if gene_column not in var.columns:
        raise ColumnError(f"{path}: var has no column {gene_column!r} to name genes by ({name_columns(var)}).")
    former = var.index.name or "var_names"
    if former not in var.columns:
        var = var.assign(**{former: var.index.to_numpy()})
    names = var.pop(gene_column) if gene_column != former else var[gene_column]
    missing = names.isna().to_numpy()
    text = names.astype(object).astype(str).to_numpy(dtype=object)
    text[missing] = ""
    return var.set_index(pd.Index(text, dtype=object, name=gene_column))


def drop_versions(names: pd.Index) -> pd.Index:
    """Gene names without the versions of Ensembl ids: ENSG00000002586.20_PAR_Y becomes ENSG00000002586_PAR_Y."""
    text = names.astype(str).str.replace(r"^(ENS[A-Z]*\d{11})\.\d+", r"\1", regex=True)
    return pd.Index(text.to_numpy(dtype=object), dtype=object, name=names.name)


def check_gene_names(path: str, var: pd.DataFrame) -> None:
    """Raise GeneError where a gene has no name, or several have the same."""
    names = var.index
    blank = (names == "") | names.isna()
    if blank.any():
        raise GeneError(
            f"{path}: {blank.sum()} of {len(names)} genes have no name (first: gene number {blank.argmax() + 1}); "
            f"name them by another column with --gene-column ({name_columns(var)})."
        )
    repeated = names.duplicated()
    if repeated.any():
        first = names[repeated.argmax()]
        raise GeneError(
            f"{path}: {names[repeated].nunique()} gene names occur more than once (first: {first!r}, "
            f"{(names == first).sum()} times); name the genes by another column with --gene-column "
            f"({name_columns(var)}), or make the names unique (adata.var_names_make_unique()) and write the file again."
        )


def name_columns(var: pd.DataFrame) -> str:
    """The columns of var, for an error message."""
    return f"there are: {', '.join(map(str, var.columns))}" if len(var.columns) else "var has no columns"
