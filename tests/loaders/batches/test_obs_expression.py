"""Expressions over obs choose cells as pandas would, and can do nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.loaders.batches.obs_expression import ObsExpression
from atlasvi.loaders.errors import ColumnError

OBS = {
    "kind": pd.Series(pd.Categorical(["a", "b", "c", "a", "b", None])),
    "n": pd.Series([1, 2, 3, 4, 5, 6]),
    "part": pd.Series([1.5, np.nan, 2.0, 3.0, 4.0, 5.0]),
    "odd name": pd.Series(["x", "`", "y z", "x", "@home", None], dtype=object),
    "sure": pd.Series([True, False, True, False, True, False]),
    "maybe": pd.Series(pd.array([True, None, False, True, True, None], "boolean")),
}


def choose(text: str) -> list[int]:
    expression = ObsExpression(text, list(OBS), "cells.h5ad")
    holds = expression.evaluate({name: OBS[name] for name in expression.columns})
    return np.flatnonzero(holds.fillna(False)).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "kind == 'a'", "kind != 'a'", "'a' == kind", "kind == ['a', 'b']", "kind != ['a', 'b']", "kind in ['c']",
        "kind not in ['a', 'b']", "n % 2 == 0 & n > 2", "(n > 1) & (n < 4) | n == 6", "1 < n <= 3", "not (n > 2)",
        "~(n > 2)", "-n < -3", "n / 2 == 1.5", "n // 2 + n ** 2 - 1 > 20", "part > n", "n.between(2, 3)",
        "part.isna()", "part.notna() and n.isin([1, 2, 3])", "kind.isin(['b'])", "sure", "not sure", "sure and n > 1",
        "sure or n == 2", "maybe", "not maybe", "maybe and n > 1", "`odd name` == 'x'", "`odd name` == 'y z'",
        "kind.str.startswith('a')", "n > 1 and True",
    ],
)  # fmt: skip
def test_an_expression_means_what_it_means_to_pandas(text: str):
    theirs = pd.DataFrame(OBS).eval(text, engine="python").astype("boolean")
    assert choose(text) == np.flatnonzero(theirs.fillna(False)).tolist()


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("`odd name` == '`'", [1]),  # pandas takes this for the beginning of a name
        ("`odd name` == '@home'", [4]),
        ("`odd name`.str.contains('[xz]')", [0, 2, 3]),
        ("`odd name`.str.endswith('z') or kind.isna()", [2, 5]),
        ("not `odd name`.str.startswith('x')", [1, 2, 4, 5]),  # a missing text does not begin with anything
    ],
)
def test_text_is_compared_as_it_is_written(text: str, cells: list[int]):
    assert choose(text) == cells


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__bases__[0].__subclasses__()", "n.__class__ == 1", "n.values == 1", "n.to_csv('{file}') == 1",
        "n.apply(print)", "n.isin.__globals__ == 1", "__import__('os').system('touch {file}') == 0",
        "open('{file}', 'w') == n", "eval('1') == n", "kind.str.cat() == 'a'", "kind.str.startswith.__func__ == n",
        "kind.str == 'a'", "`odd name`.__class__ == n", "(lambda: 1)() == n", "[k for k in n] == n", "n[0] == 1",
        "n if sure else n", "f'{{n}}' == kind", "b'a' == kind", "1j == n", "... == n", "{{1}} == n", "{{1: 2}} == n",
        "n.isin(*n)", "n.between(**n)", "n is 1", "n ^ 2 == 1", "n << 2 == 4", "n @ n == 1", "n.isin(n.values)",
        "odd == '`' and n.to_csv('{file}') and kind == '`'", "(await n) == 1", "(yield) == n",
    ],
)  # fmt: skip
def test_nothing_but_the_listed_nodes_is_ever_evaluated(tmp_path: Path, text: str):
    file = tmp_path / "written"
    with pytest.raises(ColumnError, match=r"holds .*: an expression compares columns|is not an expression|@name"):
        ObsExpression(text.format(file=file), list(OBS), "cells.h5ad")
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n >", "is not an expression over obs columns"),
        ("n == 1; n == 2", "is not an expression over obs columns"),
        ("n := 3", "is not an expression over obs columns"),
        ("n == 1\0", "is not an expression over obs columns"),
        ("", "is not an expression over obs columns"),
        ("(" * 900 + "n" + ")" * 900, "is not an expression over obs columns"),
        ("not " * 90_000 + "sure", "is not an expression over obs columns"),
        ("n > @limit", "@name variables can't be used"),
        ("kinds == 'a'", r"obs has no column 'kinds' \(it has: kind, n, .*\). Did you mean 'kind'\?"),
        ("`add name` == 'x'", r"no column 'add name' .* Did you mean 'odd name'\?"),
        ("n", "gives no truth value for each cell"),
        ("n and sure", "gives no truth value for each cell"),
        ("n + 1", "gives no truth value for each cell"),
        ("1 == 1", "gives no truth value for each cell"),
        ("kind > 'a'", "fails on its obs"),
        ("kind.isin(n)", r"compare a column with a list of values"),
        ("'a' in kind", r"compare a column with a list of values"),
        ("[1, 2].isin([1])", r"is not a column"),
        ("'a' * 10 ** 12 == kind", "only numbers can be calculated with"),
        ("`odd name` * 10 ** 12 == 'x'", "only numbers can be calculated with"),
        ("`odd name` + '!' == 'x!'", "only numbers can be calculated with"),
        ("[1] * 10 ** 12 == n", "only numbers can be calculated with"),
        ("9 ** 9 ** 9 > n", "powers of numbers go up to 64"),
        ("n.between(1)", "fails on its obs"),
    ],
)
def test_what_is_no_expression_or_does_not_fit_the_columns_is_said(text: str, message: str):
    with pytest.raises(ColumnError, match=message):
        choose(text)
