"""Which columns of `obs` a model takes, and the codes that they become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cells_protocol import Columns
from atlasvi.loaders.errors import ColumnError

Category = str | int | float | bool


@dataclass(frozen=True)
class Setup:
    """What scvi-tools' setup_anndata is told of `obs`, and the categories found there, in the order of their codes.

    Categories are text, numbers and truth values as obs holds them; what is none of these (dates, intervals) is text.
    They are compared by value: 1, 1.0 and np.int8(1) are one category.

    categorical_covariates  key -> categories, of each covariate besides the batch
    category_dtypes  of keys whose categories are all numbers or all truth values: 'int64', 'float32', 'bool', ...
    layer            where the counts were; None: X
    n_cells          cells that the model was set up with
    """

    batch_key: str | None = None
    batch_categories: list[Category] = field(default_factory=list)
    labels_key: str | None = None
    labels_categories: list[Category] = field(default_factory=list)
    size_factor_key: str | None = None
    categorical_covariates: dict[str, list[Category]] = field(default_factory=dict)
    continuous_covariate_keys: list[str] = field(default_factory=list)
    category_dtypes: dict[str, str] = field(default_factory=dict)
    layer: str | None = None
    n_cells: int = 0

    @classmethod
    def from_saved(cls, content: Mapping[str, Any]) -> Self:
        """A setup from its fields as a file of any version keeps them: the first ones wrote numbers as text."""
        dtypes = content.get("category_dtypes") or {}

        def restore(key: str | None, categories: Sequence[Any] | None) -> list[Category]:
            return [_parse(value, dtypes[key]) if key in dtypes else value for value in categories or ()]

        named = {
            f"{name}_categories": restore(content.get(f"{name}_key"), content.get(f"{name}_categories"))
            for name in ("batch", "labels")
        }
        further = {key: restore(key, known) for key, known in (content.get("categorical_covariates") or {}).items()}
        return cls(**{**content, **named, "categorical_covariates": further})

    def extend(
        self, batches: list[Category], labels: list[Category], covariates: Mapping[str, list[Category]], n_cells: int
    ) -> Self:
        """The setup with the categories of further data that it does not know, sorted, after those that it does."""

        def add(known: list[Category], there: list[Category]) -> list[Category]:
            new = [value for value, place in zip(there, find_categories(known, there)) if place is None]
            return [*known, *sorted(new, key=lambda value: (isinstance(value, str), value))]

        batches, labels = add(self.batch_categories, batches), add(self.labels_categories, labels)
        further = {key: add(known, covariates[key]) for key, known in self.categorical_covariates.items()}
        known: dict[Any, list[Category]] = {self.batch_key: batches, self.labels_key: labels, **further}
        dtypes = {
            key: dtype
            for key, dtype in self.category_dtypes.items()
            if not any(isinstance(value, str) for value in known[key])
        }
        return replace(
            self,
            batch_categories=batches,
            labels_categories=labels,
            categorical_covariates=further,
            category_dtypes=dtypes,
            n_cells=n_cells,
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of ModelSettings that follow from it."""
        return {
            "n_batches": max(len(self.batch_categories), 1),
            "n_labels": max(len(self.labels_categories), 1),
            "n_categories": tuple(len(categories) for categories in self.categorical_covariates.values()),
            "n_continuous": len(self.continuous_covariate_keys),
            "use_size_factor": self.size_factor_key is not None,
        }

    def read_codes(self, data: Columns, labels: bool = False) -> dict[str, np.ndarray]:
        """Codes of all cells as `Batch.codes` takes them; labels only if asked for (one dispersion needs them).

        Raises ColumnError if a column is not there, has missing values, or holds a category that the model does not
        know.
        """
        codes: dict[str, np.ndarray] = {}
        if self.batch_key is not None and len(self.batch_categories) > 1:
            codes["batch"] = _read_codes(data, self.batch_key, self.batch_categories, "batches")
        if labels and self.labels_key is not None:
            codes["labels"] = _read_codes(data, self.labels_key, self.labels_categories, "labels")
        if self.categorical_covariates:
            columns = [
                _read_codes(data, key, known, "categories") for key, known in self.categorical_covariates.items()
            ]
            codes["categories"] = np.stack(columns, axis=1)
        if self.continuous_covariate_keys:
            numbers = [_read_numbers(data, key) for key in self.continuous_covariate_keys]
            codes["continuous"] = np.stack(numbers, axis=1)
        if self.size_factor_key is not None:
            codes["size_factor"] = factors = _read_numbers(data, self.size_factor_key)
            if not (factors > 0).all():
                cell = int(np.argmin(factors > 0))
                raise ColumnError(
                    f"{data.path}: obs column {self.size_factor_key!r} holds {factors[cell]:g} (cell {cell}): a size "
                    "factor is above 0."
                )
        return codes


def learn_setup(
    data: Columns,
    *,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    one_batch: bool = False,
) -> Setup:
    """The setup of a model to be trained on `data`: its categories are those found there, unused ones left out.

    one_batch  a single batch is no error: others may come with new data
    Raises ColumnError if a column is not there (naming those that are) or has missing values, or if there is but one
    batch.
    """
    dtypes: dict[str, str] = {}

    def learn(key: str) -> list[Category]:
        found = _read_column(data, key).cat.categories
        categories = [to_category(value) for value in found]
        if not any(isinstance(value, str) for value in categories) and getattr(found.dtype, "kind", "O") in "iufb":
            dtypes[key] = {"boolean": "bool"}.get(found.dtype.name, found.dtype.name.lower())
        return categories

    batches = [] if batch_key is None else learn(batch_key)
    if len(batches) == 1 and not one_batch:
        raise ColumnError(
            f"{data.path}: obs column {batch_key!r} has one value ({str(batches[0])!r}), so there are no batches to "
            "correct for: leave --batch-key out, or name another column."
        )
    return Setup(
        batch_key,
        batches,
        labels_key,
        [] if labels_key is None else learn(labels_key),
        size_factor_key,
        {key: learn(key) for key in categorical_covariate_keys or ()},
        list(continuous_covariate_keys or ()),
        dtypes,
        getattr(data, "layer", None),
        data.n_cells,
    )


def _read_column(data: Columns, key: str) -> pd.Series:
    """A column as a categorical of the categories that occur. Raises ColumnError for missing values."""
    values = data.read_column(key)
    _check_complete(data, key, values)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    return values.cat.remove_unused_categories()


def _read_codes(data: Columns, key: str, known: Sequence[Category], noun: str) -> np.ndarray:
    """int64 category of each cell as the model counts them."""
    values = _read_column(data, key)
    there = [to_category(value) for value in values.cat.categories]
    places = find_categories(known, there)
    if None in places:
        unknown = there[places.index(None)]
        raise ColumnError(
            f"{data.path}: obs column {key!r} holds {str(unknown)!r}, which is none of the {noun} that the model was "
            f"trained on ({', '.join(map(str, known[:8]))}): leave those cells out."
        )
    return np.array(places, np.int64)[values.cat.codes.to_numpy()]


def to_category(value: Any) -> Category:
    """A value of a column as a category: a plain number, truth value or text."""
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if isinstance(plain, str | int | float) else str(value)


def find_categories(known: Sequence[Category], asked: Sequence[Category]) -> list[int | None]:
    """The place of each category that is asked for among those that are known, None where it is none of them.

    By value; text that is the name of one number or truth value, or the other way round, is taken for it.
    """
    places = {value: place for place, value in enumerate(known)}
    named = {_name(value): place for place, value in enumerate(known)}

    def find(value: Category) -> int | None:
        if value in places:
            return places[value]
        place = named.get(_name(value))
        return place if place is not None and isinstance(known[place], str) != isinstance(value, str) else None

    return [find(value) for value in asked]


def _name(value: Category) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse(value: Any, dtype: str) -> Category:
    """A number or truth value that the first versions wrote as text."""
    if not isinstance(value, str):
        return to_category(value)
    if dtype in ("bool", "boolean"):
        return value == "True"
    try:
        number = float(value) if dtype.lower().startswith("float") else int(value)
        return to_category(np.dtype(dtype.lower()).type(number))
    except (TypeError, ValueError):  # text that a query added, or what is no number: dates, intervals
        return value


def _read_numbers(data: Columns, key: str) -> np.ndarray:
    """float32 value of each cell. Raises ColumnError for what is no finite number."""
    values = data.read_column(key)
    _check_complete(data, key, values)
    if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind not in "iufb":
        raise ColumnError(
            f"{data.path}: obs column {key!r} is not numeric (it holds {values.iloc[0]!r}): name a column of numbers, "
            "or give it as a categorical covariate."
        )
    numbers = values.to_numpy(np.float32)
    if not np.isfinite(numbers).all():
        cell = int(np.argmin(np.isfinite(numbers)))
        raise ColumnError(f"{data.path}: obs column {key!r} holds {values.iloc[cell]} (cell {cell}): mend those cells.")
    return numbers


def _check_complete(data: Columns, key: str, values: pd.Series) -> None:
    if values.isna().any():
        raise ColumnError(
            f"{data.path}: obs column {key!r} has missing values ({int(values.isna().sum()):,} cells, first: cell "
            f"{int(np.argmax(values.isna()))}): fill them in, or drop those cells."
        )
