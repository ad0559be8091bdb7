"""Names of `obs` and `var` columns that a store can't hold, and the names that they get instead.

A store keeps each column at the path of its name, as AnnData does. A few names can't be such a path, or have another
meaning there; all others stay as they are, with slashes and spaces, even if they differ only by case.
"""

from collections.abc import Iterable, Sequence

RESERVED = ("source", "source_row")  # written by ingest: which source, and which row of it, a cell comes from
INDEX = "_index"
# Zarr keeps metadata in files of the first names; the others can't be part of a path.
NO_SEGMENTS = {"", ".", "..", "zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
MOST_BYTES = 255  # of the name of a file
KEPT_BYTES = 200  # of a name that is cut: leaves room for a suffix that makes it unique


def set_reserved_aside(names: Iterable[str]) -> dict[str, str]:
    """New names for columns that `source` and `source_row` would overwrite: 'source' becomes 'source_before'.

    If a source is a cell store itself, its own 'source_before' becomes 'source_before_before', and so on.
    """
    there, renamed = set(names), dict[str, str]()
    for name in RESERVED:
        while name in there:
            renamed[name] = f"{name}_before"
            name = f"{name}_before"
    return renamed


def find_storable_names(names: Sequence[str]) -> dict[str, str]:
    """New names for columns whose names no store can hold; `names` are unique.

    These are the name of AnnData's index, names that are not a path or are too long for a file, and names that lead
    through another column (`a/b` beside `a`).
    """
    taken = {_to_path(name): name for name in names}
    folders = {path[0] for path in taken if len(path) > 1}  # a column there would be led through
    renamed: dict[str, str] = {}
    for name in names:
        path = _to_path(name)
        if _is_storable(name, path) and taken[path] == name and not _leads_through(path, taken):
            continue
        base = "_index_before" if name == INDEX else _make_storable(name)
        new, k = base, 2
        while (new,) in taken or new in folders:
            new, k = f"{base}_{k}", k + 1
        renamed[name] = taken[(new,)] = new
    return renamed


def _to_path(name: str) -> tuple[str, ...]:
    """The segments of the path of a column; Zarr reads a backslash as a slash."""
    return tuple(name.replace("\\", "/").split("/"))


def _is_storable(name: str, path: tuple[str, ...]) -> bool:
    return name != INDEX and "\0" not in name and all(map(_is_file_name, path))


def _is_file_name(segment: str) -> bool:
    return segment not in NO_SEGMENTS and len(segment.encode("utf-8", "replace")) <= MOST_BYTES


def _leads_through(path: tuple[str, ...], taken: dict[tuple[str, ...], str]) -> bool:
    return path[0] == INDEX or any(path[:k] in taken for k in range(1, len(path)))


def _make_storable(name: str) -> str:
    """The name as one path segment, cut where it is too long."""
    text = "".join("_" if sign in "/\\\0" else sign for sign in name).encode("utf-8", "replace")
    cut = text.decode() if len(text) <= MOST_BYTES else text[:KEPT_BYTES].decode("utf-8", "ignore")
    return f"column_{cut}" if cut in NO_SEGMENTS else cut
