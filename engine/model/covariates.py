"""The columns of `obs` that a model uses, and the codes that their values become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cells_protocol import Columns
from atlasvi.loaders.cells.coded_columns import CodedColumn, code_column, recode, slice_column
from atlasvi.loaders.errors import ColumnError

Category = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class SetupKeys:
    """The columns of `obs` that a model uses, by their role: the arguments of `train` and `setup_anndata`."""

    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The keys from arguments of these names; others are ignored. A list, a name or None becomes a tuple."""
        values: dict[str, Any] = {key: arguments.get(key) for key in KEYS}
        for key in (kind.key for kind in KINDS if kind.several):
            named = values[key]
            values[key] = (named,) if isinstance(named, str) else tuple(named or ())
        return cls(**values)

    def as_arguments(self) -> dict[str, Any]:
        """The keys as files keep them: a list where a key may name several columns, None where a key is not set."""
        values = {key: getattr(self, key) for key in KEYS}
        return {key: (list(value) or None) if isinstance(value, tuple) else value for key, value in values.items()}


KEYS = tuple(each.name for each in fields(SetupKeys))


@dataclass(frozen=True)
class Kind:
    """A role that columns of `obs` can have in a model.

    code      name under which `Batch.codes` holds the encoded column
    key       field of SetupKeys that names the columns of this role; `keys` if it may name several
    title     how messages call the column
    noun      how messages call its categories, in the plural; None for columns of numbers
    positive  whether all numbers must be above 0
    """

    code: str
    key: str
    title: str
    noun: str | None = None
    positive: bool = False

    @property
    def several(self) -> bool:
        """Whether there may be several columns of this kind."""
        return self.key.endswith("_keys")

    @property
    def saved(self) -> str:
        """The name under which files keep the categories."""
        return "categorical_covariates" if self.code == "categories" else f"{self.code}_categories"


BATCH = Kind("batch", "batch_key", "batch", "batches")
LABELS = Kind("labels", "labels_key", "labels", "labels")
CATEGORIES = Kind("categories", "categorical_covariate_keys", "category", "categories")
CONTINUOUS = Kind("continuous", "continuous_covariate_keys", "continuous")
SIZE_FACTOR = Kind("size_factor", "size_factor_key", "size factor", positive=True)
KINDS = (BATCH, LABELS, CATEGORIES, CONTINUOUS, SIZE_FACTOR)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The columns of `obs` that a model uses, and the categories of each, in the order of their codes.

    A category is text, a number or a truth value, as obs holds it; values of other types (dates, intervals) become
    text. Categories are compared by value: 1, 1.0 and np.int8(1) are one category.

    categories       by the code of each categorical kind: column -> categories
    category_dtypes  of columns whose categories are all numbers or all truth values: 'int64', 'float32', 'bool', ...
    layer            the layer that held the counts; None: X
    n_cells          number of cells that the model was set up with
    """

    keys: SetupKeys = SetupKeys()
    categories: dict[str, dict[str, list[Category]]] = field(default_factory=dict)
    category_dtypes: dict[str, str] = field(default_factory=dict)
    layer: str | None = None
    n_cells: int = 0

    @classmethod
    def from_saved(cls, content: Mapping[str, Any]) -> Self:
        """A setup from the fields that a file of any format version keeps. Format 1 wrote numbers as text.

        Raises ValueError if a part is of another type, or if there are categories without the name of their column.
        """
        dtypes = content.get("category_dtypes") or {}
        if not isinstance(dtypes, dict) or not all(isinstance(word, str) for pair in dtypes.items() for word in pair):
            raise ValueError(f"its category_dtypes are {dtypes!r}")

        def restore(column: str, known: Sequence[Any] | None) -> list[Category]:
            for value in known or ():
                if not isinstance(value, str | int | float):
                    raise ValueError(f"it holds a category {value!r}, which is neither text nor a number")
            return [_parse(value, dtypes[column]) if column in dtypes else value for value in known or ()]

        named = {kind.key: list(content.get(kind.saved) or ()) for kind in KINDS if kind.noun and kind.several}
        keys, categories = SetupKeys.from_arguments({**named, **content}), {}
        for key in KEYS:
            named_here = getattr(keys, key)
            for name in named_here if isinstance(named_here, tuple) else (named_here,):
                if not isinstance(name, str) and named_here is not None:
                    raise ValueError(f"{key} names a column by {name!r}, which is not text")
        for kind in KINDS:
            known, columns = content.get(kind.saved) or (), _columns(keys, kind)
            if kind.noun is None or not (known or columns):
                continue
            if not columns:
                raise ValueError(f"it holds {kind.noun} but does not name their column")
            by_column = known if isinstance(known, Mapping) else {columns[0]: known}
            categories[kind.code] = {column: restore(column, by_column[column]) for column in columns}
        others = {name: content[name] for name in ("layer", "n_cells") if name in content}
        if not isinstance(others.get("layer"), str | None) or not isinstance(others.get("n_cells", 0), int):
            raise ValueError(f"its layer or its n_cells is of another type: {others}")
        return cls(keys=keys, categories=categories, category_dtypes=dtypes, **others)

    def to_saved(self) -> dict[str, Any]:
        """The setup as plain values, as files keep it."""
        saved: dict[str, Any] = {}
        for kind in KINDS:
            known = self.categories.get(kind.code, {})
            if kind.noun is None or not kind.several:
                saved[kind.key] = list(self.columns(kind)) if kind.several else getattr(self.keys, kind.key)
            if kind.noun is not None:
                saved[kind.saved] = dict(known) if kind.several else next(iter(known.values()), [])
        return {**saved, **{name: getattr(self, name) for name in ("category_dtypes", "layer", "n_cells")}}

    def columns(self, kind: Kind) -> tuple[str, ...]:
        """The columns of a kind."""
        return _columns(self.keys, kind)

    @property
    def batch_categories(self) -> list[Category]:
        """The categories of the batch; empty without a batch key."""
        return next(iter(self.categories.get(BATCH.code, {}).values()), [])

    @property
    def labels_categories(self) -> list[Category]:
        """The categories of the labels; empty without a labels key."""
        return next(iter(self.categories.get(LABELS.code, {}).values()), [])

    @property
    def categorical_covariates(self) -> dict[str, list[Category]]:
        """The categories of each categorical covariate besides the batch, by its column."""
        return self.categories.get(CATEGORIES.code, {})

    def extend(self, found: "Setup") -> Self:
        """This setup, with the new categories of further data appended in sorted order after its own.

        found  the setup learned from that data; a column that is missing there adds nothing
        """

        def add(known: list[Category], there: list[Category]) -> list[Category]:
            new = [value for value, place in zip(there, find_categories(known, there)) if place is None]
            return [*known, *sorted(new, key=lambda value: (isinstance(value, str), value))]

        categories = {
            code: {column: add(values, found.categories.get(code, {}).get(column, [])) for column, values in of.items()}
            for code, of in self.categories.items()
        }
        by_column = [each for of in categories.values() for each in of.items()]
        with_text = {column for column, known in by_column if any(isinstance(value, str) for value in known)}
        dtypes = {column: dtype for column, dtype in self.category_dtypes.items() if column not in with_text}
        return replace(self, categories=categories, category_dtypes=dtypes, n_cells=found.n_cells)

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of ModelSettings that follow from the setup."""
        return {
            "n_batches": max(len(self.batch_categories), 1),
            "n_labels": max(len(self.labels_categories), 1),
            "n_categories": tuple(len(categories) for categories in self.categorical_covariates.values()),
            "n_continuous": len(self.columns(CONTINUOUS)),
            "use_size_factor": bool(self.columns(SIZE_FACTOR)),
        }

    def read_codes(self, data: Columns, labels: bool = False) -> dict[str, np.ndarray]:
        """Covariates of all cells by kind: [cells], or [cells, columns] for kinds that may have several.

        Categories are codes in the narrowest unsigned dtype that holds them, which numpy indexes with and torch does
        not (see `loaders.batches.batch.to_tensor`); numbers are float32. No wider copy of a whole column is made.
        The labels are read only if `labels` is True.
        Raises ColumnError if a column does not exist, has missing values, or holds a category that is not among those
        of the model.
        """
        left_out = [] if labels else [LABELS]
        left_out += [BATCH] if len(self.batch_categories) < 2 else []
        codes: dict[str, np.ndarray] = {}
        for kind in KINDS:
            if kind in left_out or not self.columns(kind):
                continue
            columns, known = self.columns(kind), self.categories.get(kind.code, {})
            most = max((len(known[column]) for column in columns if kind.noun), default=0)
            dtype = np.dtype(np.float32) if kind.noun is None else np.min_scalar_type(max(most - 1, 0))
            found = np.empty((data.n_cells, len(columns)), dtype)
            for column, out in zip(columns, found.T):
                if kind.noun is None:
                    _read_numbers(data, column, kind, out)
                else:
                    _read_codes(data, column, known[column], kind.noun, out)
            codes[kind.code] = found if kind.several else found[:, 0]
        return codes


def _columns(keys: SetupKeys, kind: Kind) -> tuple[str, ...]:
    named = getattr(keys, kind.key)
    columns = named if isinstance(named, tuple) else () if named is None else (named,)
    return columns if kind.noun is None else tuple(dict.fromkeys(columns))  # a repeated name is one covariate


def learn_setup(data: Columns, keys: SetupKeys, *, one_batch: bool = False, layer: str | None = None) -> Setup:
    """The setup for training a model on `data`: its categories are those that occur in the data.

    one_batch  True: allow a single batch, because new data may bring others
    layer      the layer that holds the counts, which the setup keeps
    Raises ColumnError if a column does not exist (the message lists the columns) or has missing values, or if there is
    only one batch.
    """
    dtypes: dict[str, str] = {}

    def learn(column: str) -> list[Category]:
        found = _read_column(data, column).categories
        categories = [to_category(value) for value in found]
        if not any(isinstance(value, str) for value in categories) and getattr(found.dtype, "kind", "O") in "iufb":
            dtypes[column] = {"boolean": "bool"}.get(found.dtype.name, found.dtype.name.lower())
        return categories

    categories = {
        kind.code: {column: learn(column) for column in _columns(keys, kind)}
        for kind in KINDS
        if kind.noun is not None and _columns(keys, kind)
    }
    setup = Setup(keys=keys, categories=categories, category_dtypes=dtypes, layer=layer, n_cells=data.n_cells)
    if len(setup.batch_categories) == 1 and not one_batch:
        raise ColumnError(
            f"{data.path}: obs column {keys.batch_key!r} has one value ({str(setup.batch_categories[0])!r}), so there "
            "are no batches to correct for: leave --batch-key out, or name another column."
        )
    return setup


def _read_column(data: Columns, key: str) -> CodedColumn:
    """A column as codes of the categories that occur. Raises ColumnError for missing values."""
    column = code_column(data, key)
    _check_complete(data, key, column.find_missing())
    return column.drop_unused()


def _read_codes(data: Columns, key: str, known: Sequence[Category], noun: str, out: np.ndarray) -> None:
    """Write the model's category code of each cell to `out` [cells]."""
    column = _read_column(data, key)
    there = [to_category(value) for value in column.categories]
    places = find_categories(known, there)
    if None in places:
        unknown = there[places.index(None)]
        raise ColumnError(
            f"{data.path}: obs column {key!r} holds {str(unknown)!r}, which is not among the {noun} that the model was "
            f"trained on ({', '.join(map(str, known[:8]))}): leave those cells out."
        )
    recode(column.codes, np.array(places, out.dtype), out.dtype, out)


def to_category(value: Any) -> Category:
    """A value of a column as a category: a plain number, a truth value or text."""
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if isinstance(plain, str | int | float) else str(value)


def find_categories(known: Sequence[Category], wanted: Sequence[Category]) -> list[int | None]:
    """The index in `known` of each category in `wanted`; None for a category that is not there.

    Values are compared first; then text is compared with the written form of numbers and truth values.
    """
    places = {value: place for place, value in enumerate(known)}
    named = {_name(value): place for place, value in enumerate(known)}

    def find(value: Category) -> int | None:
        if value in places:
            return places[value]
        place = named.get(_name(value))
        return place if place is not None and isinstance(known[place], str) != isinstance(value, str) else None

    return [find(value) for value in wanted]


def _name(value: Category) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse(value: Any, dtype: str) -> Category:
    """A number or truth value from the text that format 1 wrote."""
    if not isinstance(value, str):
        return to_category(value)
    if dtype in ("bool", "boolean"):
        return value == "True"
    try:
        number = float(value) if dtype.lower().startswith("float") else int(value)
        return to_category(np.dtype(dtype.lower()).type(number))
    except (TypeError, ValueError):  # text that a query added, or a value that is not a number: a date, an interval
        return value


def _read_numbers(data: Columns, key: str, kind: Kind, out: np.ndarray) -> None:
    """Write the value of each cell to `out`, float32 [cells].

    Raises ColumnError if a value is missing or not finite, or is not above 0 where it must be.
    """
    for start, values in slice_column(data, key):
        if values.isna().any():
            parts = [at + np.flatnonzero(part.isna()) for at, part in slice_column(data, key)]
            _check_complete(data, key, np.concatenate(parts))
        if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind not in "iufb":
            raise ColumnError(
                f"{data.path}: obs column {key!r} is not numeric (it holds {values.iloc[0]!r}): name a column of "
                "numbers, or pass it as a categorical covariate."
            )
        numbers = values.to_numpy(np.float32)
        if not np.isfinite(numbers).all():
            place = int(np.argmin(np.isfinite(numbers)))
            raise ColumnError(
                f"{data.path}: obs column {key!r} holds {values.iloc[place]} (cell {start + place}): change them."
            )
        if kind.positive and not (numbers > 0).all():
            place = int(np.argmin(numbers > 0))
            raise ColumnError(
                f"{data.path}: obs column {key!r} holds {numbers[place]:g} (cell {start + place}): a {kind.title} must "
                "be above 0."
            )
        out[start : start + len(numbers)] = numbers


def _check_complete(data: Columns, key: str, missing: np.ndarray) -> None:
    """Raise ColumnError if a column has missing values, at these indices."""
    if len(missing):
        raise ColumnError(
            f"{data.path}: obs column {key!r} has missing values ({len(missing):,} cells, first: cell {missing[0]}): "
            "fill them in, or drop those cells."
        )
