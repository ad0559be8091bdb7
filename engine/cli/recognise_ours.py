"""What atlasvi writes, recognised from outside and from inside: what a file is a part of, what a folder holds."""

import re
from collections.abc import Iterator
from pathlib import Path

from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.run_files import CONFIG, METRICS, MODEL, RESULT
from atlasvi.engine.neighbours.index_file import HEADER
from atlasvi.engine.terminal import count
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import MANIFEST
from atlasvi.loaders.sources.open_source import recognise

CARD = "metrics.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"step-(\d+)-[0-9a-f]{16}\.pt")
PARTS = {
    MODEL: "the model",
    CONFIG: "the configuration",
    RESULT: "the result",
    METRICS: "the metrics",
    MANIFEST: "the list of files",
    CARD: "the figures",
    "card.html": "the page",
    "README.md": "the text",
    CHECKPOINTS: "the checkpoints",
    "tensorboard": "the metrics for TensorBoard",
    "profile": "the trace",
}
SHOWN = 30
DEEPEST = 4  # folders from a chunk of an array to its store


def name_kind(path: Path) -> str | None:
    """What a path is as a whole: 'cell store', 'run', 'card' ...; None if atlasvi and scvi-tools did not write it."""
    if (path / HEADER).is_file():
        return "index of neighbours"
    if (path / CARD).is_file() and not (path / CONFIG).is_file():
        return "card"
    try:
        return name_place(path)
    except SourceError:
        return None


def find_whole(path: Path) -> Path | None:
    """The folder that a file or folder is a part of, if atlasvi wrote it: RUN for RUN/model.pt; None if it is no part.

    Counts that a user has put into such a folder are no part of it.
    """
    if not path.exists():
        return None
    for above in [*path.parents[:DEEPEST], *path.absolute().parents[:DEEPEST]]:
        if (kind := name_kind(above)) is not None:
            name = path.absolute().name
            known = name in PARTS or CHECKPOINT.fullmatch(name) or kind.endswith("store")
            return above if known or not _holds_counts(path) else None
    return None


def name_part(part: Path) -> str:
    """What a part is, in words."""
    name = part.absolute().name
    return "a checkpoint" if CHECKPOINT.fullmatch(name) else PARTS.get(name, "a part")


def describe_checkpoints(part: Path) -> Iterator[str]:
    """A line on the steps of the checkpoints in a folder, or of one."""
    names = sorted(file.name for file in part.iterdir()) if part.is_dir() else [part.name]
    steps = [int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name))]
    if steps:
        yield f"  {count(len(steps), 'checkpoint')}, after step {', '.join(f'{step:,}' for step in steps)}"


def list_held(folder: Path) -> list[str]:
    """A line for each thing in a folder that atlasvi wrote, or can read as counts; none if the folder is counts."""
    lines = list[str]()
    if _holds_counts(folder):
        return lines
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        kind = name_kind(path)
        if kind is None and not path.name.startswith(".") and _holds_counts(path):
            kind = "counts"
        if kind is not None:
            lines.append(f"  {path.name}: {kind}")
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN:,} more"]


def _holds_counts(path: Path) -> bool:
    try:
        recognise(str(path))
    except (SourceError, OSError):
        return False
    return True
