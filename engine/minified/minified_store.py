"""The minified store: the posterior of every cell, all of `obs` and `var`, and the model, without counts.

A plain AnnData Zarr v3 that scvi-tools opens as if it had minified the data itself:

    MINI/                                  attributes `atlasvi`: kind, format version, sizes, settings
      X/ (and the layer that was trained on)  CSR of the right shape, without counts
      obs/                                 all columns of the data, and observed_lib_size (counts per cell)
      obsm/scvi_latent_qzm, scvi_latent_qzv  float32 or float16 [cells, latent]: mean and variance of q(z | x)
      obsm/X_umap                          float32 [cells, 2]: where a picture has each cell, if `embed` wrote it
      var/
      uns/_scvi_adata_minify_type          'latent_posterior_parameters'
      names.index                          where each cell's name is (see loaders/tables/name_index.py)
      manifest.json                        bytes and checksum of every file, written last
      uns/atlasvi/weights/<name>           the model's weights, so that the store is enough to answer questions

Latents, and text such as the cells' names, are shards with inner chunks of few cells, each with its crc32c, so that
chosen cells are read without the cells between them. Latents are not compressed: that would save 8% of their size, and
take more time than reading them. This is format 3. Formats 1 and 2 had chunks of the size of these shards, and no
names.index; they are read too.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import h5py
import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.minified.kept_posterior import (
    LATENTS,
    LIBRARY,
    MINIFIED,
    MINIFY_TYPE,
    KeptPosterior,
    find_embedding,
)
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.provenance import Provenance
from atlasvi.loaders.arrays.array_checks import check_group_codecs
from atlasvi.loaders.arrays.row_arrays import Chosen, open_rows
from atlasvi.loaders.cells.store_checks import check_attributes, check_lengths, check_written, name_missing_chunks
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import Files, check_files, hash_file, write_manifest
from atlasvi.loaders.outputs import name_scratch, remove_leftovers, sync_file
from atlasvi.loaders.places.addresses import restore_address
from atlasvi.loaders.places.hdf5_files import is_hdf5, open_hdf5
from atlasvi.loaders.places.object_path import ObjectPath, Place, open_folder, to_place
from atlasvi.loaders.places.staging import write_local_file
from atlasvi.loaders.places.zarr_stores import open_group
from atlasvi.loaders.places.zarr_writing import open_to_write, take_written
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_manifest, check_version, read_attributes
from atlasvi.loaders.tables.anndata_tables import read_table, read_text, to_str
from atlasvi.loaders.tables.merged_columns import TEXT
from atlasvi.loaders.tables.name_index import NameIndex, write_name_index
from atlasvi.loaders.tables.records import STRING
from atlasvi.loaders.tables.store_tables import (
    AppendedArray,
    TableReader,
    TableWriter,
    consolidate_metadata,
    place_rows,
    unmask_complete_text,
    write_table,
)
from atlasvi.loaders.zarr_warnings import quiet_zarr

if TYPE_CHECKING:
    from atlasvi.engine.model.trained_run import TrainedRun
    from atlasvi.engine.model.vae import VAE

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
KIND = "minified store"
MAPPING = {"encoding-type": "dict", "encoding-version": "0.1.0"}  # attributes of a group of elements in AnnData
NAMES = "names.index"
LATENT_ROWS = 512  # cells of an inner chunk of latents, 41 kB of 20 float32: zarr-python takes 0.1 ms for each
TEXT_ROWS = 4096  # texts of an inner chunk, which takes 0.1 ms to decode
Latents = Literal["float32", "float16"]
"""How latents are stored."""
ATTRIBUTES: dict[str, type] = {**dict.fromkeys(("n_cells", "n_genes", "n_latent"), int), "model": dict}


def is_minified_store(path: str | Path | ObjectPath) -> bool:
    """Whether `path` is a finished minified store (of any version)."""
    attributes = read_attributes(path)
    return attributes is not None and attributes.get("kind") == KIND


def read_minify_type(path: str | Path | ObjectPath) -> str | None:
    """The minify type of an h5ad file or Zarr folder (see `MINIFY_TYPE`); None if it is not minified."""
    place = to_place(path)
    if not (is_hdf5(place) or any((place / name).is_file() for name in ("zarr.json", ".zgroup"))):
        return None
    with reading(str(path)):
        opened = open_root(place)
        with opened if isinstance(opened, h5py.File) else nullcontext(opened) as root:
            uns = root.get("uns", {})
            return to_str(read_text(uns[MINIFIED])) if MINIFIED in uns else None


def open_root(path: str | Path | ObjectPath) -> Any:
    """The root group of an AnnData: an h5py.File, which must be closed, or a zarr.Group."""
    place = to_place(path)
    return open_group(open_folder(place)) if place.is_dir() else open_hdf5(place)


def create_minified(
    path: Path,
    n_cells: int,
    n_latent: int,
    var: pd.DataFrame,
    dtypes: Mapping[str, object],
    weights: Mapping[str, np.ndarray],
    chunk_rows: int,
    layer: str | None = None,
    latents: Latents = "float32",
) -> None:
    """Make a store whose cells are not written yet: processes use `write_cells`, and `finish_minified` completes it.

    dtypes      of the columns of obs, without observed_lib_size
    chunk_rows  cells in a file of all arrays of cells, so that different processes write different files
    layer       layer that held the counts; None: X
    latents     dtype of the latents
    """
    from anndata.io import write_elem

    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    layers = root.create_group("layers", attributes=MAPPING)
    _create_empty_matrix(root, "X", n_cells, len(var))
    if layer is not None:  # scvi-tools needs the layer that held the counts
        _create_empty_matrix(layers, layer, n_cells, len(var))
    # Whether any text is missing is known only at the end.
    stored = {name: STRING if dtype == TEXT else dtype for name, dtype in dtypes.items()}
    obs_dtypes = {**stored, LIBRARY: np.dtype(np.float32)}
    TableWriter(root, "obs", n_cells, obs_dtypes, chunk_rows, choose_inner_rows(chunk_rows, TEXT_ROWS))
    write_table(root, "var", var)
    obsm = root.create_group("obsm", attributes=MAPPING)
    inner_rows = choose_inner_rows(chunk_rows, LATENT_ROWS)
    for name in LATENTS:
        AppendedArray(obsm, name, n_cells, np.dtype(latents), (n_latent,), chunk_rows, inner_rows, compressed=False)
    with quiet_zarr():
        write_elem(root, "uns", {MINIFIED: MINIFY_TYPE})
        saved = root.create_group("uns/atlasvi", attributes=MAPPING).create_group("weights", attributes=MAPPING)
        for name, values in weights.items():  # as `write_elem` writes them, in a third of its time
            saved.create_array(name, data=values, attributes={"encoding-type": "array", "encoding-version": "0.2.0"})
        for name in ("obsp", "varm", "varp"):
            root.create_group(name, attributes=MAPPING)


def choose_inner_rows(chunk_rows: int, most: int) -> int:
    """Cells of an inner chunk: the largest number up to `most` that divides `chunk_rows`.

    It is `chunk_rows` itself if that has only divisors that are much smaller: each chunk takes 20 bytes more.
    """
    divisor = next(n for n in range(min(most, chunk_rows), 0, -1) if chunk_rows % n == 0)
    return divisor if divisor * 8 >= min(most, chunk_rows) else chunk_rows


def write_cells(
    path: Place, start: int, record: Mapping[str, np.ndarray], root_group: zarr.Group | None = None
) -> Files:
    """Write the cells of one file of each array, starting at cell `start`, and flush them to disk; returns their files.

    root_group  the store, opened to write: a process that writes several parts to a bucket reads its metadata once
    record  `qzm` and `qzv` float32 [cells, latent], and the `obs/` columns with observed_lib_size
    Raises OutputError if a latent is too large for float16.
    """
    root = cast(Any, root_group or open_to_write(path))
    place_rows(root["obs"], start, record)
    for name, part in zip(LATENTS, ("qzm", "qzv")):
        array = root[f"obsm/{name}"]
        array[start : start + len(record[part])] = to_stored(record[part], array.dtype, part, start)
    if isinstance(path, ObjectPath):
        return take_written(root)
    chunk, files = str(start // (array.shards or array.chunks)[0]), {}
    for folder in itertools.chain((path / "obs").rglob("c"), (path / "obsm").rglob("c")):
        for file in (folder / chunk, folder / chunk / "0"):
            if file.is_file():
                sync_file(file)
                sync_file(file.parent)
                files[str(file.relative_to(path))] = hash_file(file)
    return files


def to_stored(values: np.ndarray, dtype: np.dtype, part: str, start: int) -> np.ndarray:
    """qzm or qzv [cells, latent] of cells from `start` on in the dtype of the store.

    A variance that float16 would round to 0 becomes its smallest number, 6e-8: no cell becomes a point.
    Raises OutputError if a value is too large for float16.
    """
    stored = np.asarray(values)
    if dtype == np.float16:
        large = np.abs(stored) > np.finfo(np.float16).max
        if large.any():
            cell, k = (int(place) for place in np.argwhere(large)[0])
            raise OutputError(
                f"{part} of cell {start + cell:,} is {stored[cell, k]:g}, and float16 holds numbers up to 65,504: "
                "minify with --latents float32 (latents='float32')."
            )
        stored = stored.astype(np.float16)
        if part == "qzv":
            stored = np.where(stored == 0, np.finfo(np.float16).smallest_subnormal, stored)
    return stored


def finish_minified(
    path: Place,
    n_cells: int,
    n_genes: int,
    n_latent: int,
    model: Mapping[str, Any],
    written: Files,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the attributes that make the folder a minified store, the index of names, and the list of its files.

    written   the files from `create_minified`, and those that `write_cells` returned for all parts
    progress  called with the number of cells whose names are in the index
    Raises SourceError if one of these files is missing, or one from `create_minified` is damaged.
    """
    check_files(
        open_folder(path), written, lambda name: name.endswith("zarr.json") or not name.startswith(("obs/", "obsm/"))
    )
    root = open_to_write(path)
    unmasked = unmask_complete_text(cast(zarr.Group, root["obs"]), path / "obs")
    root = open_to_write(path) if unmasked else root  # it keeps metadata, which has changed
    changed = ("zarr.json", *(f"obs/{name}/zarr.json" for name in unmasked))
    written = {name: found for name, found in written.items() if name not in changed}
    names = TableReader(cast(Any, open_group(open_folder(path)))["obs"], str(path)).read_names
    with write_local_file(path / NAMES) as file:
        write_name_index(file, names, n_cells, progress)
    root.attrs["atlasvi"] = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_latent": n_latent,
        "manifest": True,
        **model,
    }
    consolidate_metadata(path, root)
    write_manifest(path, known=written)


def _create_empty_matrix(group: zarr.Group, name: str, n_cells: int, n_genes: int) -> None:
    """A CSR matrix of the right shape without counts."""
    shape = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]}
    matrix = group.create_group(name, attributes=shape)
    array: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
    matrix.create_array("data", shape=(0,), dtype="float32", attributes=array)
    matrix.create_array("indices", shape=(0,), dtype="int32", attributes=array)
    matrix.create_array("indptr", shape=(n_cells + 1,), chunks=(2**20,), dtype="int64", attributes=array)


class MinifiedStore(KeptPosterior):
    """A finished minified store, opened for reading by slices. Raises SourceError if `path` is none, or damaged."""

    def __init__(self, path: str | Path | ObjectPath) -> None:
        self.path, self._place = restore_address(path), open_folder(path)
        if isinstance(self._place, Path):
            remove_leftovers(self._place)
        attributes = read_attributes(self._place)
        if attributes is None or attributes.get("kind") != KIND:
            is_made = isinstance(self._place, Path) and name_scratch(self._place).exists()
            doing = " yet: it is being made, or its minify was interrupted" if is_made else ""
            raise SourceError(
                f"{path} is not a minified store{doing} (make one with: atlasvi minify RUN DATA --out MINI)."
            )
        check_attributes(attributes, path, {"format_version": int})
        check_version(self.path, KIND, attributes, FORMAT_VERSION)
        check_attributes(attributes, path, ATTRIBUTES)
        self.attributes: dict[str, Any] = attributes
        with reading(self.path), quiet_zarr():
            self._open()

    def _open(self) -> None:
        has_manifest = check_manifest(self._place, self.attributes)
        root = cast(Any, open_group(self._place))
        check_group_codecs(root)
        self._table, latents = TableReader(root["obs"], self.path), tuple(root["obsm"][name] for name in LATENTS)
        sizes = self.attributes["n_cells"], self.attributes["n_latent"]
        var = read_table(self.path, "var", root["var"])
        embedding = find_embedding(root["obsm"], sizes[0])
        super().__init__(self.path, sizes[0], self._table, var, latents, sizes[1], embedding)
        self._rows = tuple(map(open_rows, latents))
        self._coordinate_rows = None if embedding is None else open_rows(embedding)
        self._weights = root["uns/atlasvi/weights"]
        self._check(root)
        if not has_manifest:
            self._check_chunks(root)

    def _check(self, root: Any) -> None:
        """Raise SourceError unless all parts have the sizes in the attributes."""
        check_lengths(self.path, root["obs"], self.n_cells)
        for array in self._latents:
            if array.shape != (self.n_cells, self.n_latent) or array.dtype.kind != "f":
                raise SourceError(f"{self.path}: {array.path} is damaged: copy the store again, or minify again.")
        if len(self.var) != self.attributes["n_genes"]:
            raise SourceError(f"{self.path}: var is damaged: copy the store again, or minify again.")

    def _check_chunks(self, root: Any) -> None:
        """Raise SourceError if an older store, which has no list of its files, has lost chunks.

        Zarr does not write chunks of zeros only, so for some columns a loss can't be seen; a warning names these.
        """
        for name in self.obs.columns:
            element = root[f"obs/{name}"]
            is_categorical = isinstance(element, zarr.Group)
            if is_categorical and element["categories"].shape == (1,):  # its codes are zeros
                continue
            for lost in name_missing_chunks(element["codes"] if is_categorical else element):
                log.warning("%s: %s is missing: its values are 0, or were lost in a copy", self.path, lost)
                break
        for array in (root["var/_index"], root["obs/_index"], root[f"obs/{LIBRARY}"], *self._latents):
            check_written(self.path, array)
        for name, array in self._weights.arrays():
            if not name.endswith(("running_mean", "num_batches_tracked", "bias")):  # zero in an untrained model
                check_written(self.path, array)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        return self._read_latents(slice(start, stop))

    def take_latent(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [cells, latent], of the cells with these ascending indices."""
        return self._read_latents(cells)

    def take_mean(self, cells: np.ndarray) -> np.ndarray:
        """qzm, float32 [cells, latent], of the cells with these ascending indices; qzv is not read."""
        with reading(self.path):
            return self._rows[0].read(cells).astype(np.float32, copy=False)

    def _read_latents(self, cells: Chosen) -> tuple[np.ndarray, np.ndarray]:
        with reading(self.path):
            qzm, qzv = (array.read(cells).astype(np.float32, copy=False) for array in self._rows)
        return qzm, qzv

    def _read_coordinates(self, rows: Chosen) -> np.ndarray:
        assert self._coordinate_rows is not None
        return self._coordinate_rows.read(rows)

    def find_named(self, names: Collection[str]) -> tuple[np.ndarray, pd.Index]:
        """The cells with one of these names, all cells of a name that repeats: (ascending int64 indices, names)."""
        path = self._place / NAMES
        if not path.is_file():  # a store of an older format
            return super().find_named(names)
        with reading(self.path):
            candidates = NameIndex(path, self.n_cells).find_candidates(names)
        there = self.take_names(candidates)
        hits = there.isin(list(names))
        return candidates[hits], there[hits]

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model uses, and the meaning of its codes."""
        first = ("batch_key", "batch_categories", "labels_key")  # the first format held only these, in another place
        with reading(self.path):
            return Setup.from_saved(self.attributes.get("setup", {name: self.attributes.get(name) for name in first}))

    @property
    def provenance(self) -> Provenance | None:
        """Where the store comes from, and as its `of` the model; None if an older atlasvi made it."""
        with reading(self.path):
            return Provenance.from_record(self.attributes.get("provenance"))

    @property
    def run(self) -> "TrainedRun":
        """The model in the store, with its genes and its setup."""
        from atlasvi.engine.model.trained_run import MappedFrom, TrainedRun  # imports torch: see `model`

        with reading(self.path):
            data = DataSpec.from_record(self.attributes["data"]) if "data" in self.attributes else None
            provenance = self.provenance.of if self.provenance is not None else None
            origin = MappedFrom.from_saved(self.attributes.get("mapped_from"))
        return TrainedRun(
            self.model(),
            [str(gene) for gene in self.genes],
            self.setup,
            data=data,
            var=self.var,
            provenance=provenance,
            mapped_from=origin,
        )

    def model(self) -> "VAE":
        """The model, ready to decode."""
        from atlasvi.engine.model.vae import model_from_weights  # imports torch, which takes seconds

        with reading(self.path):
            return model_from_weights(self.attributes["model"], dict(self._weights.arrays()))
