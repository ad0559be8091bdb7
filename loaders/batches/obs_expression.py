"""Expressions over obs, such as "cell_type == 'B cell' and n_genes > 500", evaluated on slices of columns.

The text is parsed, never run: each node of its syntax tree must be one of those that are listed here, and this module
computes its value. So an expression can name columns, compare, calculate and call the few listed methods, and nothing
else: there is no attribute, no function and no variable that it could reach.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.tables.store_tables import check_column

METHODS = ("isin", "isna", "notna", "between")
TEXT_METHODS = ("startswith", "endswith", "contains")  # after .str
COMPARISONS: dict[type, Callable] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
LARGEST_POWER = 64  # of two numbers in the text: 9**9**9 would take all memory
# text in quotes, a name in backticks, or one of the operators that pandas reads as `and` and `or`
TOKENS = re.compile(r"""('(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")|`([^`]*)`|([&|])""")
WORDS = {"&": " and ", "|": " or "}


class ObsExpression:
    """An expression over the columns of obs, in the syntax of `pandas.DataFrame.eval`.

    columns  obs columns that may be named; `path` is the name of the data in errors
    Raises ColumnError if the text is no expression, names a column that is not there, or holds anything but
    comparisons, arithmetic, `and`, `or`, `not`, `in` and the listed methods.
    """

    def __init__(self, text: str, columns: Sequence[str], path: str) -> None:
        self.text, self._path, self._shown = text, path, f"{text!r:.200}"
        self._quoted: dict[str, str] = {}  # name in the tree -> column
        self._tree = self._parse()
        try:
            self._check(self._tree)
            named = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        except RecursionError:
            raise self._refuse("it is nested too deeply") from None
        self.columns = sorted({self._quoted.get(name, name) for name in named})
        for name in self.columns:
            check_column(name, columns, path)

    def evaluate(self, obs: Mapping[str, pd.Series]) -> pd.Series:
        """bool or nullable boolean [cells]: where it is true, given a slice of each of its `columns`.

        Raises ColumnError if an operation does not suit the columns, or the result is not true or false for each cell.
        """
        try:
            found = self._value(self._tree, obs)
        except ColumnError:
            raise
        except Exception as error:  # any exception of the operation that pandas runs
            raise ColumnError(f"{self._path}: the expression {self._shown} fails on its obs ({error}).") from error
        if not _is_truth(found) or isinstance(found, bool):
            raise self._no_truth()
        return found

    def _parse(self) -> ast.expr:
        if "@" in TOKENS.sub("", self.text):
            raise ColumnError(
                f"{self._path}: {self._shown}: @name variables can't be used here; write the value itself."
            )
        prefix = "_column_"
        while prefix in self.text:
            prefix += "_"

        def replace(match: re.Match[str]) -> str:
            text, column, sign = match.groups()
            if column is None:
                return text or WORDS[sign]
            name = f"{prefix}{len(self._quoted)}_"
            self._quoted[name] = column
            return f" {name} "

        try:
            return ast.parse(TOKENS.sub(replace, self.text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refuse(getattr(error, "msg", None) or str(error) or "it is too long") from error

    def _refuse(self, reason: str) -> ColumnError:
        return ColumnError(
            f"{self._path}: {self._shown} is not an expression over obs columns ({reason}); write it as in "
            "\"cell_type == 'B cell' and n_genes > 500\"."
        )

    def _no_truth(self) -> ColumnError:
        return ColumnError(
            f"{self._path}: the expression {self._shown} gives no truth value for each cell: compare a column with "
            "something, as in \"cell_type == 'B cell'\"."
        )

    def _check(self, node: ast.expr) -> None:
        """Raise ColumnError unless the node, and all below it, are of a kind that `_value` computes."""
        parts: list[ast.expr] | None = None
        match node:
            case ast.Name():
                parts = []
            case ast.Constant(value=str() | int() | float() | None):
                parts = []
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.BoolOp(values=parts):
                pass
            case ast.UnaryOp():
                parts = [node.operand]
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                parts = [node.left, node.right]
            case ast.Compare() if all(type(op) in (*COMPARISONS, ast.In, ast.NotIn) for op in node.ops):
                parts = [node.left, *node.comparators]
            case ast.Call() if (method := _find_method(node)) is not None and all(word.arg for word in node.keywords):
                parts = [method[0], *node.args, *(word.value for word in node.keywords)]
        if parts is None:
            raise ColumnError(
                f"{self._path}: {self._shown} holds {self._show(node)!r}: an expression compares columns with values, "
                f"and may call {', '.join(METHODS)}, and of text .str.{', .str.'.join(TEXT_METHODS)}."
            )
        for part in parts:
            self._check(part)

    def _show(self, node: ast.expr) -> str:
        shown = ast.unparse(node)
        for name, column in self._quoted.items():
            shown = shown.replace(name, f"`{column}`")
        return shown

    def _value(self, node: ast.expr, obs: Mapping[str, pd.Series]) -> Any:
        """A column of values, or one value, or a list of values."""
        match node:
            case ast.Name():
                return obs[self._quoted.get(node.id, node.id)]
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                return [self._value(part, obs) for part in node.elts]
            case ast.BoolOp():
                join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
                found = self._truth(node.values[0], obs)
                for part in node.values[1:]:
                    found = join(found, self._truth(part, obs))
                return found
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                found = self._truth(node.operand, obs)
                return not found if isinstance(found, bool) else ~found
            case ast.UnaryOp():
                found = self._value(node.operand, obs)
                return -found if isinstance(node.op, ast.USub) else +found
            case ast.BinOp():
                return _calculate(type(node.op), self._value(node.left, obs), self._value(node.right, obs))
            case ast.Compare():
                values = [self._value(part, obs) for part in (node.left, *node.comparators)]
                found = _compare(node.ops[0], *values[:2])
                for op, left, right in zip(node.ops[1:], values[1:], values[2:]):
                    found = found & _compare(op, left, right)
                return found
            case _:
                assert isinstance(node, ast.Call)
                return self._call(node, obs)

    def _truth(self, node: ast.expr, obs: Mapping[str, pd.Series]) -> Any:
        found = self._value(node, obs)
        if not _is_truth(found):
            raise self._no_truth()
        return found

    def _call(self, node: ast.Call, obs: Mapping[str, pd.Series]) -> pd.Series:
        column, name = _find_method(node) or (node, "")
        values = self._value(column, obs)
        if not isinstance(values, pd.Series):
            raise TypeError(f"{self._show(column)} is not a column")
        arguments = [self._value(part, obs) for part in node.args]
        words = {str(word.arg): self._value(word.value, obs) for word in node.keywords}
        if name in TEXT_METHODS:
            words.setdefault("na", False)  # a missing text does not begin with anything
            return _text_method(values, name)(*arguments, **words)
        if name == "isin":
            return _is_in(values, *arguments, **words)
        if name == "between":
            return values.between(*arguments, **words)
        return values.isna(*arguments, **words) if name == "isna" else values.notna(*arguments, **words)


def list_patterns(text: str) -> list[tuple[str, int]]:
    """(pattern, flags of `re`) of each regular expression that an expression looks for with `.str.contains`.

    Of a text that is no expression none, since nothing of it is computed.
    """
    try:
        plain = TOKENS.sub(lambda match: match[1] or WORDS.get(match[3], " x "), text)
        nodes = list(ast.walk(ast.parse(plain.strip())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "contains":
            words = {word.arg: getattr(word.value, "value", True) for word in node.keywords}
            given = [getattr(part, "value", None) for part in node.args]
            pattern = words.get("pat", given[0] if given else None)
            flags = words.get("flags", given[2] if len(given) > 2 else 0)
            if isinstance(pattern, str) and (words.get("regex", given[4] if len(given) > 4 else True)):
                found.append((pattern, flags if isinstance(flags, int) else 0))
    return found


def _find_method(call: ast.Call) -> tuple[ast.expr, str] | None:
    """(what a listed method is called on, its name); None if it is another call."""
    if not isinstance(call.func, ast.Attribute):
        return None
    owner, name = call.func.value, call.func.attr
    if isinstance(owner, ast.Attribute) and owner.attr == "str":
        return (owner.value, name) if name in TEXT_METHODS else None
    return (owner, name) if name in METHODS else None


def _text_method(values: pd.Series, name: str) -> Callable:
    text = values.str  # of categories, pandas looks at each category once
    return {"startswith": text.startswith, "endswith": text.endswith, "contains": text.contains}[name]


def _is_truth(found: Any) -> bool:
    """Whether a value is true or false, for each cell or as a whole."""
    return isinstance(found, bool) or (isinstance(found, pd.Series) and found.dtype in (bool, pd.BooleanDtype()))


def _is_in(values: Any, wanted: Any) -> pd.Series:
    if not isinstance(values, pd.Series) or not isinstance(wanted, list):
        raise TypeError("`in` and isin compare a column with a list of values: type in ['a', 'b']")
    return values.isin(wanted)


def _compare(op: ast.cmpop, left: Any, right: Any) -> Any:
    """One comparison; of categories, pandas compares the codes. A column equals a list where it is in the list."""
    if isinstance(op, ast.In) or (isinstance(op, ast.Eq) and isinstance(right, list)):
        return _is_in(left, right)
    if isinstance(op, ast.NotIn) or (isinstance(op, ast.NotEq) and isinstance(right, list)):
        return ~_is_in(left, right)
    return COMPARISONS[type(op)](left, right)


def _calculate(op: type, left: Any, right: Any) -> Any:
    both = left, right
    columns = [value for value in both if isinstance(value, pd.Series)]
    is_text = [isinstance(value, str) or getattr(value, "dtype", None) == np.dtype(object) for value in both]
    if any(isinstance(value, list) for value in both) or any(is_text):
        raise TypeError("only numbers can be calculated with")  # 'a' * 10**10 would take all memory
    if op is ast.Pow and not columns and not (abs(right) <= LARGEST_POWER and abs(left) <= 2**LARGEST_POWER):
        raise ValueError(f"powers of numbers go up to {LARGEST_POWER}")
    return ARITHMETIC[op](left, right)
