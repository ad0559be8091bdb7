"""Answers on their way to a client: JSON, an Arrow stream, or CSV."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.queries.answer_rows import Table, check_distinct
from atlasvi.engine.queries.array_answers import write_arrow
from atlasvi.engine.queries.question import Answer
from atlasvi.engine.queries.text_answers import write_lines
from atlasvi.engine.service.jobs import Job
from atlasvi.engine.service.limits import Limits

JSON, ARROW, CSV = "application/json", "application/vnd.apache.arrow.stream", "text/csv"
PIECE_BYTES = 2**16


class TooLarge(Exception):
    """An answer has more rows than the service gives, or than it gives in this form."""


class Sink:
    """A file that sends what is written to it to the client of a job, as text or bytes."""

    def __init__(self, job: Job) -> None:
        self._job, self._parts, self._size, self.closed = job, list[bytes](), 0, False

    def write(self, piece: Any) -> int:
        """Take a piece of the answer; full buffers are sent."""
        content = piece.encode() if isinstance(piece, str) else bytes(piece)
        self._parts.append(content)
        self._size += len(content)
        if self._size >= PIECE_BYTES:
            self.flush()
        return len(content)

    def flush(self) -> None:
        """Send what was written."""
        self._job.send(b"".join(self._parts))
        self._parts, self._size = [], 0

    def close(self) -> None:
        """Send the rest."""
        self.closed = True


def choose_form(accept: str) -> str | None:
    """The first of our forms that an Accept header takes, as its q says; None if it takes none."""
    wanted: list[tuple[float, str]] = []
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            wanted.append((float(quality), kind))
        except ValueError:
            continue
    for weight, kind in sorted(wanted, key=lambda each: -each[0]):
        for form in (JSON, ARROW, CSV):
            if weight > 0 and kind in (form, "*/*", f"{form.split('/')[0]}/*"):
                return form
    return None


def send_answer(answer: Answer, form: str, job: Job, limits: Limits, mask: Callable[[str], str]) -> None:
    """Compute an answer, and send it in a form. `mask` takes paths out of warnings. Raises TooLarge."""
    n_rows = answer.n_rows
    if n_rows is not None and n_rows > limits.most_cells:
        raise TooLarge(
            f"The answer would have {n_rows:,} rows, and this service gives up to {limits.most_cells:,}: choose fewer "
            "cells (where, cells, sample or limit)."
        )
    sink = Sink(job)
    if form == JSON:
        found = collect_values(answer, limits)
        sink.write(json.dumps({**found, "warnings": list(map(mask, job.warnings))}, allow_nan=False))
    elif form == CSV:
        write_lines(sink, ",", answer.table, 6)  # type: ignore[arg-type]  # only its write is called
    else:
        write_arrow(sink, answer.table)
    sink.flush()


def collect_values(answer: Answer, limits: Limits) -> dict[str, Any]:
    """An answer as JSON has it, without warnings. Raises TooLarge."""

    def check_rows(n: int) -> None:
        if n > limits.json_rows:
            raise TooLarge(
                f"The answer has {n:,} rows, and in JSON this service gives up to {limits.json_rows:,}: choose fewer, "
                f"or ask for another form (Accept: {ARROW} or {CSV})."
            )

    check_rows(answer.n_rows or 0)
    columns, n_rows = _collect(answer.table, check_rows, limits.json_values)
    found = {"row": answer.table.row, "n_rows": n_rows, "columns": columns}
    return {**found, "note": answer.note} if answer.note else found


def _collect(table: Table, check_rows: Callable[[int], None], most_values: int) -> tuple[dict[str, list[Any]], int]:
    """All columns of a table as lists that JSON can hold, by name, and the number of rows."""
    names: list[str] = []
    found: list[list[Any]] = []
    n_rows = 0
    for rows in table.slices:
        n_rows += len(rows.names)
        check_rows(n_rows)
        if not names:
            names = [table.row, *map(str, rows.beside.columns), *table.columns]
            found = [[] for _ in names]
        if n_rows * len(names) > most_values:
            raise TooLarge(
                f"The answer has more than {most_values:,} values, too many for JSON: choose fewer cells or genes, or "
                f"ask for another form (Accept: {ARROW} or {CSV})."
            )
        beside = [_to_list(rows.beside[name]) for name in rows.beside]
        parts = [list(map(str, rows.names)), *beside, *(_to_list(pd.Series(part)) for part in rows.values.T)]
        for held, part in zip(found, parts):
            held += part
    names = names or [table.row, *table.columns]
    check_distinct(names, "JSON")
    return dict(zip(names, found or [[] for _ in names])), n_rows


def _to_list(column: pd.Series) -> list[Any]:
    """Numbers, truth values and text as JSON has them: null for what is missing or NaN, text for infinity."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biu":
        return column.tolist()
    if pd.api.types.is_numeric_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype):
        values = column.to_numpy(np.float64, na_value=np.nan) if column.dtype.kind != "f" else column.to_numpy()
        return [to_json(value) for value in values.tolist()]
    return [None if missing else str(value) for value, missing in zip(column, column.isna())]


def to_json(value: Any) -> Any:
    """A number as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
