"""Which columns of `obs` a model takes, and the codes that they become."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import ColumnError


class Columns(Protocol):
    """What has columns of cells: a store, a source, a minified store."""

    path: str
    n_cells: int

    def read_column(self, name: str) -> pd.Series:
        """One column of all cells. Raises ColumnError, naming those that are there."""


@dataclass(frozen=True)
class Setup:
    """What scvi-tools' setup_anndata is told of `obs`, and the categories found there, in the order of their codes.

    categorical_covariates  key -> categories, of each covariate besides the batch
    category_dtypes  of keys whose categories are no text: 'int64', 'float64', 'bool', ... (their names are text here)
    layer            where the counts were; None: X
    n_cells          cells that the model was set up with
    """

    batch_key: str | None = None
    batch_categories: list[str] = field(default_factory=list)
    labels_key: str | None = None
    labels_categories: list[str] = field(default_factory=list)
    size_factor_key: str | None = None
    categorical_covariates: dict[str, list[str]] = field(default_factory=dict)
    continuous_covariate_keys: list[str] = field(default_factory=list)
    category_dtypes: dict[str, str] = field(default_factory=dict)
    layer: str | None = None
    n_cells: int = 0

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

    def learn(key: str) -> list[str]:
        categories = _read_column(data, key).cat.categories
        if not (categories.dtype == object or isinstance(categories.dtype, pd.StringDtype)):
            dtypes[key] = categories.dtype.name
        return [str(name) for name in categories]

    batches = [] if batch_key is None else learn(batch_key)
    if len(batches) == 1 and not one_batch:
        raise ColumnError(
            f"{data.path}: obs column {batch_key!r} has one value ({batches[0]!r}), so there are no batches to correct "
            "for: leave --batch-key out, or name another column."
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


def _read_codes(data: Columns, key: str, known: Sequence[str], noun: str) -> np.ndarray:
    """int64 category of each cell as the model counts them."""
    values = _read_column(data, key)
    there = values.cat.categories
    places = pd.Index(known).get_indexer(pd.Index([str(name) for name in there]))
    if (places < 0).any():
        unknown = str(there[int(np.argmin(places))])
        raise ColumnError(
            f"{data.path}: obs column {key!r} holds {unknown!r}, which is none of the {noun} that the model was "
            f"trained on ({', '.join(known[:8])}): leave those cells out."
        )
    return places.astype(np.int64)[values.cat.codes.to_numpy()]


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
