"""How one source is to be read: `PATH::layer=raw,gene_column=feature_id`, or an entry of a table of sources.

A table is a TOML file with one entry a source; paths are relative to its folder:

    [[source]]
    path = "atlas.h5ad"
    layer = "raw"
"""

import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from atlasvi.loaders.errors import SourceError

CHOICES = {
    "gene_versions": ("keep", "drop"),
    "missing_chunks": ("refuse", "zeros"),
    "values": ("counts", "numbers"),
}


@dataclass(frozen=True)
class SourceSpec:
    """A source and how to read it; what is None is chosen when it is opened (see `open_source`).

    layer, gene_column, measurement  as `open_source` says
    gene_versions   'drop' takes the version off Ensembl ids: ENSG00000141510.16 becomes ENSG00000141510
    missing_chunks  'zeros' takes chunks of a file that are not there for zeros, 'refuse' for an incomplete copy
    values          'counts' are whole; 'numbers' may be fractions, which the normal likelihood alone models
    """

    path: str
    layer: str | None = None
    gene_column: str | None = None
    measurement: str | None = None
    gene_versions: str = "keep"
    missing_chunks: str = "refuse"
    values: str = "counts"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SourceError(f"{self.path}: {name} is {getattr(self, name)!r}; it can be {' or '.join(known)}.")

    @property
    def fill_missing(self) -> bool:
        """Whether missing chunks are taken for zeros."""
        return self.missing_chunks == "zeros"

    def __str__(self) -> str:
        """`PATH::OPTION=VALUE,...`, as `parse_source` reads it; PATH alone where no option is other than usual."""
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) != getattr(SourceSpec, name)}
        options = ",".join(f"{name}={value}" for name, value in given.items())
        return f"{self.path}::{options}" if options else self.path

    def make_absolute(self) -> "SourceSpec":
        """The same, for processes that run in other folders; what is no path of this machine stays."""
        return replace(self, path=os.path.abspath(self.path)) if os.path.exists(self.path) else self


OPTIONS = tuple(field.name for field in fields(SourceSpec) if field.name != "path")


def parse_source(text: str | Path, **defaults: str | None) -> SourceSpec:
    """`PATH` or `PATH::OPTION=VALUE,...` as a SourceSpec; `defaults` are what options are that it does not give.

    Raises SourceError for an option that there is not.
    """
    path, mark, options = str(text).rpartition("::")
    if not mark or Path(text).exists():
        path, options = str(text), ""
    given = dict(defaults)
    for option in filter(None, options.split(",")):
        name, equals, value = (part.strip() for part in option.partition("="))
        if not (equals and value):
            raise SourceError(f"{text}: {option!r} is no option; write PATH::OPTION=VALUE,OPTION=VALUE.")
        given[name] = value
    return make_spec(path, given)


def make_spec(path: str, options: dict[str, str | None]) -> SourceSpec:
    """A SourceSpec of a path and options by name. Raises SourceError for one that there is not."""
    for name, value in options.items():
        if name not in OPTIONS or not (value is None or isinstance(value, str)):
            raise SourceError(f"{path}: {name} = {value!r} is no option of a source; there are: {', '.join(OPTIONS)}.")
    return replace(SourceSpec(path), **{name: value for name, value in options.items() if value is not None})


def list_sources(sources: Sequence[str | Path], **defaults: str | None) -> list[SourceSpec]:
    """All sources, those of tables in their place. Raises SourceError where a table can't be read."""
    specs: list[SourceSpec] = []
    for source in sources:
        if str(source).lower().endswith(".toml") and Path(source).is_file():
            specs += read_table(Path(source), defaults)
        else:
            specs.append(parse_source(source, **defaults))
    return specs


def read_table(table: Path, defaults: dict[str, str | None]) -> Iterator[SourceSpec]:
    """Yield the sources of a TOML table. Raises SourceError where it is none."""
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
