"""Describe what a path holds, in a few lines."""

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atlasvi.engine.cli.recognise_ours import describe_checkpoints, find_whole, list_held, name_kind, name_part
from atlasvi.engine.minified.kept_posterior import EMBEDDING
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.run_files import CONFIG, RESULT, RUN_FORMAT
from atlasvi.engine.neighbours.index_file import HEADER, IndexFile
from atlasvi.engine.provenance import Provenance
from atlasvi.engine.terminal import count
from atlasvi.engine.training.summary import summarise_run
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.cells.cells_protocol import Columns
from atlasvi.loaders.cells.coded_columns import slice_column
from atlasvi.loaders.damage import reading
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.places.object_path import ObjectPath, Place, to_place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.open_source import open_source, recognise
from atlasvi.loaders.store_files import check_version

METRICS = "metrics.json"  # of a card's folder, which may hold a model too
FORMATS = {
    "h5ad": "AnnData or MuData in HDF5",
    "zarr": "AnnData in Zarr",
    "tenx_h5": "counts of 10x in HDF5",
    "mtx": "a matrix in Matrix Market with its lists of genes and cells",
    "soma": "a TileDB-SOMA experiment",
}
OF_DATA = ("atlasvi", "format_version", "data", "n_cells", "n_genes", "genes", "layer", "launch", "provenance", "seed")
"""What `config.json` holds besides keys and settings, and what is shown in another place."""

if TYPE_CHECKING:
    from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified


def describe(path: str | Path) -> Iterator[str]:
    """Lines about a source, or anything that atlasvi writes, or a part of it; SourceError for anything else.

    A folder that holds several of these is described by what is in it.
    """
    where = to_place(path)
    if (where / METRICS).is_file() and not (where / CONFIG).is_file():
        # imports torch, which takes seconds
        from atlasvi.engine.cli.describe_card import describe_card

        return describe_card(path)
    if (where / HEADER).is_file():
        return _describe_index(IndexFile(path))
    if isinstance(where, Path) and name_kind(where) is None and (whole := find_whole(where)) is not None:
        return _describe_part(where, whole)
    place = name_place(path)
    if place == "cell store":
        return _describe_cell_store(CellStore(path))
    if place == "minified store":
        return describe_minified_store(MinifiedStore(path))
    if place == "run":
        return describe_run(where)
    if place == "model":
        return _describe_model(path)
    if place == "minified data":
        # imports torch, which takes seconds
        from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified

        return describe_minified_store(ScviMinified(path))
    if len(held := list_held(Path(path))) > 1:
        return itertools.chain([f"{path}: a folder with {count(len(held), 'thing')} that atlasvi knows"], held)
    return _describe_source(path)


def _describe_part(part: Path, whole: Path) -> Iterator[str]:
    """Lines about a file or folder inside something that atlasvi wrote."""
    yield f"{part}: {name_part(part)} of {whole}:"
    yield from describe_checkpoints(part)
    yield from (f"  {line}" for line in describe(whole))


def _describe_cell_store(store: CellStore) -> Iterator[str]:
    attributes = store.attributes
    n_bytes = folder_bytes(store.path)
    density = store.nnz / max(store.n_cells * len(store.genes), 1)
    yield f"{store.path}: cell store (format {attributes['format_version']}, profile {attributes['profile']})"
    sizes = f"{count(store.n_cells, 'cell')} x {count(len(store.genes), 'gene')}"
    yield f"  {sizes}, {count(store.nnz, 'count')} ({density:.1%} of the matrix)"
    yield f"  largest count {attributes['largest_count']:,}, stored as {np.dtype(attributes['counts_dtype']).name}"
    yield (
        f"  {n_bytes / 1e6:,.1f} MB, {n_bytes / max(store.n_cells, 1):,.0f} bytes per cell, "
        f"{count(len(store.block_starts) - 1, 'block')}"
    )
    yield f"  {store.mixing}"
    for name, size in zip(store.sources, store.source_sizes):
        yield f"  source {name} ({count(size, 'cell')})"
    yield from _describe_obs(store)


def describe_minified_store(store: "MinifiedStore | ScviMinified") -> Iterator[str]:
    """Lines about a minified store, or about minified data of scvi-tools."""
    n_bytes = folder_bytes(store.path)
    kind, order = "minified for scvi-tools", "that of the file"
    if isinstance(store, MinifiedStore):
        kind, order = f"minified store (format {store.attributes['format_version']})", store.attributes["order"]
    yield f"{store.path}: {kind}"
    sizes = f"{count(store.n_cells, 'cell')} x {count(len(store.genes), 'gene')}"
    yield f"  {sizes}, {count(store.n_latent, 'latent dimension')} ({store.latents_dtype}), no counts"
    yield f"  {n_bytes / 1e6:,.1f} MB, {n_bytes / max(store.n_cells, 1):,.0f} bytes per cell"
    yield f"  embedding: {'obsm ' + EMBEDDING if store.has_embedding else 'none (make it with atlasvi embed)'}"
    known = isinstance(store, MinifiedStore) or store.has_model
    batch = store.setup.keys.batch_key or "none" if known else "see its model"
    yield f"  batch: {batch}; order: {order}"
    if isinstance(store, MinifiedStore) and (made := store.provenance) is not None:
        yield from (f"  {line}" for line in made.describe("minified"))
        if made.of is not None:
            yield from (f"  model {line}" for line in made.of.describe("trained"))
    if isinstance(store, MinifiedStore) and "mapped_from" in store.attributes:
        yield _describe_origin(store.path, store.attributes)
    yield from _describe_obs(store)


def _describe_origin(path: str, attributes: Mapping[str, Any]) -> str:
    """The line about the model that a model was mapped from."""
    from atlasvi.engine.model.trained_run import MappedFrom  # imports torch, which takes seconds

    with reading(path):
        return f"  mapped from {MappedFrom.from_saved(attributes['mapped_from'])}"


def _describe_index(index: IndexFile) -> Iterator[str]:
    header, n_bytes = index.header, folder_bytes(index.path)
    yield f"{index.path}: index of neighbours"
    sizes = f"{count(header.n_cells, 'cell')}, {count(header.n_latent, 'latent dimension')}"
    yield f"  {sizes}, {count(header.n_lists, 'list')}"
    yield f"  {n_bytes / 1e6:,.1f} MB, {n_bytes / header.n_cells:.1f} bytes per cell"
    for k, recalls in zip(header.ks, header.recalls):
        found = ", ".join(f"{recall:.3f} of {count(n, 'list')}" for n, recall in zip(header.probes, recalls))
        yield f"  share of the {k:,} nearest cells that is found, by lists that are searched: {found}"


def _describe_model(path: str | Path) -> Iterator[str]:
    from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools

    run = load_scvi_tools(path)
    yield f"{path}: a model of scvi-tools, {count(len(run.genes), 'gene')}"
    yield from (f"  {name}: {value}" for name, value in run.model_settings.items() if name != "n_genes")
    keys = {name: value for name, value in run.setup.keys.as_arguments().items() if name.endswith("_key") and value}
    yield from (f"  {name}: {value}" for name, value in keys.items())


def _describe_obs(data: Columns) -> Iterator[str]:
    """A line for each column; only of columns of numbers all cells are read, slice by slice."""
    for name in data.obs_columns:
        yield _describe_column(name, (values for _, values in slice_column(data, name)))


def _describe_column(name: str, slices: Iterable[pd.Series]) -> str:
    least, most, n_missing, dtype = np.inf, -np.inf, 0, np.dtype(object)
    for column in slices:
        dtype = column.dtype
        if isinstance(dtype, pd.CategoricalDtype):
            values = [str(value) for value in dtype.categories]
            shown = ", ".join(values[:6]) + (", ..." if len(values) > 6 else "")
            return f"  obs {name}: {count(len(values), 'category', 'categories')} ({shown})"
        if dtype.kind not in "iuf":
            break
        known = column.dropna()
        n_missing += len(column) - len(known)
        if len(known):
            least, most = min(least, known.min()), max(most, known.max())
    if least > most:  # not numbers, or all are missing
        return f"  obs {name}: {'text' if dtype == np.dtype(object) else dtype.name}"
    return f"  obs {name}: {dtype.name}, {least:g} to {most:g}{f', {n_missing:,} missing' if n_missing else ''}"


def describe_run(run: Place) -> Iterator[str]:
    """Lines about a run, finished or not."""
    config = read_json(run / CONFIG)
    check_version(str(run / CONFIG), "run", config, RUN_FORMAT)
    with reading(str(run / CONFIG)):
        spec = DataSpec.from_record(config["data"])
        made = Provenance.from_record(config.get("provenance"))
        settings = config["settings"]
    yield f"{run}: run of atlasvi {config.get('atlasvi', '0.1')}"
    yield f"  data: {spec}, {count(config['n_cells'], 'cell')} x {count(config['n_genes'], 'gene')}"
    keys = {name: value for name, value in config.items() if name not in OF_DATA and not name.endswith("_sha256")}
    for name, value in keys.items():
        if value and not isinstance(value, dict):
            yield f"  {name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
    if "mapped_from" in config:
        yield _describe_origin(str(run / CONFIG), config)
    yield from (f"  {line}" for line in (made.describe("trained") if made else [f"seed: {config.get('seed')}"]))
    if not (run / RESULT).is_file():
        yield f"  not finished: go on with {_name_launch(made)} train {shlex.quote(str(spec))} --out {run} --resume"
        return
    outcome = read_json(run / RESULT)
    with reading(str(run / RESULT)):
        if "informative_latents" in outcome:  # missing in runs of the first version
            yield f"  latent dimensions that carry information: {outcome['informative_latents']}"
        yield from (f"  {line}" for line in summarise_run(outcome, settings))


def _name_launch(made: Provenance | None) -> str:
    """The words that started a run, before its command: `atlasvi`, perhaps with a launch."""
    launched = re.match(r"atlasvi launch .*? --(?= )", "" if made is None else made.command)
    return "atlasvi" if launched is None else launched[0]


def _describe_source(path: str | Path) -> Iterator[str]:
    source = open_source(path)
    try:
        yield f"{source.path}: {FORMATS[source.spec.format or recognise(str(source.path))]}"
        nnz = f", {count(source.nnz, 'count')}" if source.nnz is not None else ""
        yield f"  {count(source.n_cells, 'cell')} x {count(len(source.var), 'gene')}{nnz}"
        yield f"  genes: {', '.join(map(str, source.var.index[:4]))}{', ...' if len(source.var) > 4 else ''}"
        yield from (f"  {note}" for note in source.notes)
        if len(source.layers) > 1:  # else they are in the only place that there is
            yield f"  counts could also be in (--layer): {', '.join(source.layers)}"
        head = source.read_obs(0, min(source.n_cells, 100_000))
        yield from (_describe_column(str(name), [head[name]]) for name in head)
    finally:
        source.close()


def folder_bytes(path: str | Path) -> int:
    """Size of a file, or of all files in a folder."""
    place = to_place(path)
    if isinstance(place, ObjectPath):
        return place.stat().st_size if place.is_file() else sum(place.list_sizes().values())
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
