"""How a finished run went, in sentences: for the end of training, and for `atlasvi info`. Does not import torch."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from atlasvi.engine.model.run_files import METRICS, MODEL, RESULT
from atlasvi.engine.terminal import count
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.sources.data_spec import MEMORY, DataSpec

NAMES = {"train": "training", "validation": "held-out", "test": "test"}


def summarise_run(result: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Lines on a finished run: its length and speed, its losses, which weights it kept, whether it stopped early.

    result    as result.json holds it; settings: those of the run, as config.json holds them
    Raises KeyError if `result` is not complete.
    """
    first = f"{count(result['epochs'], 'epoch')}, {count(result['steps'], 'step')}"
    yield f"finished after {first} in {write_seconds(result['seconds'])}: {result['cells_per_s']:,.0f} cells/s"
    for part, name in NAMES.items():
        if part in result:
            losses = result[part]
            yield (
                f"{name} cells: ELBO {losses['elbo']:.2f} nats per cell "
                f"(reconstruction {losses['reconstruction_loss']:.2f}, KL {losses['kl']:.2f})"
            )
    kept = result.get("kept_epoch")
    if kept is not None:
        why = "the last one" if kept + 1 == result["epochs"] else "the best of the held-out cells"
        yield f"weights kept: those after epoch {kept + 1} ({why})"
    if result.get("stopped_early"):
        metric, waited = settings["early_stopping_monitor"], settings["early_stopping_patience"]
        yield f"stopped early: {metric} had not improved for {count(waited, 'epoch')}"


def name_next_steps(out: Place, data: DataSpec | None) -> Iterator[str]:
    """Lines on where the files of a finished run are, and on what to do next, if its data was a file."""
    board = ["tensorboard/"] if (out / "tensorboard").is_dir() else []
    yield f"in {out}: {', '.join([MODEL, RESULT, METRICS, *board, 'checkpoints/'])}"
    if data is not None and data.format != MEMORY:
        yield f"next: {shlex.join(['atlasvi', 'minify', str(out), str(data), '--out', f'{out}.mini'])}"


def write_seconds(seconds: float) -> str:
    """A time as a person says it: '4.2 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = divmod(round(whole / 60), 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
