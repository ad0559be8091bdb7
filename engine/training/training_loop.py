"""One training run: minibatches -> loss -> step, validation, checkpoints on the way, the result at the end."""

import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from atlasvi.engine.distributed.batch_norm import share_batch_norm
from atlasvi.engine.distributed.gradient_sums import GradientSum
from atlasvi.engine.distributed.ranks import Ranks
from atlasvi.engine.distributed.signals import Signals, TrainingInterrupted
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.library_prior import measure_library
from atlasvi.engine.model.model_options import ModelOptions, ModelSettings
from atlasvi.engine.model.noise import INITIAL_WEIGHTS, TRAINING_NOISE, seed_draws, share_noise
from atlasvi.engine.model.trained_run import CONFIG, METRICS, MODEL, RESULT, RUN_FORMAT, TrainedRun, lock_run
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.terminal import count
from atlasvi.engine.training.checkpoint import (
    CheckpointWriter,
    check_state,
    copy_state,
    list_checkpoints,
    step_of,
)
from atlasvi.engine.training.cuda_graph import DelayedRead, GraphedStep, can_be_captured
from atlasvi.engine.training.evaluation import (
    StopAskedError,
    count_informative,
    evaluate,
    mean_losses,
    warn_of_collapse,
)
from atlasvi.engine.training.freezing import group_parameters
from atlasvi.engine.training.profiling import StepProfiler, record_function
from atlasvi.engine.training.progress import RunLog, SilentLog
from atlasvi.engine.training.resuming import fingerprint, resume_command
from atlasvi.engine.training.schedule import MEASURES, costs, epochs_since_best, rate_on_plateau, weigh_kl
from atlasvi.engine.training.settings import SettingError, Settings, resolve_schedule
from atlasvi.engine.training.splits import Split, split_by_column, split_by_hash
from atlasvi.kernels import choose_backend
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData
from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.manifest import write_json, write_manifest


class TrainingError(AtlasviError, RuntimeError):
    """Training can't go on.

    what  what happened, without where the last good checkpoint is
    """

    what = "it can't go on"


def launch_id() -> str | None:
    """Of torchrun's launch that this process is of, if any: restarts have it in common."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


class Trainer:
    """One run over one data set; everything is checked before anything is written."""

    def __init__(
        self,
        data: CellData,
        out: Path,
        setup: Setup,
        asked: Mapping[str, Any],
        settings: Settings,
        device: str,
        profile: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.data, self.out, self.seed = data, out, int(asked["seed"])
        self.ranks = ranks or Ranks()
        self.setup = setup
        self._profile_folder = out / "profile" if profile else None
        self.device, self.asked_device = choose_device(device), device
        dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self._kernels = choose_backend(self.device, dtype=dtype)
        if settings.precision == "bf16" and self._kernels != "triton":
            raise SettingError(f"Setting precision = 'bf16': the kernels for {self.device} have float32 and float64.")
        self._codes = setup.read_codes(data, labels=settings.dispersion == "gene-label")
        self.ranks.note("splitting the cells")
        self.split: Split = (
            split_by_hash(data, settings.validation_fraction, self.seed)
            if asked["split_column"] is None
            else split_by_column(data, asked["split_column"], needs_validation=settings.validation_fraction > 0)
        )
        self.ranks.note("planning the epochs")
        self.loaders = {
            part: BatchLoader(
                data,
                settings.batch_size,
                self.seed,
                codes=self._codes,
                cells=getattr(self.split, part),
                shuffle=part == "train",
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
            )
            for part in ("train", "validation", "test")
        }
        self.settings = resolve_schedule(settings, self.loaders["train"].n_cells)
        assert self.settings.epochs is not None
        self.epochs = self.settings.epochs
        self.config = {
            "atlasvi": _version("atlasvi"),
            "format_version": RUN_FORMAT,
            "data": data.spec.to_record(),
            **fingerprint(data),
            **asked,
            "setup": asdict(setup),
            "device": str(self.device),
            "kernels": self._kernels,
            "launch": launch_id(),
            "settings": self.settings.model_dump(),
        }
        self.ranks.note("making the model")
        options = {name: getattr(settings, name) for name in ModelOptions.model_fields}
        self.model = VAE(
            ModelSettings(n_genes=len(data.genes), **setup.sizes, **options),
            seed_draws(torch.Generator(), self.seed, INITIAL_WEIGHTS, 0),
        ).to(self.device, dtype)
        if self.ranks.reduces:
            share_batch_norm(self.model)
        if settings.precision == "bf16":
            self.model.precision = "bf16"
        self.optimizer = getattr(torch.optim, settings.optimizer)(
            group_parameters(self.model, settings.freezing, settings.weight_decay),
            lr=settings.learning_rate,
            eps=settings.adam_eps,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self._noise = torch.Generator(self.device)
        alone = self.ranks.world_size == 1 and settings.accumulate == 1
        self._graphed = (
            GraphedStep(self._do_step, self._noise, self.device)
            if settings.cuda_graph and not profile and alone and can_be_captured(self.model, self.device)
            else None
        )
        self._delayed = DelayedRead()
        learned = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self._gradients = GradientSum(self.ranks, learned, settings.compress_gradients)
        self.signals = Signals()
        self.step = 0
        self.epoch = 0
        self.sums = np.zeros(3)  # of the running epoch: cells, reconstruction, KL
        self.epoch_seconds = 0.0  # of its steps
        self.history: list[dict[str, Any]] = []
        self.first_epoch, self.first_step = 0, 0  # above 0 where another run was the start of this one
        self.best: dict[str, Any] = {"elbo": -math.inf, "epoch": -1, "weights": {}}
        self.seconds = 0.0
        self.stopped_early = False

    def check_watched(self) -> None:
        """Raises SettingError if training was asked to watch the losses of validation cells, and there are none."""
        settings = self.settings
        stops = settings.early_stopping and "early_stopping" in settings.model_fields_set  # not where it is the default
        for name, asked, metric in (
            ("early_stopping", stops, settings.early_stopping_monitor),
            ("reduce_lr_on_plateau", settings.reduce_lr_on_plateau, settings.lr_scheduler_metric),
        ):
            if asked and metric.startswith("validation") and not self.loaders["validation"].n_cells:
                raise SettingError(
                    f"{name} watches {metric}, and no cell is held out to validate on: hold some out, or watch "
                    f"{metric.replace('validation', 'train')}."
                )

    def run(self, signals: Signals) -> TrainedRun:
        """Train to the end and write the model and its result."""
        with ExitStack() as open_until_done:
            enter = open_until_done.enter_context
            self._writer = CheckpointWriter(self.out / "checkpoints", self.settings.checkpoints_kept)
            open_until_done.callback(self._writer.close)
            if self.ranks.is_first:
                enter(lock_run(self.out))
            self.ranks.note("opening the log")
            self.log = self._open_log()
            self.ranks.note("starting to read")
            enter(self.log)
            self._profiler = enter(StepProfiler(self._profile_folder if self.ranks.is_first else None))
            self.signals, signals.waits = signals, True
            self.log.say(self._describe())
            self._began = self._saved = time.monotonic()
            self._began -= self.seconds
            while self.epoch < self.epochs and not self._is_done():
                self._train_epoch()
            self.seconds = time.monotonic() - self._began
            self._writer.wait()
            try:
                found = self._evaluate_all()
            except StopAskedError:
                self._interrupt(None)
            result = self.ranks.from_first(lambda: found, "the result")
            if warning := warn_of_collapse(result["informative_latents"], self.model.n_latent):
                self.log.say(warning)
        run = TrainedRun(
            self.model.cpu().float().eval(),
            [str(gene) for gene in self.data.genes],
            self.setup,
            result,
            self.out,
            data=self.data.spec,
        )
        if self.ranks.is_first:
            write_json(self.out / RESULT, result)
            run.save(self.out)
            write_manifest(self.out, (CONFIG, METRICS, RESULT, MODEL))
        return run

    def _describe(self) -> str:
        """A line on what is about to run, and how."""
        cells, genes, left = self.loaders["train"].n_cells, len(self.data.genes), self.epochs - self.epoch
        where = f"{torch.get_num_threads()} threads" if self.device.type == "cpu" else torch.cuda.get_device_name()
        ranks = f", {self.ranks.world_size} ranks" if self.ranks.world_size > 1 else ""
        stops, metric = self.settings.early_stopping, self.settings.early_stopping_monitor
        unwatched = stops and metric.startswith("validation") and not self.loaders["validation"].n_cells
        return (
            f"Training on {count(cells, 'cell')} x {count(genes, 'gene')}, {count(left, 'epoch')}, minibatches of "
            f"{self.settings.batch_size:,}, on {self.device} ({where}{ranks}; kernels: {self._kernels}"
            f"{', as a CUDA graph' if self._graphed is not None else ''})"
            f"{'; no cell is held out, so nothing stops it early' if unwatched else ''}"
        )

    def _open_log(self) -> RunLog | SilentLog:
        if not self.ranks.is_first:
            return SilentLog()
        steps_an_epoch = len(self.loaders["train"])
        return RunLog(self.out / METRICS, self.out / "tensorboard", self.epochs, steps_an_epoch, self.history)

    def _train_epoch(self) -> None:
        """What is left of the current epoch, validation, and the checkpoint that ends it."""
        loader = self.loaders["train"]
        kl_weight = self._kl_weight(max(self.step - 1, 0))  # of the last step, where a resumed epoch has none left
        self.model.train(self.settings.freezing is None)  # new data onto an old model: see `Freezing`
        began = time.monotonic() - self.epoch_seconds
        feeder = DeviceFeeder(loader, self.device)
        totals: torch.Tensor | None = None
        for batch in _mark_waits(feeder):
            done, kl_weight = feeder.state_dict()["batch"], self._kl_weight()
            if self._graphed is not None:
                seed_draws(self._noise, self.seed, TRAINING_NOISE, self.step)
                rates = tuple(group["lr"] for group in self.optimizer.param_groups)
                stop = self._count(self._delayed.swap(self._graphed(batch, kl_weight, rates)), kl_weight)
            else:
                sums = self._compute_gradients(batch, done - 1, kl_weight, totals)
                if done % self.settings.accumulate and done < len(loader):
                    totals = sums
                    continue
                totals = None
                stop = self._count(sums.cpu().tolist(), kl_weight)
                with record_function("optimizer"):
                    self.optimizer.step()
            self.step += 1
            self._profiler.step()
            self.epoch_seconds = time.monotonic() - began
            self.log.step(self.epoch, done, self.step, self._means("train"), self._rate())
            if stop or (self.signals.caught and not self.ranks.reduces):
                self._interrupt(done)
            self._checkpoint_if_due(done)
            if self.step - self.first_step == self.settings.max_steps:
                break
            self.ranks.note(f"loading the minibatch after step {self.step}")
        self._count(self._delayed.take(), kl_weight)
        self.epoch_seconds = time.monotonic() - began
        self._end_epoch(kl_weight)

    def _count(self, sums: Sequence[float] | None, kl_weight: float) -> bool:
        """Add a step's sums (cells, reconstruction, KL, stops asked) to the epoch's; whether a stop was asked."""
        if sums is None:
            return False
        cells, reconstruction, kl, stop = sums
        self._check_finite(np.array([reconstruction, kl]) / cells, kl_weight)
        self.sums += [cells, reconstruction, kl]
        return bool(stop)

    def _do_step(self, batch: Batch, kl_weight: torch.Tensor) -> torch.Tensor:
        """A whole step of one process, without a word to or from the host: float64 [4], as `_compute_gradients`."""
        reconstruction, kl, kl_library = self.model(batch, self._noise, len(batch))
        loss = (reconstruction + kl_weight * kl + kl_library).sum() / len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        found = torch.stack([reconstruction.detach().sum(), (kl + kl_library).detach().sum()]).double()
        return torch.nn.functional.pad(torch.nn.functional.pad(found, (1, 0), value=len(batch)), (0, 1))

    def _compute_gradients(
        self, batch: Batch, number: int, kl_weight: float, totals: torch.Tensor | None
    ) -> torch.Tensor:
        """Forward and backward of a minibatch; float64 [4] of the step so far: cells, reconstruction, KL, stops asked.

        The loss is the mean over the cells of the whole step, all ranks and accumulated minibatches together; with its
        last minibatch, gradients and sums are added up over the ranks.
        """
        every, size, n_cells = self.settings.accumulate, self.settings.batch_size, self.loaders["train"].n_cells
        place, is_last = number % every, (number + 1) % every == 0 or number + 1 == len(self.loaders["train"])
        n_step = min(every * size, n_cells - (number - place) * size)
        self.ranks.note(f"step {self.step + 1}")
        seed_draws(self._noise, self.seed, TRAINING_NOISE, self.step * every + place)
        share = min(size, n_cells - number * size), self.ranks.rank, self.ranks.world_size
        noise = share_noise(self._noise, *share)
        reconstruction, kl, kl_library = self.model(batch, noise, n_step)
        loss = (reconstruction + kl_weight * kl + kl_library).sum() / n_step
        sums = torch.stack([reconstruction.detach().sum(), (kl + kl_library).detach().sum()]).double()
        counts = torch.tensor([len(batch), bool(self.signals.caught)], dtype=torch.float64, device=self.device)
        sums = torch.cat([counts[:1], sums, counts[1:]])
        if totals is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            sums += totals
        summing = None
        if is_last:
            summing = self.ranks.start_sum(sums)
            self._gradients.expect()
        with record_function("backward"):
            loss.backward()
        if is_last:
            self._gradients.wait()
        if summing is not None:
            with self.ranks.waiting(f"step {self.step + 1}"):
                summing.wait()
        return sums

    def _end_epoch(self, kl_weight: float) -> None:
        self._check_weights()
        try:
            due = self.loaders["validation"].n_cells and (self.epoch + 1) % self.settings.validate_every == 0
            validation = self._evaluate("validation") if due else {}
        except StopAskedError:
            self._interrupt(len(self.loaders["train"]))
        line = {
            "kind": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "kl_weight": kl_weight,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **self._means("train"),
            **{f"validation_{name}": validation[name] for name in MEASURES if name in validation},
            **self._losses(kl_weight, validation),
            "n_cells": int(self.sums[0]),
            "cells_per_s": self._rate(),
            "seconds": time.monotonic() - self._began,
        }
        line = self.ranks.from_first(lambda: line, "the end of the epoch")
        self.history.append(line)
        if validation and validation["elbo"] > self.best["elbo"] + self.settings.early_stopping_min_delta:
            self.best = {
                "elbo": validation["elbo"],
                "epoch": self.epoch,
                "weights": copy_state(self.model.state_dict()),
            }
        self.log.epoch(line)
        self._adapt()
        self.epoch += 1
        self.sums, self.epoch_seconds = np.zeros(3), 0.0
        self.loaders["train"].set_epoch(self.epoch)
        self.checkpoint(0)

    def _adapt(self) -> None:
        """Stop early, or lower the learning rate, as the history of this run says."""
        settings, history = self.settings, self.history[self.first_epoch :]
        watched = costs(history[settings.early_stopping_warmup_epochs :], settings.early_stopping_monitor)
        waited = epochs_since_best(watched, settings.early_stopping_min_delta)
        self.stopped_early = settings.early_stopping and waited >= settings.early_stopping_patience
        if settings.reduce_lr_on_plateau:
            rate = rate_on_plateau(
                costs(history, settings.lr_scheduler_metric),
                settings.learning_rate,
                settings.lr_factor,
                settings.lr_patience,
                settings.lr_threshold,
                settings.lr_min,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def _is_done(self) -> bool:
        steps = self.settings.max_steps
        return self.stopped_early or (steps is not None and self.step - self.first_step >= steps)

    def _kl_weight(self, step: int | None = None) -> float:
        """Of a step of the running epoch, counted from 0; None: of the next one."""
        settings = self.settings
        return weigh_kl(
            self.epoch,
            self.step if step is None else step,
            settings.kl_warmup_epochs,
            settings.kl_warmup_steps,
            settings.min_kl_weight,
            settings.max_kl_weight,
        )

    def _rate(self) -> float:
        """Cells/s of the running epoch, waiting for data included."""
        return float(self.sums[0]) / max(self.epoch_seconds, 1e-9)

    def _means(self, part: str) -> dict[str, float]:
        losses = mean_losses(*self.sums.tolist())
        return {f"{part}_{name}": value for name, value in losses.items() if name != "n_cells"}

    def _losses(self, kl_weight: float, validation: Mapping[str, float]) -> dict[str, float]:
        """The loss itself of an epoch, where its sums tell it: one KL weight throughout, and no KL of a library."""
        if self.model.settings.has_latent_library or (
            self.settings.kl_warmup_steps and not self.settings.kl_warmup_epochs
        ):
            return {}
        parts = {"train": mean_losses(*self.sums.tolist()), **({"validation": validation} if validation else {})}
        return {
            f"{part}_loss": losses["reconstruction_loss"] + kl_weight * losses["kl"] for part, losses in parts.items()
        }

    def _evaluate(self, part: str, most: int | None = None) -> dict[str, Any]:
        """Losses over (at most `most`) cells of a part; of the training cells in an order that no epoch has."""
        return evaluate(
            self.model,
            self.loaders[part],
            self.device,
            self.ranks,
            self.seed,
            part,
            epoch=self.epochs if part == "train" else 0,
            most=most,
            stop_asked=lambda: bool(self.signals.caught),
        )

    def _evaluate_all(self) -> dict[str, Any]:
        """The run's result, of the weights that are kept; `last` tells of the last ones where others are kept."""
        parts = [part for part in ("train", "validation", "test") if self.loaders[part].n_cells]

        def evaluate() -> dict[str, Any]:
            most = {"train": self.settings.evaluation_cells}
            return {part: self._evaluate(part, most.get(part)) for part in parts}

        keeps_best = self.settings.keep == "best" and -1 < self.best["epoch"] < self.epoch - 1
        last = {"last": evaluate()} if keeps_best else {}
        if keeps_best:
            self.model.load_state_dict(self.best["weights"])
        trained = sum(line["n_cells"] for line in self.history[self.first_epoch :])
        kept = evaluate()
        return {
            **kept,
            **last,
            "informative_latents": count_informative(kept["train"]["kl_by_dimension"]),
            "kept_epoch": self.best["epoch"] if keeps_best else self.epoch - 1,
            "best_epoch": self.best["epoch"] if self.best["epoch"] >= 0 else None,
            "epochs": self.epoch,
            "steps": self.step,
            "stopped_early": self.stopped_early,
            "seconds": self.seconds,
            "cells_per_s": trained / max(self.seconds, 1e-9),
            "seed": self.seed,
            "ranks": self.ranks.world_size,
            "bytes_reduced_a_step": self._gradients.n_bytes,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "kernels": self._kernels,
            "versions": {name: _version(name) for name in ("atlasvi", "torch", "numpy")},
        }

    def checkpoint(self, batch: int) -> None:
        """Save in the background where the run is, `batch` minibatches of the epoch done."""
        self._count(self._delayed.take(), self._kl_weight())
        self._check_weights()
        if self.ranks.is_first:
            self.ranks.note("copying the checkpoint")
            self._writer.submit(self.step, self.state(batch))
        self._saved = time.monotonic()

    def _checkpoint_if_due(self, batch: int) -> None:
        """All ranks are in the same state, so rank 0 needs to ask no one."""
        if not self.ranks.is_first:
            return
        self._writer.check()
        every = self.settings.checkpoint_steps
        if time.monotonic() - self._saved > self.settings.checkpoint_minutes * 60 or (every and self.step % every == 0):
            self.checkpoint(batch)

    def _interrupt(self, batch: int | None) -> NoReturn:
        """End the run so that it can go on: at `batch` of the epoch, or (None) at its last checkpoint."""
        if batch is not None:
            self.checkpoint(batch)
        if self.ranks.is_first:
            self._writer.wait()
        self.ranks.wait_for_all("the checkpoint")
        by = self.signals.caught[0] if self.signals.caught else "a signal to another rank"
        saved = list_checkpoints(self.out / "checkpoints")[0].name if self.ranks.is_first else ""
        stopped = TrainingInterrupted(
            f"{self.out}: stopped by {by} after step {self.step}, saved in {saved}. "
            f"Go on with: {resume_command(self.data, self.out, self.asked_device)}"
        )
        stopped.agreed, stopped.what = True, f"stopped by {by} after step {self.step}"
        raise stopped

    def state(self, batch: int) -> dict[str, Any]:
        """Everything that a resumed run needs; noise needs nothing, being a function of (seed, step)."""
        return {
            "weights": copy_state(self.model.state_dict()),
            "optimizer": copy_state(self.optimizer.state_dict()),
            "epoch": self.epoch,
            "batch": batch,
            "step": self.step,
            "sums": self.sums.tolist(),
            "epoch_seconds": self.epoch_seconds,
            "history": list(self.history),
            "first_epoch": self.first_epoch,
            "first_step": self.first_step,
            "best": self.best,
            "stopped_early": self.stopped_early,
            "seconds": time.monotonic() - self._began if hasattr(self, "_began") else 0.0,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was taken. Raises whatever one of other content leads to."""
        check_state(state)
        self.model.load_state_dict(state["weights"])
        self._load_optimizer(state["optimizer"])
        for group in self.optimizer.param_groups:  # the run may have begun on another device
            group["capturable"] = self.device.type == "cuda"
        self.epoch, self.step, self.history, self.best = state["epoch"], state["step"], state["history"], state["best"]
        self.sums, self.epoch_seconds = np.array(state["sums"]), state["epoch_seconds"]
        self.stopped_early, self.seconds = state["stopped_early"], state["seconds"]
        self.first_epoch, self.first_step = state.get("first_epoch", 0), state.get("first_step", 0)
        self.epochs += self.first_epoch
        self.loaders["train"].set_epoch(self.epoch, state["batch"])

    def begin_from(self, state: Mapping[str, Any]) -> None:
        """Train another run further (see `prepare_start`): its epochs and steps count on, its best weights do not."""
        check_state(state)
        self.model.load_state_dict(state["weights"])
        if state["optimizer"] is not None:
            ours = self.optimizer.state_dict()["param_groups"]  # rates and the like are those asked for now
            self._load_optimizer({"state": state["optimizer"]["state"], "param_groups": ours})
        self.epoch = self.first_epoch = state["epoch"]
        self.step = self.first_step = state["step"]
        self.history = list(state["history"])
        self.epochs += self.first_epoch
        self.loaders["train"].set_epoch(self.epoch)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Raises ValueError if moments are not of the shape of their parameter: fused steps do not look."""
        self.optimizer.load_state_dict(state)
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} of the optimizer is of shape {tuple(value.shape)}")

    def measure_library(self) -> None:
        """The prior of a latent library size, from one pass over all cells."""
        if self.model.settings.has_latent_library:
            self.ranks.note("measuring library sizes")
            found = measure_library(self.data, self._codes.get("batch"), self.model.settings.n_batches)
            for buffer, values in zip((self.model.library_log_means, self.model.library_log_vars), found):
                buffer.copy_(torch.from_numpy(values))

    def _check_finite(self, means: np.ndarray, kl_weight: float) -> None:
        if not np.isfinite(means).all():
            terms = f"reconstruction {means[0]:g}, KL {means[1]:g} nats a cell, KL weight {kl_weight:g}"
            raise self._explain(self.step + (self._graphed is None), f"the loss is not finite ({terms})")

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise self._explain(self.step, "the weights hold NaN or infinite values")

    def _explain(self, step: int, what: str) -> TrainingError:
        saved = list_checkpoints(self.out / "checkpoints")
        good = f"{saved[0]} (step {step_of(saved[0])})" if saved else "none"
        where = f"in epoch {self.epoch + 1}, step {step}, {what}"
        error = TrainingError(
            f"{self.out}: {where}. Training stopped; the last good checkpoint is {good}. Try a lower learning_rate, "
            "and look at the counts of that data."
        )
        error.what = where
        return error


def _mark_waits(feeder: DeviceFeeder) -> Iterator[Batch]:
    """The minibatches of a feeder, the time that each is waited for marked for the profiler."""
    with closing(iter(feeder)) as batches:  # type: ignore[type-var]  # a generator
        while True:
            with record_function("load wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def choose_device(device: str) -> torch.device:
    """'auto' is CUDA where it is there. Raises SettingError if CUDA is asked for and is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"device {device!r}: choose auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device cuda was asked for, and torch sees no CUDA device here: use --device cpu or auto.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
