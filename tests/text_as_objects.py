"""Tables of anndata with text as `object` and None where it is missing, as all our readers give it."""

import pandas as pd


def text_as_objects(table: pd.DataFrame) -> pd.DataFrame:
    """The same table; pandas 3 reads text, and categories of text, as `str`."""
    columns = {name: _to_objects(column) for name, column in table.items()}
    plain = pd.DataFrame(columns, table.index.astype(object), pd.Index(table.columns, dtype=object))
    return plain.rename_axis(table.index.name)


def _to_objects(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        if isinstance(categories.dtype, pd.StringDtype):
            column = column.cat.rename_categories(categories.astype(object))
    elif isinstance(column.dtype, pd.StringDtype):
        column = column.astype(object).where(column.notna(), None)
    return column.set_axis(column.index.astype(object))
