"""How data is read: `PATH::layer=raw,gene_column=id`, an entry of a table of sources, or a `DataSpec` in Python.

A table is a TOML file with one entry per source; paths are relative to its folder:

    [[source]]
    path = "atlas.h5ad"
    layer = "raw"
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import restore_address
from atlasvi.loaders.places.object_path import Place, is_remote, name_bucket, to_place
from atlasvi.loaders.places.storage import STORAGE_OPTIONS, Storage, complete_storage, make_storage, usual_storage

CHOICES = {
    "gene_versions": ("keep", "drop"),
    "missing_chunks": ("refuse", "zeros"),
    "values": ("counts", "numbers"),
    "empty_cells": ("refuse", "keep", "drop"),
    "missing_genes": ("refuse", "zeros"),
}
MEMORY = "memory"
ANNDATA_FORMATS = ("h5ad", "zarr", MEMORY)
FORMAT_OPTIONS = ("layer", "gene_column", "measurement")  # options whose meaning depends on the format of the data
OPTION = re.compile(r'\s*(?P<name>[^=,"]*?)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)')


@dataclass(frozen=True)
class DataSpec:
    """Where data is and how it is read. An option that was not given is None; then the first value listed below holds.

    Every object that opens data holds the DataSpec that it was opened with. A run and a model keep that of their data,
    so that the data is opened in the same way when the run is resumed or the model is given a path.

    layer, gene_column, measurement  as in `open_source`; None: chosen when the data is opened
    gene_versions   'keep', or 'drop' to remove the version of Ensembl ids: ENSG00000141510.16 becomes ENSG00000141510
    missing_chunks  'refuse' a file with missing chunks as an incomplete copy; or 'zeros' to read them as zeros
    values          'counts' are whole; 'numbers' may be fractions, which only the normal likelihood accepts
    empty_cells     'refuse' cells without counts, 'keep' them, or, only in ingest, 'drop' them
    missing_genes   'refuse' data that lacks genes of a model, or count them as 'zeros' in every cell; for models only
    endpoint, region, profile, anonymous  how the bucket of an address is reached (see places/storage.py)
    format          the format that was recognised when the data was opened; not an option
    """

    path: str
    layer: str | None = None
    gene_column: str | None = None
    measurement: str | None = None
    gene_versions: str | None = None
    missing_chunks: str | None = None
    values: str | None = None
    empty_cells: str | None = None
    missing_genes: str | None = None
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in (None, *known):
                raise SourceError(f"{self.path}: {name} is {getattr(self, name)!r}; it can be {' or '.join(known)}.")
        if given := {name: value for name in STORAGE_OPTIONS if (value := getattr(self, name)) is not None}:
            make_storage(given)
            if not is_remote(self.path):
                name = next(iter(given))
                raise SourceError(f"{self.path}: it is a local path, so leave out {name}, which is about buckets.")

    @property
    def options(self) -> dict[str, str]:
        """The options that were given, by name."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    @property
    def fill_missing(self) -> bool:
        """Whether missing chunks are read as zeros."""
        return self.missing_chunks == "zeros"

    @property
    def takes_fractions(self) -> bool:
        """Whether values that are not whole are accepted."""
        return self.values == "numbers"

    @property
    def storage(self) -> Storage:
        """How the bucket of an address is reached."""
        return complete_storage({name: getattr(self, name) for name in STORAGE_OPTIONS})

    @property
    def place(self) -> Place:
        """Where the data is."""
        return to_place(self.path, self.storage)

    def __str__(self) -> str:
        """`PATH::OPTION=VALUE,...`, as `parse_source` reads it; only PATH if no option was given."""
        options = ",".join(f"{name}={_quote(value)}" for name, value in self.options.items())
        return f"{self.path}::{options}" if options else self.path

    def to_record(self) -> dict[str, str]:
        """The fields that are not None, as they are stored in files; `from_record` reads them."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    @classmethod
    def from_record(cls, record: Any) -> "DataSpec":
        """The DataSpec of a record of `to_record`, or of `PATH::OPTION=VALUE,...`, which the first versions stored.

        Raises SourceError for anything else.
        """
        if isinstance(record, str):
            return parse_source(record)
        names = {field.name for field in fields(cls)}
        is_record = isinstance(record, Mapping) and all(isinstance(value, str) for value in record.values())
        if not is_record or not {"path"} <= set(record) <= names:
            raise SourceError(f"{record!r:.100} does not say how data was opened: the file that holds it is damaged.")
        return cls(**record)

    def make_absolute(self) -> "DataSpec":
        """The same with an absolute path, for processes in other folders; anything but a local path is unchanged."""
        return replace(self, path=os.path.abspath(self.path)) if os.path.exists(self.path) else self

    def leave_out_storage(self) -> "DataSpec":
        """The same without the options of how a bucket is reached."""
        left_out: dict[str, Any] = dict.fromkeys(STORAGE_OPTIONS)
        return replace(self, **left_out)

    def contradicts(self, other: "DataSpec") -> bool:
        """Whether both give a layer, a gene column or a measurement for the same format, and these differ."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in FORMAT_OPTIONS]
        return self.format == other.format and any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def fill_from(self, usual: "DataSpec", format: str) -> "DataSpec":
        """The same data, in format `format`; options that were not given are taken from `usual` where they apply.

        A layer, a gene column or a measurement applies if the data of `usual` has the same or an unknown format.
        """
        same_format = usual.format in (None, format) or {usual.format, format} <= set(ANNDATA_FORMATS)
        left_out = STORAGE_OPTIONS if same_format else (*STORAGE_OPTIONS, *FORMAT_OPTIONS)
        filled = {**{name: getattr(usual, name) for name in OPTIONS if name not in left_out}, **self.options}
        return replace(self.reach_like(usual), format=format, **filled)

    def reach_like(self, usual: "DataSpec") -> "DataSpec":
        """The same, its bucket reached as that of `usual` where that was not given and both are in one."""
        if name_bucket(self.path) is None or name_bucket(self.path) != name_bucket(usual.path):
            return self
        given = {name: value for name in STORAGE_OPTIONS if (value := getattr(self, name)) is not None}
        return replace(self, **{**{name: getattr(usual, name) for name in STORAGE_OPTIONS}, **given})


OPTIONS = tuple(field.name for field in fields(DataSpec) if field.name not in ("path", "format"))


def parse_source(source: DataSpec | str | Path, **defaults: str | None) -> DataSpec:
    """`PATH` or `PATH::OPTION=VALUE,...` as a DataSpec; `defaults` are the options that it does not give.

    A value that contains a comma or a quotation mark must be quoted, as in JSON.
    Raises SourceError for an unknown option, and for what is no path.
    """
    if isinstance(source, DataSpec):
        return make_spec(source.path, {**defaults, **source.options})
    if not isinstance(source, (str, os.PathLike, Place)):
        raise SourceError(
            f"The data is of type {type(source).__name__}: give the path of a cell store or of any source. An AnnData "
            "in memory is trained and asked by atlasvi.engine.SCVI; or write it to a file: adata.write_h5ad(PATH)."
        )
    text = restore_address(source)
    path, mark, options = text.rpartition("::")
    if not mark or os.path.exists(text):  # False for a name that is too long, too
        path, options = text, ""
    given, at = dict(defaults), 0
    while at < len(options):
        found = OPTION.match(options, at)
        if found is None or not (found["name"] and found["value"]):
            wrong = options[at:].split(",")[0].strip()
            raise SourceError(f"{text}: {wrong!r} is not an option; write PATH::OPTION=VALUE,OPTION=VALUE.")
        given[found["name"]] = _unquote(text, found["value"])
        at = found.end()
    return make_spec(path, given)


def make_spec(path: str, options: Mapping[str, Any]) -> DataSpec:
    """A DataSpec from a path and options by name. Raises SourceError for an unknown option."""
    for name, value in options.items():
        if name not in OPTIONS or not (value is None or isinstance(value, str)):
            raise SourceError(f"{path}: {name} = {value!r} is not a source's option; there are: {', '.join(OPTIONS)}.")
    if is_remote(path):  # kept, so that a run is resumed without them
        options = {**usual_storage().options, **{name: value for name, value in options.items() if value is not None}}
    return replace(DataSpec(path), **options)


def list_sources(sources: Sequence[str | Path], **defaults: str | None) -> list[DataSpec]:
    """All sources; a table is replaced by its entries. Raises SourceError where a table can't be read."""
    specs: list[DataSpec] = []
    for source in sources:
        if str(source).lower().endswith(".toml") and Path(source).is_file():
            specs += read_table(Path(source), defaults)
        else:
            specs.append(parse_source(source, **defaults))
    return specs


def read_table(table: Path, defaults: Mapping[str, str | None]) -> Iterator[DataSpec]:
    """Yield the sources of a TOML table. Raises SourceError where it is not a table of sources."""
    try:
        content = tomllib.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{table}: it can't be read as TOML ({error}).") from error
    entries = content.get("source")
    if not isinstance(entries, list) or not entries or set(content) != {"source"}:
        raise SourceError(f'{table}: a table of sources has entries [[source]], each with path = "..."; nothing else.')
    for entry in entries:
        options = dict(entry) if isinstance(entry, dict) else {}
        path = options.pop("path", None)
        if not isinstance(path, str):
            raise SourceError(f'{table}: an entry [[source]] has no path = "...": {entry}.')
        yield make_spec(path if "://" in path else str(table.parent / path), {**defaults, **options})


def _unquote(text: str, value: str) -> str:
    try:
        return json.loads(value) if value.startswith('"') else value
    except ValueError as error:
        raise SourceError(f"{text}: {value} is not a quoted value as in JSON ({error}).") from error


def _quote(value: str) -> str:
    """A value as it is written after a path."""
    plain = value == value.strip() and not set(value) & set(',"')
    return value if plain else json.dumps(value, ensure_ascii=False)
