"""Reports of a running training: a live line on a terminal, JSON lines, TensorBoard; all have the same numbers."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from atlasvi.engine.terminal import make_printable, say
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.outputs import write_whole

STEP_LINE_SECONDS = 10.0
PLAIN_LINE_SECONDS = 5.0


class RunLog:
    """Writes the metrics of a run; a context manager.

    The line of an epoch has the kind 'epoch'; during long epochs there is a line of kind 'step' every ten seconds.
    `history` are the lines of a resumed run: the file starts with them, and lines after its checkpoint are dropped.
    """

    def __init__(
        self, metrics: Path, tensorboard: Path, epochs: int, steps_an_epoch: int, history: Iterable[dict]
    ) -> None:
        self._epochs, self._steps_an_epoch = epochs, steps_an_epoch
        write_whole(metrics, "".join(json.dumps(line) + "\n" for line in history).encode())
        self._file = open(metrics, "a", buffering=1)  # noqa: SIM115
        self._writer = _open_tensorboard(tensorboard)
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bars.add_task("", total=epochs * steps_an_epoch, epoch=f"1/{epochs}", numbers="")
        self._validation = ""
        self._said = self._logged = time.monotonic()

    def __enter__(self) -> "RunLog":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def step(self, epoch: int, batch: int, step: int, losses: Mapping[str, float], cells_per_s: float) -> None:
        """Report an optimizer step: `batch` minibatches of `epoch` are done, `losses` are the epoch's means so far."""
        now = time.monotonic()
        if now - self._logged > STEP_LINE_SECONDS:
            self._logged = now
            self._write({"kind": "step", "epoch": epoch, "step": step, **losses, "cells_per_s": cells_per_s})
        if self._live:
            numbers = f"ELBO {losses['train_elbo']:,.1f}{self._validation}  {cells_per_s:,.0f} cells/s"
            self._bars.update(
                self._task,
                completed=epoch * self._steps_an_epoch + batch,
                epoch=f"{epoch + 1}/{self._epochs}",
                numbers=numbers,
            )

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Report the metrics of an epoch at its end."""
        self._write(line)
        if "validation_elbo" in line:
            self._validation = f"  held out {line['validation_elbo']:,.1f}"
        now, last = time.monotonic(), line["epoch"] + 1 == self._epochs
        if not self._live and (now - self._said > PLAIN_LINE_SECONDS or last):
            self._said = now
            left = line["seconds"] / (line["epoch"] + 1) * (self._epochs - line["epoch"] - 1)
            self.say(
                f"epoch {line['epoch'] + 1}/{self._epochs}: ELBO {line['train_elbo']:,.1f}{self._validation} nats "
                f"per cell, {line['cells_per_s']:,.0f} cells/s, {left:,.0f} s left"
            )

    def say(self, sentence: str) -> None:
        """Print a line for the user."""
        if self._live:
            self._console.print(make_printable(sentence), highlight=False, soft_wrap=True, markup=False, emoji=False)
        else:
            say(sentence, error=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self._file.name}: can't be written ({error.strerror}): correct that, then continue with --resume."
            ) from error
        if self._writer is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, line["step"])


class SilentLog:
    """The log of a rank that is not the first: it reports nothing."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, epoch: int, batch: int, step: int, losses: Mapping[str, float], cells_per_s: float) -> None:
        """See RunLog."""

    def epoch(self, line: Mapping[str, Any]) -> None:
        """See RunLog."""

    def say(self, sentence: str) -> None:
        """See RunLog."""


def _open_tensorboard(folder: Path) -> Any:
    """A TensorBoard writer if tensorboard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
