"""What `--dry-run` says of a command: sizes, memory and time, and, as the command itself would, what is wrong."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlasvi.engine.queries.question import Answer
from atlasvi.engine.terminal import count

if TYPE_CHECKING:
    from atlasvi.engine.training.epoch_estimate import Plan
    from atlasvi.loaders.work_estimate import WorkEstimate

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check, and say what it would do: sizes, memory, time.")]
ANSWER_SECONDS = 3.0  # about how long a part of an answer is computed


def describe_estimate(found: "WorkEstimate") -> Iterator[str]:
    """An estimate as sentences for the user."""
    from atlasvi.engine.card.number_text import write_bytes
    from atlasvi.engine.training.summary import write_seconds

    genes = f" x {count(found.n_genes, 'gene')}" if found.n_genes else ""
    beside = f", and {write_bytes(found.scratch_bytes)} beside it until it is done" if found.scratch_bytes else ""
    yield f"{found.out}: {count(found.n_cells, 'cell')}{genes}. Nothing was written."
    room = f"; that disk has {write_bytes(found.free_bytes)} free" if found.free_bytes else ""
    yield f"  size: about {write_bytes(found.disk_bytes)}{beside}{room}"
    yield f"  memory: about {write_bytes(found.memory_bytes)} a process"
    if found.seconds is not None:
        share = f" with {found.n_processes:,} processes" if found.n_processes > 1 else ""
        tried = f", from {found.n_tried:,} that were tried" if found.n_tried else ""
        yield f"  time: about {write_seconds(found.seconds)}{share}{tried}"
    yield from (f"  {note}" for note in found.notes)


def describe_run_plan(out: str, found: "Plan | None") -> Iterator[str]:
    """What a training run would take, as sentences for the user; None: it is finished."""
    from atlasvi.engine.training.epoch_estimate import describe_plan

    if found is None:
        yield f"{out}: the run is finished already."
        return
    yield from describe_plan(found)
    yield f"{out}: nothing was written."


def describe_answer(answer: Answer, out: Path | None) -> Iterator[str]:
    """What an answer that is computed slice by slice would take: slices of it are written to a temporary file.

    Raises what the answer raises, as far as these slices show it; OutputError if `out` exists, or is too large.
    """
    from atlasvi.engine.card.number_text import write_bytes
    from atlasvi.engine.queries.answer_tables import write_answer
    from atlasvi.engine.training.summary import write_seconds
    from atlasvi.loaders.outputs import check_output_free
    from atlasvi.loaders.work_estimate import check_room, peak_memory_bytes

    if out is not None:
        check_output_free(out)
    n_tried, began = 0, time.monotonic()

    def take_slices() -> Iterator[Any]:
        nonlocal n_tried
        for rows in answer.table.slices:
            yield rows
            n_tried += len(rows.names)
            if time.monotonic() - began > ANSWER_SECONDS:
                return

    with tempfile.TemporaryDirectory(prefix="atlasvi-dry-run-") as folder:
        place = Path(folder) / ("answer.csv" if out is None else out.name)
        write_answer(answer.table._replace(slices=take_slices()), place)
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        written = sum(file.stat().st_size for file in files)
    seconds, n_rows = time.monotonic() - began, answer.n_rows or n_tried
    scale = n_rows / max(n_tried, 1)
    where = "the screen" if out is None else str(out)
    room = "" if out is None else f"; that disk has {write_bytes(check_room(out, round(written * scale)))} free"
    yield f"{where}: {count(n_rows, answer.noun)}. Nothing was written."
    yield f"  size: about {write_bytes(round(written * scale))}{room}"
    yield f"  memory: about {write_bytes(peak_memory_bytes())}"
    yield f"  time: about {write_seconds(seconds * scale)}, from {n_tried:,} that were tried"
