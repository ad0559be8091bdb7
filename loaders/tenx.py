"""10x Genomics output: .h5 (legacy, one group a genome; version 3; probes) and folders with matrix.mtx(.gz).

Genes are named by their ids, since symbols repeat; `--gene-column gene_symbols` chooses symbols where they don't.
Of files that also hold antibodies or guides only the features of type "Gene Expression" are read, as scanpy does.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.anndata_tables import Node, is_array, make_frame, read_text
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.lines import Lines, open_text
from atlasvi.loaders.matrices import CompressedRows, Matrix, count_piece_rows, read_narrow
from atlasvi.loaders.matrix_market import find_mtx, read_entries, read_header
from atlasvi.loaders.rows import Rows
from atlasvi.loaders.runs import choose_run
from atlasvi.loaders.spool import RowSpool

GENES = "Gene Expression"


class TenxSource:
    """Cells x genes of 10x output. Use `open_tenx_h5` or `open_tenx_mtx`.

    matrix     cells x all features
    features   one row a feature, index the ids; with the columns feature_types and genome where the files have them
    genome     keep the genes of this one alone
    """

    shuffled = False  # its authors' order

    def __init__(
        self,
        path: str,
        matrix: Matrix,
        features: pd.DataFrame,
        read_obs: Callable[[int, int], pd.DataFrame],
        close: Callable[[], None],
        layers: list[str],
        genome: str | None = None,
    ):
        self.path, self.layer, self.layers = path, "matrix", layers
        self.n_cells = matrix.shape[0]
        self._matrix, self._read_obs, self._close = matrix, read_obs, close
        kept = keep_genes(path, features, genome)
        self._kept = None if kept.all() else np.flatnonzero(kept)
        self.var = features[kept]
        self.nnz = matrix.nnz  # with those of features left out

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x genes, as stored: canonical CSR, values not validated."""
        with reading(self.path):
            rows = self._matrix.read_rows(start, stop)
        if self._kept is not None:
            rows = rows[:, self._kept]
            rows.sort_indices()
        return rows

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as narrow counts, fast; None where `read_counts` must be asked."""
        if self._kept is not None:
            return None
        with reading(self.path):
            return read_narrow(self._matrix, start, stop)

    def count_piece_cells(self) -> float:
        """Cells that are decoded together."""
        with reading(self.path):
            return count_piece_rows(self._matrix)

    def count_run_cells(self) -> int:
        """Cells that are best read at a time, from a multiple of them on."""
        return choose_run(self.count_piece_cells(), self.shuffled)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): index the barcodes; probe files have the column filtered_barcodes."""
        with reading(self.path):
            return self._read_obs(start, stop)

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        self._matrix.close()
        self._close()


def keep_genes(path: str, features: pd.DataFrame, genome: str | None) -> np.ndarray:
    """Return which features are genes (of `genome` where it is given), as a mask.

    Raises SourceError where none is.
    """
    kept = np.ones(len(features), dtype=bool)
    if "feature_types" in features:
        kept = (features["feature_types"] == GENES).to_numpy()
        if not kept.any() and len(features):
            types = ", ".join(map(str, features["feature_types"].unique()[:6]))
            raise SourceError(
                f"{path}: no feature is of type '{GENES}' (types there: {types}); pass a file with genes."
            )
    if genome is not None:
        kept &= (features["genome"] == genome).to_numpy()
    return kept


def open_tenx_h5(path: str, layer: str | None = None) -> TenxSource:
    """Open a 10x .h5 file; `layer` is a genome, needed only for a legacy file with several.

    Raises SourceError where it can't be read as counts.
    """
    with reading(path):
        file = h5py.File(path, "r", locking="best-effort")
        try:
            return _open_h5(path, file, layer)
        except BaseException:
            file.close()
            raise


def _open_h5(path: str, file: h5py.File, layer: str | None) -> TenxSource:
    groups = [name for name, node in file.items() if not is_array(node) and "indptr" in node]
    if not groups:
        raise SourceError(f"{path}: it has no matrix; it is damaged or no 10x .h5 file, copy it again.")
    legacy = "features" not in file[groups[0]]
    if legacy and len(groups) > 1 and layer is None:
        raise SourceError(
            f"{path}: it holds the genomes {', '.join(groups)}, each with its own matrix; "
            "choose one with --layer GENOME."
        )
    group = file[layer if layer in groups else groups[0]]
    features = read_features(group)
    genomes = groups if legacy else list(features["genome"].unique()) if "genome" in features else []
    if layer is not None and layer not in genomes:
        raise SourceError(f"{path}: it has no genome {layer!r} (this file has: {', '.join(genomes) or 'none'}).")

    n_features, n_cells = (int(n) for n in group["shape"][:])
    if len(features) != n_features or group["barcodes"].shape[0] != n_cells:
        raise SourceError(
            f"{path}: its shape is {n_features} features x {n_cells} barcodes, but it lists {len(features)} and "
            f"{group['barcodes'].shape[0]}: it is damaged, copy it again."
        )
    # Columns of features x barcodes compressed are rows of cells x features compressed.
    matrix = CompressedRows(path, group.name, group["data"], group["indices"], group["indptr"], (n_cells, n_features))

    def read_obs(start: int, stop: int) -> pd.DataFrame:
        columns = {c: read_text(group[c], start, stop) for c in ("filtered_barcodes",) if c in group}
        return make_frame(columns, read_text(group["barcodes"], start, stop), None)

    return TenxSource(path, matrix, features, read_obs, file.close, genomes, None if legacy else layer)


def read_features(group: Node) -> pd.DataFrame:
    """Return the features of a 10x matrix group: index gene_ids (probe_ids in probe files), and what else is known."""
    if "features" not in group:
        symbols = {"gene_symbols": read_text(group["gene_names"])} if "gene_names" in group else {}
        return make_frame(symbols, read_text(group["genes"]), "gene_ids")
    features = group["features"]
    names = {"name": "gene_symbols", "feature_type": "feature_types", "gene_id": "gene_ids"}
    n_features = features["id"].shape[0]
    columns = {
        names.get(key, key): read_text(node)
        for key, node in features.items()
        if key not in ("id", "_all_tag_keys") and is_array(node) and node.shape == (n_features,)
    }
    return make_frame(columns, read_text(features["id"]), "probe_ids" if "gene_ids" in columns else "gene_ids")


def open_tenx_mtx(path: str, layer: str | None = None, scratch: str | Path | None = None) -> TenxSource:
    """Open a 10x folder (matrix.mtx, barcodes.tsv, features.tsv or genes.tsv, gzipped or not), or the .mtx in one.

    The files may share a prefix (PREFIXmatrix.mtx.gz, ...). Entries are put in row order in `scratch` at the first
    read. Raises SourceError where it can't be read as counts.
    """
    if layer is not None:
        raise SourceError(f"{path}: a 10x folder has one matrix and no layer {layer!r}; leave --layer out.")
    with reading(path):
        file, features_file, barcodes_file = find_parts(path)
        header = read_header(str(file), file)
        features = read_features_tsv(features_file)
        barcodes = Lines(barcodes_file)
        check_parts(path, (header.n_rows, header.n_cols), (len(features), len(barcodes)), features_file.name)

        def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for gene, cell, count in read_entries(str(file), file, header):
                yield cell, gene, count

        matrix = RowSpool(entries, (header.n_cols, header.n_rows), header.n_entries, header.value_dtype, scratch)

        def read_obs(start: int, stop: int) -> pd.DataFrame:
            return make_frame({}, [line.split("\t")[0] for line in barcodes.read(start, stop)], None)

        return TenxSource(path, matrix, features, read_obs, barcodes.close, [])


def find_parts(path: str) -> tuple[Path, Path, Path]:
    """Return the files of matrix, features and barcodes; `path` is their folder or the matrix itself.

    Raises SourceError where one is missing, or the folder holds several matrices.
    """
    place = Path(path)
    if place.is_dir():
        found = find_mtx(place)
        if len(found) > 1:
            raise SourceError(
                f"{path}: the folder holds several matrices; pass one of: {', '.join(str(file) for file in found[:8])}."
            )
        place = found[0]
    before, mark, _ = place.name.rpartition("matrix.mtx")
    prefix = before if mark else ""
    parts = []
    for names in (("features.tsv", "genes.tsv"), ("barcodes.tsv",)):
        wanted = [place.parent / f"{prefix}{name}{end}" for name in names for end in ("", ".gz")]
        there = [file for file in wanted if file.is_file()]
        if not there:
            raise SourceError(
                f"{path}: {' or '.join(prefix + name for name in names)} (or .gz) is not beside {place.name}; "
                "10x writes three files, copy all of them into one folder."
            )
        parts.append(there[0])
    return place, parts[0], parts[1]


def read_features_tsv(file: Path) -> pd.DataFrame:
    """Return features.tsv (id, symbol, type, ...) or genes.tsv (id, symbol): index gene_ids."""
    with open_text(file) as text:
        rows = [line.rstrip("\r\n").split("\t") for line in text if line.strip()]
    width = min((len(row) for row in rows), default=1)
    names = ["gene_symbols", "feature_types"][: width - 1]
    columns = {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names, 1)}
    return make_frame(columns, [row[0] for row in rows], "gene_ids")


def check_parts(path: str, header: tuple[int, int], listed: tuple[int, int], features_name: str) -> None:
    """Raise SourceError where the matrix's size is not that of the lists of features and barcodes."""
    if header == listed:
        return
    what = f"{path}: the matrix is {header[0]} x {header[1]}, but {features_name} lists {listed[0]} features and "
    if header == listed[::-1]:
        raise SourceError(f"{what}barcodes.tsv {listed[1]} cells: it lies on its side; 10x writes features x barcodes.")
    raise SourceError(f"{what}barcodes.tsv {listed[1]} cells: the files do not belong together, or one is cut short.")
