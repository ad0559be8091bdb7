"""Which class a trial belongs to: `right`, `sentence` or `other`.

right     The call ended well, and its answer equals that of the undamaged input; or, where the damage changed what the
          file says, that of an independent reader of the damaged file (anndata, h5py, scipy, tiledbsoma, torch, ...).
sentence  It ended with one sentence on standard error and an exit status that is not zero (from Python: with an
          `AtlasviError`), the input is as it was, and nothing is left where the output should be or beside it.
library   It did not end within the limit of time, and neither does h5py when it reads all text of the file by itself:
          libhdf5 2.0.0 loops without end where the heap of a file's text is damaged, and no caller can interrupt it.
          Or the library itself gives other values each time that it reads the file.
other     Everything else: a traceback, a signal, too much time or memory, an answer that no reader confirms.

How far an answer can be judged:
- Counts, names, genes and columns that `ingest` and `check` give are compared one by one with the independent reader.
  What anndata can't read of obs, and we read, has to be as in the undamaged input; of text that is not UTF-8 each
  byte that is none becomes a mark, as in other programs.
- Training and minifying from a source are done again on an h5ad that anndata writes of what was read, and compared.
- A change of our own files that carry checksums must be noticed or make no difference, unless the trial made the
  checksums right again, or changed an array through zarr or torch, which do so. Then stores, latents and weights are
  compared with what anndata and torch read. What is computed from changed weights, checkpoints or totals can be known
  by nobody else: such an answer has to have the shape of the undamaged one and to be finite, no more.
- `info` has no answer but that it ends well or with a sentence.
"""

import codecs
import contextlib
import csv
import gzip
import io
import re
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import torch
import zarr
from anndata.io import read_elem
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.scvi_tools.weights import from_scvi_weights
from atlasvi.loaders.sources.soma import TILEDB_CONFIG
from tests.fuzz.calls import FORMATS, Answer, describe_cells, describe_latents, describe_model, list_values
from tests.fuzz.mutations import list_files

UNREADABLE = object()
CLASSES = ("right", "sentence", "library", "other")
LONGEST_SENTENCE = 1_200  # one that lists all settings


def is_sentence(said: str) -> bool:
    """Whether what was written to standard error ends with one sentence of atlasvi, and holds no traceback."""
    last = said.strip().splitlines()[-1:] or [""]
    fine = re.match(r"atlasvi: .{10,}", last[0]) and len(last[0]) < LONGEST_SENTENCE
    return bool(fine) and "Traceback" not in said and "not enough memory for this" not in last[0]


def same(answer: Any, expected: Any) -> bool:
    """Whether two plain values are equal, all that `expected` holds; floats to rounding, NaN equal to NaN."""
    if isinstance(expected, dict):
        return isinstance(answer, dict) and all(key in answer and same(answer[key], expected[key]) for key in expected)
    if isinstance(expected, np.ndarray):
        fits = isinstance(answer, np.ndarray) and answer.shape == expected.shape
        return fits and bool(np.allclose(answer, expected, rtol=1e-5, atol=1e-7, equal_nan=True))
    if isinstance(expected, list):
        fits = isinstance(answer, list) and len(answer) == len(expected)
        return fits and all(same(one, other) for one, other in zip(answer, expected))
    if isinstance(expected, int | float) and isinstance(answer, int | float):
        return bool(np.isclose(answer, expected, rtol=1e-6, atol=0, equal_nan=True))
    return (type(answer) is type(expected) and answer == expected) or str(answer) == str(expected)


def name_differences(answer: Answer, expected: Answer) -> str:
    """Which parts of an answer differ."""
    names = sorted(answer.keys() | expected.keys())
    return ", ".join(name for name in names if not same(answer.get(name), expected.get(name))) or "none"


def is_finite(answer: Answer) -> bool:
    """Whether all floats of all arrays are finite."""
    arrays = (value for value in answer.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return all(np.isfinite(values).all() for values in arrays)


def is_sound(answer: Answer, expected: Answer) -> bool:
    """Whether all numbers are finite, and as many as they were."""
    as_many = all(np.shape(answer.get(name)) == np.shape(value) for name, value in expected.items())
    return as_many and is_finite(answer)


def is_confirmed(kind: str, call: str, place: Path, inputs: Path, out: Path, answer: Answer, before: Answer) -> bool:
    """Whether an independent reader of the damaged input gives the same answer (see above)."""
    warnings.filterwarnings("ignore")
    if FORMATS[kind].ours or kind == "scvi-tools":
        return _confirm_ours(kind, call, place, inputs, answer, before)
    if kind == "settings":
        return same(answer["settings"], tomllib.loads(place.read_text())) and is_finite(answer)
    if kind == "minified-h5ad":
        with h5py.File(place) as file:  # part by part: other columns of obs, damaged or not, are not asked for
            names = [str(name) for name in _read_column(file["obs"][file["obs"].attrs["_index"]])]
            latents = read_elem(file["obsm/scvi_latent_qzm"])
        cells = anndata.AnnData(obs=pd.DataFrame(index=names), obsm={"scvi_latent_qzm": latents})
        return same(answer, describe_latents(cells))
    cells = read_independently(kind, place)
    if call in ("ingest", "check"):
        return same(answer, {name: before[name] if value is UNREADABLE else value for name, value in cells.items()})
    written = out.with_name("independent.h5ad")
    adata = _make(cells["counts"], cells["names"], cells["genes"])
    adata.obs["batch"] = _order_categories(kind, place, cells["obs/batch"])
    adata.write_h5ad(written)
    return same(answer, FORMATS["h5ad-csr"].calls[call](written, inputs, out.with_name("again")))


def _confirm_ours(kind: str, call: str, place: Path, inputs: Path, answer: Answer, before: Answer) -> bool:
    if kind == "store":
        # not by its consolidated metadata: those copies are old once an array was written anew
        cells = describe_cells(anndata.read_zarr(zarr.open_group(place, mode="r", use_consolidated=False)))
        if call in ("train", "minify"):
            return is_sound(answer, before) or (call == "minify" and len(answer["names"]) == len(cells["names"]))
        return same(answer, {name: value for name, value in cells.items() if not name.startswith("obs/source")})
    if kind == "minified" and call == "load":  # what is decoded from changed weights nobody else can know
        held = zarr.open_group(place, mode="r", use_consolidated=False)["uns/atlasvi/weights"]
        weights = {
            name: np.asarray(held[name.removeprefix("weights/")]) for name in answer if name.startswith("weights/")
        }
        return same(answer, weights) and is_sound(answer, before)
    if kind == "minified" and "latents" in answer:
        return same(answer["latents"], describe_latents(anndata.read_zarr(place))["latents"])
    if kind == "saved" and call == "load":
        if not (place / "adata.h5ad").exists():  # a warning says so, and the model is loaded without data
            return "latents" not in answer and same(answer, {k: before[k] for k in before if k != "latents"})
        model = SCVI.load(place, anndata.read_h5ad(place / "adata.h5ad"), accelerator="cpu")
        return is_finite(answer) and same(answer["latents"], model.get_latent_representation())
    if kind == "scvi-tools":
        held = torch.load(_without_notes(place / "model.pt"), weights_only=False)
        weights = {
            name: np.asarray(value) for name, value in held["model_state_dict"].items() if hasattr(value, "numpy")
        }
        run = TrainedRun(from_scvi_weights(weights, open_model(inputs / kind).model.settings), list(held["var_names"]))
        return same(answer, {**describe_model(run), "batches": answer["batches"]}) and set(answer) == set(before)
    if kind == "run" and call in ("load", "check", "export"):
        held = torch.load(place / "model.pt", weights_only=True)
        weights = {f"weights/{name}": value.float().numpy() for name, value in held["weights"].items()}
        return same(answer, {**weights, "genes": held["genes"], "batches": held["batch_categories"]})
    return is_sound(answer, before)


def _without_notes(file: Path) -> io.BytesIO:
    """A file of torch without the entries that say nothing of its numbers."""
    content = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            if not name.endswith((".storage_alignment", "serialization_id")):
                new.writestr(name, old.read(name))
    content.seek(0)
    return content


def read_all_text(place: Path) -> None:
    """Read each attribute of the HDF5 files at a place, and each dataset of text, with h5py alone."""

    def visit(name: str, item: Any) -> None:
        for key in [*item.attrs]:
            with contextlib.suppress(Exception):
                item.attrs[key]
        if isinstance(item, h5py.Dataset) and item.dtype == object:
            with contextlib.suppress(Exception):
                item[()]

    for path in list_files(place):
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                visit("/", file)
                file.visititems(visit)


def read_independently(kind: str, place: Path) -> Answer:
    """Cells of a source as other libraries read them; what anndata can't read of obs is UNREADABLE."""
    if kind == "soma":
        return _read_soma(place)
    if kind in READERS:
        return describe_cells(READERS[kind](place))
    if kind.startswith("zarr"):
        return _read_elements(zarr.open_group(place, mode="r", use_consolidated=False), "X")
    matrix = {"h5ad-raw": "raw/X", "h5ad-layer": "layers/counts"}.get(kind, "X")
    with h5py.File(place) as file:
        return _read_elements(file["mod/rna"] if kind == "h5mu" else file, matrix)


def is_unstable(kind: str, place: Path) -> bool:
    """Whether the library that reads a format gives other values of the same file when it reads it again.

    TileDB does where a tile can't be unpacked whole: it returns memory that was never written.
    """
    if kind != "soma":
        return False
    first = _read_soma(place)
    return any(not same(_read_soma(place), first) for _ in range(20))


def _order_categories(kind: str, place: Path, values: list[Any]) -> Any:
    """A column with its categories as the file orders them, as the weights of batches are in that order."""
    if kind.startswith("h5ad"):
        with h5py.File(place) as file:
            held = _read_column(file["obs/batch"])
            if isinstance(held.dtype, pd.CategoricalDtype):
                return pd.Categorical(values, list_values(held.cat.categories.to_series()))
    return values


def _read_elements(group: Any, matrix: str) -> Answer:
    """As anndata reads each part by itself, so that one that is damaged, and that we may not need, hides no other."""
    obs, var = group["obs"], group["raw/var" if matrix.startswith("raw") else "var"]
    names, genes = ([str(name) for name in _read_column(table[table.attrs["_index"]])] for table in (obs, var))
    answer = describe_cells(_make(_read_matrix(group[matrix]), names, genes))
    for name in obs.attrs["column-order"]:
        try:
            column = _read_column(obs[name])
            answer[f"obs/{name}"] = list_values(column) if len(column) == len(names) else UNREADABLE
        except Exception:
            answer[f"obs/{name}"] = UNREADABLE
    return answer


def _read_matrix(node: Any) -> Any:
    """As anndata reads it; sparse rows of a version that it does not know, by their three arrays."""
    try:
        return read_elem(node)
    except anndata._io.specs.registry.IORegistryError:
        if node.attrs.get("encoding-type") != "csr_matrix":
            raise
        parts = (node["data"][()], node["indices"][()], node["indptr"][()])
        return sparse.csr_matrix(parts, tuple(node.attrs["shape"]))


def _read_column(node: Any) -> pd.Series:
    """As anndata reads it; text that is not UTF-8, which anndata refuses, with a mark for each byte that is none.

    An array whose attributes do not say what it is, as those of old versions, or name an unknown version, is read as
    it is.
    """
    if "encoding-type" not in node.attrs:
        return _read_plain(node)
    try:
        return pd.Series(read_elem(node))
    except Exception:
        if isinstance(node, h5py.Dataset):
            return _read_plain(node)
        raise


def _read_plain(node: Any) -> pd.Series:
    return pd.Series(node.asstr(errors="replace")[()] if node.dtype == object else node[()])


def _read_tenx(place: Path) -> anndata.AnnData:
    with h5py.File(place) as file:
        matrix = file["matrix"]
        n_genes, n_cells = matrix["shape"][()]
        counts = sparse.csr_matrix(
            (matrix["data"][()], matrix["indices"][()], matrix["indptr"][()]), (n_cells, n_genes)
        )
        kinds = matrix["features"].get("feature_type")  # a file without them has nothing but genes
        kept = np.array([kinds is None or kinds[gene] == b"Gene Expression" for gene in range(n_genes)])
        names = [[text.decode(errors="replace") for text in matrix[name][()]] for name in ("barcodes", "features/id")]
    return _make(counts, *names)[:, kept]


def _make(counts: Any, cells: list[str], genes: list[str]) -> anndata.AnnData:
    return anndata.AnnData(sparse.csr_matrix(counts), pd.DataFrame(index=cells), pd.DataFrame(index=genes))


def _read_text(matrix: str, cells: str, genes: str, header: bool = False) -> Callable[[Path], anndata.AnnData]:
    def read(place: Path) -> anndata.AnnData:
        counts = scipy.io.mmread(io.BytesIO(_read_bytes(place / matrix).removeprefix(codecs.BOM_UTF8)))
        rows = [_read_rows(place / name)[header:] for name in (cells, genes)]
        typed = not header and max(map(len, rows[1][:2])) >= 3
        kept = [not typed or len(row) < 3 or row[2] == "Gene Expression" for row in rows[1]]
        names = [[row[0] for row in table] for table in rows]
        turned = counts.shape == (len(rows[1]), len(rows[0]))  # also where the two lists were swapped
        return _make(counts.T if turned else counts, *names)[:, np.array(kept)]

    return read


def _read_rows(file: Path) -> list[list[str]]:
    text = _read_bytes(file).decode("utf-8-sig", "replace")
    separator = "," if file.suffix == ".csv" else "\t"
    lines = [line.rstrip("\r") for line in text.rstrip("\r\n ").split("\n")]  # blank ones at the end are none
    return [next(csv.reader([line], delimiter=separator)) or [""] for line in lines]


def _read_bytes(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def _read_soma(place: Path) -> Answer:
    """Column by column, so that one that is damaged, and that we may not need, hides no other."""
    import tiledbsoma

    context = tiledbsoma.SOMATileDBContext(tiledb_config=dict(TILEDB_CONFIG))
    with tiledbsoma.Experiment.open(str(place), context=context) as experiment:
        obs, var = experiment.obs, experiment.ms["RNA"].var

        def read(table: Any, name: str) -> list[Any]:
            return table.read(column_names=[name]).concat()[name].to_pylist()

        cells, genes = (np.asarray(read(table, "soma_joinid")) for table in (obs, var))
        entries = experiment.ms["RNA"].X["data"].read().tables().concat()
        rows, columns, values = (entries[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
        matrix = (values, (np.searchsorted(cells, rows), np.searchsorted(genes, columns)))
        counts = sparse.coo_matrix(matrix, (len(cells), len(genes)))
        answer = describe_cells(_make(counts, read(obs, "obs_id"), read(var, "var_id")))
        for name in obs.schema.names:
            if name not in ("soma_joinid", "obs_id"):
                try:
                    answer[f"obs/{name}"] = read(obs, name)
                except Exception:
                    answer[f"obs/{name}"] = UNREADABLE
    return answer


def _read_table(place: Path) -> anndata.AnnData:
    parts = []
    for entry in tomllib.loads((place / "sources.toml").read_text())["source"]:
        part = anndata.read_h5ad(place / entry["path"])
        part.X = part.layers[entry["layer"]] if "layer" in entry else part.X
        parts.append(part)
    cells = anndata.concat(parts, join="outer")
    for name in cells.obs:  # a column of numbers in one file and of text in another is text, as short as it goes
        values = list_values(cells.obs[name])
        if len({type(value) for value in values if value is not None} & {str, float}) == 2:
            cells.obs[name] = [
                str(np.float32(value)).removesuffix(".0") if isinstance(value, float) else value for value in values
            ]
    return cells


READERS: dict[str, Callable[[Path], anndata.AnnData]] = {
    "10x-h5": _read_tenx,
    "10x-mtx": _read_text("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"),
    "kb": _read_text("cells_x_genes.mtx", "cells_x_genes.barcodes.txt", "cells_x_genes.genes.txt"),
    "alevin": _read_text("quants_mat.mtx", "quants_mat_rows.txt", "quants_mat_cols.txt"),
    "parse": _read_text("count_matrix.mtx", "cell_metadata.csv", "all_genes.csv", header=True),
    "sources": _read_table,
}
