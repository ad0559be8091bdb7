"""Genes by any of their names: the model's own, Ensembl ids with and without version, and the text columns of var."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import ColumnError, GeneError
from atlasvi.loaders.sources.open_source import drop_versions, name_columns
from atlasvi.loaders.tables.store_tables import find_near_names, suggest_names

SHARE_OF_NAMES = 0.5  # of a column's values that differ, at least, in a column of names


class GeneNames:
    """The names of the genes of a model.

    genes  the model's own, in its order
    var    further columns, in the same order; None: there are none
    """

    def __init__(self, genes: Sequence[str], var: pd.DataFrame | None = None) -> None:
        self._genes, self._var = pd.Index(genes), var

    def find(self, names: Sequence[str], path: str) -> np.ndarray:
        """int64: the places of these genes. A name of the model comes first, then other names.

        path  of the data, for errors
        Raises GeneError, with similar names, for a name that no gene has, or that several have.
        """
        places = self._genes.get_indexer(pd.Index(names)).astype(np.int64)
        for k in np.flatnonzero(places < 0).tolist():
            places[k] = self._find_other(str(names[k]), path)
        return places

    def _find_other(self, name: str, path: str) -> int:
        for _, aliases in self._aliases:
            if found := aliases.get(name) or aliases.get(drop_versions(pd.Index([name]))[0]):
                if len(found) > 1:
                    several = ", ".join(self._genes[found[:5]])
                    raise GeneError(
                        f"{path}: {name!r} is the name of {len(found)} genes ({several}): name one of those."
                    )
                return found[0]
        known = dict.fromkeys(map(str, self._genes))
        known.update(dict.fromkeys(alias for _, aliases in self._aliases for alias in aliases))
        near = find_near_names(name, list(known))
        some = ", ".join(map(str, self._genes[:5])) + (", ..." if len(self._genes) > 5 else "")
        hint = f"similar: {', '.join(near)}" if near else f"it has {len(self._genes):,}: {some}"
        raise GeneError(f"{path}: no gene {name!r} in the model ({hint}).")

    @cached_property
    def _aliases(self) -> list[tuple[str, dict[str, list[int]]]]:
        """For the genes without versions, and for each column of names: the places of the genes with each name."""
        columns = [("", pd.Series(drop_versions(self._genes)))]
        for name, column in self.list_columns():
            columns += [(name, column), (name, pd.Series(drop_versions(pd.Index(column.fillna("")))))]
        tables = []
        for name, column in columns:
            table: dict[str, list[int]] = defaultdict(list)
            for place, alias in enumerate(column):
                if isinstance(alias, str) and alias:
                    table[alias].append(place)
            tables.append((name, dict(table)))
        return tables

    def list_columns(self) -> Iterator[tuple[str, pd.Series]]:
        """The columns of var that may be names of genes, as text: most of their values differ."""
        var = pd.DataFrame(index=self._genes) if self._var is None else self._var
        for name in var.columns:
            column = var[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                column = column.astype(object)
            is_text = column.dtype.kind == "O" or isinstance(column.dtype, pd.StringDtype)
            if is_text and column.nunique() >= SHARE_OF_NAMES * max(len(column), 1):
                yield str(name), column

    def rename(self, column: str, path: str) -> list[str]:
        """The names of a column of var for all genes; a gene without a name of its own there keeps the model's.

        Raises ColumnError if there is no such column.
        """
        var = pd.DataFrame(index=self._genes) if self._var is None else self._var
        if column not in var.columns:
            near = suggest_names(column, [str(name) for name in var.columns])
            raise ColumnError(f"{path}: var has no column {column!r} ({name_columns(var)}).{near}")
        names = var[column].astype(object)
        text = names.astype(str).to_numpy(dtype=object)
        own = names.notna().to_numpy() & (text != "") & ~pd.Series(text).duplicated(keep=False).to_numpy()
        others = set(self._genes[~own])
        return [str(new) if good and new not in others else str(old) for new, good, old in zip(text, own, self._genes)]

    def table(self, pattern: str | None = None) -> pd.DataFrame:
        """The genes, index `gene`, with all columns of var.

        pattern  only those of which a name contains this text, or, with * or ?, is like it; in upper or lower case
        """
        table = pd.DataFrame(index=range(len(self._genes))) if self._var is None else self._var.reset_index(drop=True)
        if pattern is not None:
            like = pattern.casefold().replace("[", "[[]")  # else it would begin a set of characters
            like = like if any(sign in pattern for sign in "*?") else f"*{like}*"
            names = [pd.Series(self._genes), *(column for _, column in self.list_columns())]
            chosen = [
                any(isinstance(name, str) and fnmatch.fnmatchcase(name.casefold(), like) for name in row)
                for row in zip(*names)
            ]
            return table[chosen].set_index(pd.Index(self._genes[chosen], name="gene"))
        return table.set_index(pd.Index(self._genes, name="gene"))
