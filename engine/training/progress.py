"""Reports of a running training: a live line on a terminal, JSON lines, metric writers; all have the same numbers."""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from atlasvi.engine.terminal import make_printable, say
from atlasvi.engine.training.metric_writers import MetricWriter
from atlasvi.engine.training.summary import write_seconds
from atlasvi.kernels.compiling import watch_compilation
from atlasvi.loaders.errors import OutputError, StorageError
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.line_files import open_lines
from atlasvi.loaders.places.object_path import Place

STEP_LINE_SECONDS = 10.0
PLAIN_LINE_SECONDS = 5.0


class RunLog:
    """Writes the metrics of a run; a context manager.

    The line of an epoch has the kind 'epoch'; during long epochs there is a line of kind 'step' every ten seconds.
    history  the lines of a resumed run: the file starts with them, and lines after its checkpoint are dropped
    writers  get the same numbers
    done     epochs that are done already, perhaps with a part of one: the time left is forecast from those after it
    backend  of the kernels: the first time on a machine they are compiled, which is said and not forecast
    """

    def __init__(
        self,
        metrics: Place,
        epochs: int,
        steps_an_epoch: int,
        history: Iterable[dict],
        *,
        writers: Sequence[MetricWriter] = (),
        done: float = 0.0,
        backend: str = "cpu",
    ) -> None:
        self._epochs, self._steps_an_epoch = epochs, steps_an_epoch
        write_whole(metrics, "".join(json.dumps(line) + "\n" for line in history).encode())
        self._file = open_lines(metrics)
        self._writers, self._failed = writers, set[str]()
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
        self._task = self._bars.add_task(
            "",
            total=epochs * steps_an_epoch,
            completed=round(done * steps_an_epoch),
            epoch=f"{int(done) + 1}/{epochs}",
            numbers="",
        )
        self._validation = ""
        self._done, self._backend = done, backend
        self._began = self._said = self._logged = time.monotonic()

    def __enter__(self) -> "RunLog":
        self._bars.start()
        self._until_exit = ExitStack()
        self._compiling = self._until_exit.enter_context(watch_compilation(self._say_compiling, self._backend))
        return self

    def __exit__(self, *error: object) -> None:
        self._until_exit.close()
        self._bars.stop()
        with contextlib.suppress(StorageError) if error[0] is not None else contextlib.nullcontext():
            self._file.close()
        for writer in self._writers:
            self._pass_on(writer, "close", error[0] is not None)

    def _say_compiling(self) -> None:
        self.say("Kernels are compiled for this machine: once, later runs find them in a cache.")

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
            self.say(
                f"epoch {line['epoch'] + 1}/{self._epochs}: ELBO {line['train_elbo']:,.1f}{self._validation} nats "
                f"per cell, {line['cells_per_s']:,.0f} cells/s, {write_seconds(self._forecast(line['epoch'] + 1))} left"
            )

    def _forecast(self, epoch: int) -> float:
        """Seconds that the epochs after the first `epoch` ones will take, from the speed since this process began."""
        speed = (time.monotonic() - self._began - self._compiling.seconds) / max(epoch - self._done, 1e-9)
        return speed * (self._epochs - epoch)

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
        numbers = {name: value for name, value in line.items() if isinstance(value, float)}
        for writer in self._writers:
            self._pass_on(writer, "write", numbers, line["step"])

    def _pass_on(self, writer: MetricWriter, act: str, *arguments: Any) -> None:
        """Call a metric writer. One that fails is told of once and left out: training does not depend on a server."""
        name = writer.name
        if name in self._failed:
            return
        try:
            getattr(writer, act)(*arguments)
        except Exception as error:  # whatever a package for metrics raises
            self._failed.add(name)
            self.say(f"Warning: {name} gets no more metrics ({type(error).__name__}: {error}); training goes on.")


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
