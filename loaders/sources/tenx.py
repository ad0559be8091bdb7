"""Cells x genes of 10x Genomics and similar tools, and 10x's .h5 (legacy, one group a genome; version 3; probes).

Genes are named by their ids, since symbols repeat; `--gene-column gene_symbols` chooses symbols where they are unique.
In files that also hold antibodies or guides, only features of type "Gene Expression" are read, as in scanpy.
"""

from collections.abc import Callable

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.arrays.array_checks import Node, check_stored, is_array
from atlasvi.loaders.arrays.matrices import CompressedRows, Matrix
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.hdf5_files import open_hdf5
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.gene_lists import GENES
from atlasvi.loaders.sources.matrix_source import MatrixSource
from atlasvi.loaders.tables.anndata_tables import read_text
from atlasvi.loaders.tables.frames import make_frame, make_names


class TenxSource(MatrixSource):
    """Cells x genes of 10x output. Use `open_tenx_h5` or `open_mtx_folder`.

    matrix     cells x all features
    features   one row for each feature, ids as index; columns feature_types and genome where the files have them
    genome     keep only the genes of this genome
    """

    anndata_layer = None

    def __init__(
        self,
        spec: DataSpec,
        matrix: Matrix,
        features: pd.DataFrame,
        read_obs: Callable[[int, int], pd.DataFrame],
        close: Callable[[], None],
        layers: list[str],
        genome: str | None = None,
    ):
        super().__init__(spec, matrix)
        self.layer, self.layers = "matrix", layers
        self._read_obs, self._close = read_obs, close
        kept = keep_genes(spec.path, features, genome)
        self._kept = None if kept.all() else np.flatnonzero(kept)
        self.var = features[kept]

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x genes, as stored: canonical CSR, values not validated."""
        rows = super().read_counts(start, stop)
        if self._kept is not None:
            rows = rows[:, self._kept]
            rows.sort_indices()
        return rows

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast; None where the caller must use `read_counts`."""
        return super().read_narrow(start, stop) if self._kept is None else None

    def ask_ahead(self, start: int, stop: int) -> object:
        """Begin to read what `read_narrow` will need of a bucket; what is returned must be kept until then."""
        return super().ask_ahead(start, stop) if self._kept is None else None

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): the barcodes as index; probe files have the column filtered_barcodes."""
        with reading(self.path):
            return self._read_obs(start, stop)

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        self._matrix.close()
        self._close()


def keep_genes(path: str, features: pd.DataFrame, genome: str | None) -> np.ndarray:
    """Which features are genes (of `genome` if it is given), as a mask.

    Raises SourceError if none is.
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


def open_tenx_h5(spec: DataSpec) -> TenxSource:
    """Open a 10x .h5 file; its layer is a genome, needed only for a legacy file with several.

    Raises SourceError where it can't be read as counts.
    """
    with reading(spec.path):
        file = open_hdf5(spec.place)
        try:
            return _open_h5(spec, file)
        except BaseException:
            file.close()
            raise


def _open_h5(spec: DataSpec, file: h5py.File) -> TenxSource:
    path, layer = spec.path, spec.layer
    groups = [name for name, node in file.items() if not is_array(node) and "indptr" in node]
    if not groups:
        raise SourceError(f"{path}: it has no matrix; it is damaged or not a 10x .h5 file, copy it again.")
    legacy = "features" not in file[groups[0]]
    if legacy and len(groups) > 1 and layer is None:
        raise SourceError(
            f"{path}: it holds the genomes {', '.join(groups)}, each with its own matrix; "
            "choose one with --layer GENOME."
        )
    chosen: str = layer if layer is not None and layer in groups else groups[0]
    check_stored(path, file, chosen, spec.fill_missing)
    group = file[chosen]
    features = read_features(group)
    genomes = groups if legacy else list(features["genome"].unique()) if "genome" in features else []
    if layer is not None and layer not in genomes:
        raise SourceError(f"{path}: it has no genome {layer!r} (this file has: {', '.join(genomes) or 'none'}).")

    n_features, n_cells = (int(n) for n in group["shape"][:].tolist())
    if len(features) != n_features or group["barcodes"].shape[0] != n_cells:
        raise SourceError(
            f"{path}: its shape is {n_features} features x {n_cells} barcodes, but it lists {len(features)} and "
            f"{group['barcodes'].shape[0]}: it is damaged, copy it again."
        )
    # The compressed columns of features x barcodes are the compressed rows of cells x features.
    matrix = CompressedRows(path, group.name, group["data"], group["indices"], group["indptr"], (n_cells, n_features))

    def read_obs(start: int, stop: int) -> pd.DataFrame:
        columns = {c: read_text(group[c], start, stop) for c in ("filtered_barcodes",) if c in group}
        return make_frame(columns, make_names(read_text(group["barcodes"], start, stop)))

    return TenxSource(spec, matrix, features, read_obs, file.close, genomes, None if legacy else layer)


def read_features(group: Node) -> pd.DataFrame:
    """The features of a 10x matrix group: gene_ids as index (probe_ids in probe files), and the other columns."""
    if "features" not in group:
        symbols = {"gene_symbols": read_text(group["gene_names"])} if "gene_names" in group else {}
        return make_frame(symbols, make_names(read_text(group["genes"]), "gene_ids"))
    features = group["features"]
    names = {"name": "gene_symbols", "feature_type": "feature_types", "gene_id": "gene_ids"}
    n_features = features["id"].shape[0]
    columns = {
        names.get(key, key): read_text(node)
        for key, node in features.items()
        if key not in ("id", "_all_tag_keys") and is_array(node) and node.shape == (n_features,)
    }
    return make_frame(
        columns, make_names(read_text(features["id"]), "probe_ids" if "gene_ids" in columns else "gene_ids")
    )
