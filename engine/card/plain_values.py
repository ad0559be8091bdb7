"""Frozen dataclasses as plain JSON values and back, by the types of their fields.

An `Estimate` is {"value": ..., "error": ...}; NaN and infinity are null, because JSON has neither. A field that is
missing in the plain values takes its default, so what an older atlasvi wrote is read; one that is unknown is ignored.
"""

import dataclasses
import functools
import math
import types
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from atlasvi.engine.card.draw_errors import Estimate

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dictionaries, lists, numbers, text and None."""
    if isinstance(value, Estimate):
        return {name: to_plain(getattr(value, name)) for name in value._fields}
    if dataclasses.is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): to_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(kind: type[T], values: Any) -> T:
    """An instance of a dataclass. Raises TypeError, ValueError, KeyError if the values are not of one."""
    return _read(kind, values)


def _read(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if kind is Estimate:
        return Estimate(*(_read(float, value[name]) for name in Estimate._fields))
    if hasattr(kind, "__dataclass_fields__"):
        given = _mapping(value)
        return kind(**{name: _read(hint, given[name]) for name, hint in _hints(kind).items() if name in given})
    inner = get_args(kind)
    if get_origin(kind) is types.UnionType:  # of a kind and None
        return None if value is None else _read(inner[0], value)
    if get_origin(kind) is dict:
        return {name: _read(inner[1], each) for name, each in _mapping(value).items()}
    if get_origin(kind) is tuple:
        return tuple(_read(inner[0], each) for each in value)
    if kind is float:
        return math.nan if value is None else float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
