"""A training run from start to end: epochs of steps, validation, checkpoints, the result.

This module decides the order of events, and when to stop. The parts of a run are in `run_parts`, its state in
`checkpoint_content`, the work on a minibatch in `step`.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NoReturn

import torch

from atlasvi.engine.distributed.signals import Signals, TrainingInterrupted
from atlasvi.engine.model.loss_terms import LossTerms
from atlasvi.engine.model.run_files import CONFIG, METRICS, MODEL, RESULT
from atlasvi.engine.model.trained_run import MappedFrom, TrainedRun, lock_run
from atlasvi.engine.provenance import Provenance
from atlasvi.engine.terminal import count
from atlasvi.engine.training.checkpoint_content import Best, RunState
from atlasvi.engine.training.checkpoint_files import CheckpointWriter, copy_state, list_checkpoints
from atlasvi.engine.training.evaluation import Evaluation, StopAskedError, evaluate, warn_of_collapse
from atlasvi.engine.training.metric_writers import open_writers
from atlasvi.engine.training.profiling import StepProfiler, record_function
from atlasvi.engine.training.progress import RunLog, SilentLog
from atlasvi.engine.training.result import make_result
from atlasvi.engine.training.resuming import resume_command
from atlasvi.engine.training.run_parts import RunParts
from atlasvi.engine.training.schedule import costs, epochs_since_best, rate_on_plateau, scale_rate, weigh_kl
from atlasvi.engine.training.settings import warn_of_few_steps
from atlasvi.engine.training.step import Step, StepTerms
from atlasvi.engine.training.summary import name_next_steps, summarise_run
from atlasvi.engine.training.training_error import (
    TrainingError,
    explain_failure,
    find_infinite_loss,
    find_infinite_weights,
)
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.manifest import write_json, write_manifest


class Trainer:
    """Trains the model of a run; `state` is the state of the run, `step` does its minibatches."""

    def __init__(
        self,
        parts: RunParts,
        profile: bool = False,
        metrics: Sequence[str] | None = None,
        is_resumed: bool = False,
    ) -> None:
        self.parts, self.ranks, self.settings, self.loaders = parts, parts.ranks, parts.settings, parts.loaders
        assert self.settings.epochs is not None
        self.epochs = self.settings.epochs
        steps_an_epoch = math.ceil(len(self.loaders["train"]) / self.settings.accumulate)
        self._n_steps = min(self.epochs * steps_an_epoch, self.settings.max_steps or sys.maxsize)
        self._profile_folder = parts.out / "profile" if profile else None
        self._metrics, self.is_resumed = metrics, is_resumed
        self.step = Step(
            parts.model,
            parts.optimizer,
            self.loaders["train"],
            self.ranks,
            self.settings,
            parts.seed,
            may_capture=not profile,
        )
        self.state = RunState()
        self.signals = Signals()
        self._began: float | None = None
        self._validations: dict[int, Evaluation] = {}  # of the best epoch and the last one, if this process did them

    def run(self, signals: Signals) -> TrainedRun:
        """Train to the end, then write the model and its result."""
        parts, out = self.parts, self.parts.out
        with ExitStack() as open_until_done:
            enter = open_until_done.enter_context
            self._writer = CheckpointWriter(out / "checkpoints", self.settings.checkpoints_kept)
            open_until_done.callback(self._writer.close)
            if self.ranks.is_first:
                enter(lock_run(out))
            self.ranks.note("opening the log")
            self.log = self._open_log()
            self.ranks.note("starting to read")
            enter(self.log)
            self._profiler = enter(StepProfiler(self._profile_folder if self.ranks.is_first else None))
            self.signals, signals.waits = signals, True
            self.log.say(self._describe())
            if warning := warn_of_few_steps(self.settings, self.loaders["train"].n_cells):
                self.log.say(warning)
            self._began = self._saved = time.monotonic()
            self._began -= self.state.seconds
            while self.state.epoch < self.epochs and not self._is_done():
                self._train_epoch()
            self.state.seconds = time.monotonic() - self._began
            self._writer.wait()
            try:
                found = make_result(parts, self.state, self.step.n_bytes_reduced, self._evaluate_weights)
            except StopAskedError:
                self._interrupt(save=False)
            result = self.ranks.from_first(lambda: found, "the result")
            if warning := warn_of_collapse(result["informative_latents"], parts.model.n_latent):
                self.log.say(warning)
        genes = [str(gene) for gene in parts.data.genes]
        run = TrainedRun(
            parts.model.cpu().float().eval(),
            genes,
            parts.setup,
            result,
            out,
            freezing=self.settings.freezing,
            data=parts.data.spec,
            provenance=Provenance.from_record(parts.config.get("provenance")),
            mapped_from=MappedFrom.from_saved(parts.config.get("mapped_from")),
        )
        if self.ranks.is_first:
            write_json(out / RESULT, result)
            run.save(out)
            write_manifest(out, (CONFIG, METRICS, RESULT, MODEL))
        first, *others = summarise_run(result, parts.settings.model_dump())
        for line in (f"{out}: {first}", *(f"  {line}" for line in (*others, *name_next_steps(out, run.data)))):
            self.log.say(line)
        return run

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. Raises any exception if its content is wrong."""
        self.state = RunState.from_saved(saved)
        self.parts.load(saved)
        self.epochs += self.state.first_epoch
        self.loaders["train"].set_epoch(self.state.epoch, self.state.batch)

    def begin_from(self, saved: Mapping[str, Any]) -> None:
        """Train another run further (see `prepare_start`): epochs and steps continue, its best weights are dropped."""
        self.state = RunState.beginning_from(saved)
        self.parts.load(saved, keep_rates=True)
        self.epochs += self.state.first_epoch
        self.loaders["train"].set_epoch(self.state.epoch)

    def save_state(self) -> dict[str, Any]:
        """All that a resumed run needs, as a checkpoint keeps it."""
        if self._began is not None:
            self.state.seconds = time.monotonic() - self._began
        return {
            "weights": copy_state(self.parts.model.state_dict()),
            "optimizer": copy_state(self.parts.optimizer.state_dict()),
            **self.state.to_saved(),
        }

    def _describe(self) -> str:
        """A line on what will run, and how."""
        parts, settings = self.parts, self.settings
        cells, genes, state = self.loaders["train"].n_cells, len(parts.data.genes), self.state
        where = f"{torch.get_num_threads()} threads" if parts.device.type == "cpu" else torch.cuda.get_device_name()
        ranks = f", {self.ranks.world_size} ranks" if self.ranks.world_size > 1 else ""
        size, asked = self.loaders["train"].batch_size, settings.batch_size
        smaller = (
            f" (not {asked:,}: an epoch has at least {settings.least_steps_an_epoch} steps)" if size < asked else ""
        )
        stops, metric = settings.early_stopping, settings.early_stopping_monitor
        unwatched = stops and metric.startswith("validation") and not self.loaders["validation"].n_cells
        first, last = state.epoch + 1, self.epochs  # as the lines of the epochs count them
        ahead = f"epoch {first} of {last}" if first == last else f"epochs {first} to {last}"
        ahead = f"{ahead}, after step {state.step:,}" if state.step else count(last, "epoch")
        return (
            f"Training on {count(cells, 'cell')} x {count(genes, 'gene')}, {ahead}, minibatches of "
            f"{size:,}{smaller}, on {parts.device} ({where}{ranks}; kernels: {parts.kernels}"
            f"{', as a CUDA graph' if self.step.is_graph else ''})"
            f"{'; no cell is held out, so there is no early stopping' if unwatched else ''}"
        )

    def _open_log(self) -> RunLog | SilentLog:
        if not self.ranks.is_first:
            return SilentLog()
        out, steps_an_epoch = self.parts.out, len(self.loaders["train"])
        notes = list[str]()
        log = RunLog(
            out / METRICS,
            self.epochs,
            steps_an_epoch,
            self.state.history,
            writers=open_writers(self._metrics, out, self.parts.config, notes.append),
            done=self.state.epoch + self.state.batch / max(steps_an_epoch, 1),
            backend=self.parts.kernels,
        )
        for note in notes:
            log.say(note)
        return log

    def _train_epoch(self) -> None:
        """The rest of the current epoch, its validation, and the checkpoint at its end."""
        state, step = self.state, self.step
        kl_weight = self._kl_weight(max(state.step - 1, 0))  # the last step's, if a resumed epoch has no steps left
        self.parts.model.train(self.settings.freezing is None)  # query mapping: evaluation mode, see `Freezing`
        began = time.monotonic() - state.epoch_seconds
        feeder = DeviceFeeder(self.loaders["train"], self.parts.device)
        for batch in _mark_waits(feeder):
            done, kl_weight = feeder.state_dict()["batch"], self._kl_weight()
            step.set_rate(self._learning_rate())
            found = step.take(batch, done - 1, state.step, kl_weight, self._stop_asked)
            if not step.ends(done - 1):
                continue
            stop = self._count(found, kl_weight)
            step.update()
            state.step += 1
            state.batch = done
            self._profiler.step()
            state.epoch_seconds = time.monotonic() - began
            self.log.step(state.epoch, done, state.step, _name("train", state.terms.means()), self._rate())
            if stop or (self._stop_asked() and not self.ranks.reduces):
                self._interrupt()
            self._checkpoint_if_due()
            if state.step - state.first_step == self.settings.max_steps:
                break
            self.ranks.note(f"loading the minibatch after step {state.step}")
        self._count(step.take_last(), kl_weight)
        state.epoch_seconds = time.monotonic() - began
        self._end_epoch(kl_weight)

    def _count(self, found: StepTerms | None, kl_weight: float) -> bool:
        """Add the terms of a step to those of the epoch; returns whether some rank was asked to stop."""
        if found is None:
            return False
        if wrong := find_infinite_loss(found.terms, kl_weight):
            number = self.state.step + (not self.step.is_graph)
            raise self._explain_failure(number, wrong)
        self.state.terms += found.terms
        return found.stop

    def _explain_failure(self, step: int, what: str) -> TrainingError:
        """The error that ends the run; it names the checkpoint that was still being written, too."""
        if self.ranks.is_first:
            with suppress(AtlasviError):  # what ends the run is another error
                self._writer.wait()
        return explain_failure(self.parts.out, self.state.epoch, step, what)

    def _stop_asked(self) -> bool:
        """Whether a signal asked this rank to stop."""
        return bool(self.signals.caught)

    def _check_weights(self) -> None:
        if wrong := find_infinite_weights(self.parts.model):
            raise self._explain_failure(self.state.step, wrong)

    def _end_epoch(self, kl_weight: float) -> None:
        self._check_weights()
        state = self.state
        try:
            due = self.loaders["validation"].n_cells and (state.epoch + 1) % self.settings.validate_every == 0
            validation = self._evaluate("validation") if due else None
        except StopAskedError:
            state.batch = len(self.loaders["train"])
            self._interrupt()
        parts = {"train": state.terms} | ({} if validation is None else {"validation": validation.terms})
        measures = {name: value for part, terms in parts.items() for name, value in _name(part, terms.means()).items()}
        line = {
            "kind": "epoch",
            "epoch": state.epoch,
            "step": state.step,
            "kl_weight": kl_weight,
            "learning_rate": self._learning_rate(max(state.step - 1, 0)),
            **measures,
            **self._losses(kl_weight, parts),
            "n_cells": int(state.terms.n_cells),
            "cells_per_s": self._rate(),
            "seconds": time.monotonic() - (self._began or 0.0),
        }
        line = self.ranks.from_first(lambda: line, "the end of the epoch")
        if validation is not None:
            elbo = validation.terms.means()["elbo"]
            if elbo > state.best.elbo + self.settings.early_stopping_min_delta:
                state.best = Best(elbo, state.epoch, copy_state(self.parts.model.state_dict()))
            best = {epoch: found for epoch, found in self._validations.items() if epoch == state.best.epoch}
            self._validations = {**best, state.epoch: validation}
        self.log.epoch(line)
        state.end_epoch(line)
        self._stop_if_due()
        self.loaders["train"].set_epoch(state.epoch)
        self.checkpoint()

    def _stop_if_due(self) -> None:
        """Stop early if the history of this run calls for it."""
        settings, history = self.settings, self.state.history[self.state.first_epoch :]
        watched = costs(history[settings.early_stopping_warmup_epochs :], settings.early_stopping_monitor)
        waited = epochs_since_best(watched, settings.early_stopping_min_delta)
        self.state.stopped_early = settings.early_stopping and waited >= settings.early_stopping_patience

    def _is_done(self) -> bool:
        steps = self.settings.max_steps
        return self.state.stopped_early or (steps is not None and self.state.step - self.state.first_step >= steps)

    def _kl_weight(self, step: int | None = None) -> float:
        """KL weight at a step of the current epoch, counted from 0; None: at the next step."""
        settings = self.settings
        return weigh_kl(
            self.state.epoch,
            self.state.step if step is None else step,
            settings.kl_warmup_epochs,
            settings.kl_warmup_steps,
            settings.min_kl_weight,
            settings.max_kl_weight,
        )

    def _learning_rate(self, step: int | None = None) -> float:
        """The learning rate at a step, counted from 0; None: at the next step."""
        settings, state = self.settings, self.state
        rate = settings.learning_rate
        assert rate is not None
        assert settings.learning_rate_warmup is not None
        assert settings.learning_rate_decay is not None
        if settings.reduce_lr_on_plateau:
            rate = rate_on_plateau(
                costs(state.history[state.first_epoch :], settings.lr_scheduler_metric),
                rate,
                settings.lr_factor,
                settings.lr_patience,
                settings.lr_threshold,
                settings.lr_min,
            )
        done = (state.step if step is None else step) - state.first_step
        return rate * scale_rate(done, self._n_steps, settings.learning_rate_warmup, settings.learning_rate_decay)

    def _rate(self) -> float:
        """Cells/s of the current epoch, including the time spent waiting for data."""
        return self.state.terms.n_cells / max(self.state.epoch_seconds, 1e-9)

    def _losses(self, kl_weight: float, parts: Mapping[str, LossTerms]) -> dict[str, float]:
        """The loss of an epoch that had one KL weight throughout."""
        if self.settings.kl_warmup_steps and not self.settings.kl_warmup_epochs:
            return {}
        losses = {f"{part}_loss": terms.loss(kl_weight) for part, terms in parts.items()}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _evaluate_weights(self, part: str, epoch: int) -> Evaluation:
        """The losses of the model over a part, for the result; `epoch` is the one after which it had these weights."""
        if part == "validation" and epoch in self._validations:  # the same weights, cells and random draws
            return self._validations[epoch]
        return self._evaluate(part, self.settings.evaluation_cells if part == "train" else None)

    def _evaluate(self, part: str, most: int | None = None) -> Evaluation:
        """The losses over at most `most` cells of a part. Training cells are shuffled with an unused epoch number."""
        return evaluate(
            self.step,
            self.loaders[part],
            part,
            epoch=self.epochs if part == "train" else 0,
            most=most,
            stop_asked=self._stop_asked,
        )

    def checkpoint(self) -> None:
        """Save the state of the run in the background."""
        self._count(self.step.take_last(), self._kl_weight())
        self._check_weights()
        if self.ranks.is_first:
            self.ranks.note("copying the checkpoint")
            self._writer.submit(self.state.step, self.save_state())
        self._saved = time.monotonic()

    def _checkpoint_if_due(self) -> None:
        """All ranks are in the same state, so rank 0 can decide alone."""
        if not self.ranks.is_first:
            return
        self._writer.check()
        every = self.settings.checkpoint_steps
        is_late = time.monotonic() - self._saved > self.settings.checkpoint_minutes * 60
        if is_late or (every and self.state.step % every == 0):
            self.checkpoint()

    def _interrupt(self, save: bool = True) -> NoReturn:
        """End the run so that it can be resumed: from here, or from its last checkpoint."""
        if save:
            self.checkpoint()
        if self.ranks.is_first:
            self._writer.wait()
        self.ranks.wait_for_all("the checkpoint")
        out, step = self.parts.out, self.state.step
        by = self.signals.caught[0] if self.signals.caught else "a signal to another rank"
        saved = list_checkpoints(out / "checkpoints")[0].name if self.ranks.is_first else ""
        stopped = TrainingInterrupted(
            f"{out}: stopped by {by} after step {step}, saved in {saved}. "
            f"Resume with: {resume_command(self.parts.data, out, self.parts.asked_device)}"
        )
        stopped.agreed, stopped.what = True, f"stopped by {by} after step {step}"
        raise stopped


def _name(part: str, measures: Mapping[str, float]) -> dict[str, float]:
    """Measures under the names in lines of metrics: prefixed with the part of the cells."""
    return {f"{part}_{name}": value for name, value in measures.items()}


def _mark_waits(feeder: DeviceFeeder) -> Iterator[Batch]:
    """The minibatches of a feeder; the time spent waiting for each is marked for the profiler."""
    with closing(iter(feeder)) as batches:  # type: ignore[type-var]  # a generator
        while True:
            with record_function("load wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
