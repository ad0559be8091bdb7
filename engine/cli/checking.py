"""`atlasvi check`: read a store, run or model completely: compare every checksum, decode every chunk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atlasvi.engine.minified.kept_posterior import LIBRARY
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.run_files import CONFIG, MODEL, RUN_FORMAT
from atlasvi.engine.neighbours.index_file import HEADER, IndexFile
from atlasvi.engine.scvi_tools.model_directories import SAVED, open_model
from atlasvi.engine.terminal import count
from atlasvi.engine.training.checkpoint_files import list_checkpoints, load_checkpoint, read_content
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.manifest import MANIFEST, find_damage, read_json, read_manifest, write_manifest
from atlasvi.loaders.places.object_path import Place, need_local, to_place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version

SLICE_CELLS = 2**16
STORES = ("cell store", "minified store")
NO_LIST = (
    "it has no list of its files (an older atlasvi or another program wrote it), so lost chunks may be read as "
    "zeros, and only parts with their own checksums are compared"
)


class DamageError(AtlasviError, ValueError):
    """Something is damaged; the message has the number of problems, and the first one."""


def check(path: str | Path, renew: bool = False) -> Iterator[str]:
    """Check all of a cell store, minified store, index, run, model directory or source; yields lines on the findings.

    renew  accept a store or run as it is now: write a new list of its files, once it can be read
    Raises DamageError after the lines on what is damaged, SourceError if `path` is none of these.
    """
    place, damage = to_place(path), list[str]()
    files, list_name = None, MANIFEST if (place / MANIFEST).is_file() else SAVED
    if place.is_dir():
        try:
            files = read_manifest(place, list_name)
        except SourceError as error:
            damage.append(str(error))
    if renew and files is not None:
        local = need_local(path, "a new list of files is written")
        there = [name for name in files if (local / name).is_file()]
        write_manifest(local, None if name_place(local) in STORES else there, list_name=list_name)
        files = read_manifest(place, list_name)
        yield f"{path}: a new list of its files was written ({len(files or {}):,} files)"
    elif files is not None:
        damage += find_damage(place, files, lambda name: True)
        yield f"{path}: {count(len(files), 'file')} checked against their sizes and checksums"
    elif not damage:
        yield f"{path}: {NO_LIST}"
    try:
        yield from _read_all(place)
    except AtlasviError as error:
        damage.append(str(error))
    yield from damage
    if damage:
        raise DamageError(f"{path} is damaged: {count(len(damage), 'problem')}, the first: {damage[0]}")
    yield f"{path}: nothing is damaged"


def _read_all(path: Place) -> Iterator[str]:
    """Decode everything; yields lines on what was read. Raises the errors of reading."""
    if (path / HEADER).is_file():
        return _read_index(IndexFile(str(path)))
    kind = name_place(path)
    if kind == "minified store":
        return _read_minified(MinifiedStore(path))
    if kind in ("run", "model"):
        return _read_run(path)
    return _read_cells(open_cells(str(path), like=DataSpec(str(path), empty_cells="keep")))


def _read_cells(data: CellData) -> Iterator[str]:
    """All blocks and all of obs; for a cell store also the totals of each gene."""
    totals = np.zeros(len(data.genes), np.int64)
    try:
        for block in range(len(data.block_starts) - 1):
            rows = data.read_block(block)
            if len(rows):
                _, genes, counts = rows.to_csr()
                totals += np.bincount(genes, counts, len(totals)).astype(np.int64)
        for start in range(0, data.n_cells, SLICE_CELLS):
            data.read_obs(start, min(start + SLICE_CELLS, data.n_cells))
        if isinstance(data, CellStore):
            for name in data.obs_columns:  # logs columns of an older store whose values may be lost
                data.read_column(name, 0, 0)
            if not np.array_equal(totals, data.statistics["gene_totals"]):
                raise SourceError(
                    f"{data.path}: counts do not add up to uns/atlasvi/gene_totals: copy the store again, or ingest "
                    "its sources again."
                )
    finally:
        data.close()
    n_blocks, n_rows = count(len(data.block_starts) - 1, "block"), count(data.n_cells, "row")
    yield f"{data.path}: {n_blocks} of counts and {n_rows} of obs decoded"


def _read_index(index: IndexFile) -> Iterator[str]:
    """All lists of an index of neighbours."""
    index.check_lists(np.arange(index.header.n_lists))
    yield f"{index.path}: {count(index.header.n_lists, 'list')} of {count(index.header.n_cells, 'cell')} read"


def _read_minified(store: MinifiedStore) -> Iterator[str]:
    """All latents, all of obs, and the model."""
    store.model()
    store.setup.read_codes(store)
    for start in range(0, store.n_cells, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, store.n_cells)
        qzm, qzv = store.read_latent(start, stop)
        library = store.read_column(LIBRARY, start, stop).to_numpy()
        for name, fine in (("qzm", np.isfinite(qzm)), ("qzv", qzv > 0), (LIBRARY, library >= 0)):
            if not fine.all():
                cell = start + int(np.argwhere(~fine)[0][0])
                raise SourceError(f"{store.path}: {name} of cell {cell:,} is NaN or out of range: minify again.")
        if store.has_embedding:
            store.read_embedding(slice(start, stop))  # its chunks have checksums
    yield f"{store.path}: latents and obs of {count(store.n_cells, 'cell')}, and the model, decoded"


def _read_run(path: Place) -> Iterator[str]:
    """The model, if the run is finished, and all checkpoints."""
    if (path / MODEL).is_file():
        open_model(path)
        yield f"{path}: the model was read"
    if (path / CONFIG).is_file():
        check_version(str(path / CONFIG), "run", read_json(path / CONFIG), RUN_FORMAT)
    checkpoints = list_checkpoints(path / "checkpoints")
    for checkpoint in checkpoints:
        load_checkpoint(read_content(checkpoint), str(checkpoint))
    yield f"{path}: {count(len(checkpoints), 'checkpoint')} read"
