"""Estimate time and memory of a training on a number of devices, and what limits it, measured in some seconds."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atlasvi.engine.distributed.data_parallel import plan_bucket_sizes
from atlasvi.engine.distributed.ranks import Ranks, join_ranks
from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.terminal import count
from atlasvi.engine.training.bucket_reading import BucketReading, measure_bucket_reading
from atlasvi.engine.training.run_parts import RunParts, prepare_run
from atlasvi.engine.training.settings import (
    SettingError,
    Settings,
    choose_evaluation_cells,
    resolve_settings,
    warn_of_few_steps,
)
from atlasvi.engine.training.step import Step
from atlasvi.engine.training.summary import write_seconds
from atlasvi.engine.training.train import prepare_training
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.cells.cell_views import unwrap
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, enter_cells
from atlasvi.loaders.places.disk_cache import find_cache
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.work_estimate import peak_memory_bytes

SMALL_SHARE = 64  # cells: below it the work on a minibatch is mostly what each costs, however small
LARGE_BATCH, MANY_CELLS = 1024, 500_000  # what the recipe atlas is measured with: docs/training.md
WARM_UP = 6  # steps before measuring: kernels are compiled, memory is allocated
LATENCY_S = 50e-6  # per message between machines; an all-reduce of n ranks takes 2 (n - 1) messages in sequence


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimated times of one rank, in seconds. All but `reduce_s` and `epoch_s` were measured on this machine.

    n_steps, n_cells  per epoch, over all ranks
    load_s, step_s    for one rank's part of a minibatch: reading it; forward, backward and optimizer
    both_s            reading and computing at the same time, as in training
    validate_s        for one rank's part of a minibatch of held-out cells; there are `n_validation_steps` of them
    reduce_bytes      gradients that a rank sends into the all-reduce of each step
    reduce_s          time of the all-reduce over the network
    exposed_s         the part of reduce_s that does not overlap with the backward pass
    epoch_s           the whole epoch
    measured          True: all ranks took part in the measurement, and exchanged gradients
    warning           that the run has too few steps; None: it has enough
    batch_size        cells of a minibatch, over all ranks
    epochs            that are to be trained; of their steps `max_steps` leaves this `share`
    evaluation_cells  training cells on which the finished model is evaluated; held-out ones were in the last epoch
    memory_bytes      the most that this process has held; on a GPU, device_bytes is the same of the device
    disk_bytes        of the run directory: its checkpoints and the model
    on_cpu            whether the device is a CPU, whose cores the ranks of a machine share
    is_store          whether the data is a cell store
    bucket            what an epoch reads from a bucket, if the data is in one
    """

    n_ranks: int
    n_cells: int
    n_steps: int
    load_s: float
    step_s: float
    both_s: float
    validate_s: float
    n_validation_steps: int
    reduce_bytes: int
    reduce_s: float
    exposed_s: float
    measured: bool
    warning: str | None = None
    batch_size: int = 0
    epochs: int = 1
    share: float = 1.0
    evaluation_cells: int = 0
    memory_bytes: int = 0
    device_bytes: int = 0
    disk_bytes: int = 0
    on_cpu: bool = True
    is_store: bool = True
    bucket: BucketReading | None = None

    @property
    def epoch_s(self) -> float:
        """Seconds of training and validation in an epoch."""
        return self.n_steps * (self.both_s + self.exposed_s) + self.n_validation_steps * self.validate_s

    @property
    def run_s(self) -> float:
        """Seconds of the whole run, if it does not stop early; what is compiled the first time is left out."""
        minibatches = self.evaluation_cells / max(self.batch_size, 1)
        return self.share * self.epochs * self.epoch_s + minibatches * self.validate_s

    @property
    def doubt(self) -> str | None:
        """Why the measurement can't be right, if it can't."""
        slower, both = max(self.load_s, self.step_s), self.load_s + self.step_s
        if min(self.load_s, self.step_s, self.both_s) <= 0:
            return "a part took no time at all"
        if self.both_s < 0.8 * slower:
            return "reading and computing at the same time took less than the slower of them alone"
        if self.both_s > 1.5 * both:
            return "reading and computing at the same time took longer than one after the other"
        return None

    @property
    def hint(self) -> str | None:
        """What would make it faster, if there is something to say."""
        share = self.batch_size / self.n_ranks
        if self.limit == "network":
            return (
                "exchange gradients less often or in half the bytes: a larger --batch-size, --set accumulate=4, "
                "--set compress_gradients=bf16; or take fewer ranks"
            )
        if self.n_ranks > 1 and share < SMALL_SHARE:
            return (
                f"a rank's part of a minibatch has {share:,.0f} cells, too few to keep it busy: take fewer ranks, or a "
                "larger --batch-size with --set recipe=atlas"
            )
        if self.limit == "reading" and self.bucket is not None and find_cache() is None:
            return "reading limits it: --cache DIR keeps what is read on this machine's disk, for the epochs to come"
        if self.limit == "reading" and not self.is_store:
            return "reading limits it, and a cell store is read faster than this source: atlasvi ingest it first"
        if self.batch_size < LARGE_BATCH and self.n_cells >= MANY_CELLS:
            return (
                f"this many cells train well in larger minibatches, which are faster: --batch-size {LARGE_BATCH} --set "
                "recipe=atlas"
            )
        if self.on_cpu and self.n_ranks > 1:
            return "without GPUs, ranks of one machine share its cores: one rank a machine is as fast"
        return None

    @property
    def limit(self) -> str:
        """The slowest part, which should be made faster first."""
        return max(
            (("reading", self.load_s), ("computing", self.step_s), ("network", self.reduce_s)), key=lambda x: x[1]
        )[0]


def plan_epoch_time(
    data: CellData | DataSpec | str | Path,
    n_ranks: int,
    network_gbps: float | None = None,
    *,
    batch_key: str | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    seconds: float = 20.0,
) -> Plan:
    """Measure a rank's loader and step on this machine, and estimate an epoch of `n_ranks` such ranks.

    network_gbps  Gbit/s between the ranks; needed for several ranks, unless this is launched as that many (`atlasvi
                  launch`): then the all-reduce is measured together with the step
    settings      as for `train`; the batch size is that of the global minibatch
    seconds       approximate time to spend on measuring
    On a CPU, ranks are assumed to share this machine's cores. Raises the errors of `train` for bad input, SettingError
    if network_gbps is needed and missing.
    """
    with join_ranks() as group, ExitStack() as ours:
        if group.reduces and group.world_size != n_ranks:
            raise SettingError(
                f"plan: it was launched as {group.world_size} ranks, but --gpus is {n_ranks}: make them equal."
            )
        if not group.reduces and n_ranks > 1 and network_gbps is None:
            raise SettingError("plan: the speed of the network between the devices is needed: pass --network GBPS.")
        data = enter_cells(data, ours)
        ranks = group if group.reduces else Ranks(0, n_ranks)
        arguments = {"seed": 0, "split_column": None}
        resolved = resolve_settings(None, {"accumulate": 1, **(settings or {})})
        data = allow_fractions(data, resolved.likelihood.takes_fractions)
        setup = learn_setup(data, SetupKeys(batch_key=batch_key), layer=data.layer)
        parts = prepare_run(data, Path("plan"), setup, arguments, resolved, device, ranks)
        parts.measure_library()
        threads = torch.get_num_threads()
        if parts.device.type == "cpu" and not group.reduces:
            torch.set_num_threads(max((os.cpu_count() or 1) // n_ranks, 1))
        of_step = Step(
            parts.model, parts.optimizer, parts.loaders["train"], ranks, parts.settings, parts.seed, may_capture=False
        )
        try:
            return _measure(parts, of_step, network_gbps, seconds / 4, parts.settings.epochs or 1)
        finally:
            torch.set_num_threads(threads)


def estimate_training(
    data: CellData | DataSpec | str | Path,
    out: str | Place,
    keys: SetupKeys,
    settings: Settings,
    given: Mapping[str, Any],
    *,
    seconds: float = 10.0,
    **options: Any,
) -> Plan | None:
    """What `train` would do with these arguments (see `prepare_training`), measured as by `plan_epoch_time`.

    Nothing is written. None if the run is finished already. Raises the errors of `train`, as far as they come before
    its first step.
    """
    with join_ranks() as ranks, ExitStack() as ours:
        prepared = prepare_training(ranks, ours, data, to_place(out), keys, settings, given, profile=True, **options)
        if isinstance(prepared, TrainedRun):
            return None
        left = prepared.epochs - prepared.state.epoch
        return _measure(prepared.parts, prepared.step, None, seconds / 4, left)


def _measure(parts: RunParts, of_step: Step, network_gbps: float | None, seconds: float, epochs: int) -> Plan:
    """The plan of a training of so many epochs, measured for 3.5 times `seconds`; the weights change."""
    loader, validation, ranks = parts.loaders["train"], parts.loaders["validation"], parts.ranks
    passes = 1 + bool(len(validation))
    bucket = measure_bucket_reading(parts.data, ranks.world_size, passes)  # first, since the rest fills the cache
    parts.model.train()
    sync = torch.cuda.synchronize if parts.device.type == "cuda" else lambda: None
    kept = list(itertools.islice(_cycle(parts), WARM_UP))

    def step(batch: Batch) -> None:
        of_step.take(batch, number=0, step=0, kl_weight=1.0)
        of_step.update()

    def validate(batch: Batch) -> None:
        with torch.inference_mode():
            of_step.evaluate(batch, number=0, n_cells=loader.batch_size)

    for batch in kept:
        step(batch)
    both_s = _time(step, _cycle(parts), seconds, sync, ranks)
    load_s = _time(lambda batch: None, _cycle(parts), seconds, sync, ranks)
    step_s = _time(step, itertools.cycle(kept), seconds, sync, ranks)
    parts.model.eval()
    validate_s = _time(validate, itertools.cycle(kept), seconds / 2, sync, ranks)
    sizes = plan_bucket_sizes(list(parts.model.parameters()), parts.settings.compress_gradients)
    times = [reckon_reduce(size, ranks.world_size, network_gbps) for size in sizes]
    # the last bucket is ready only when the backward pass ends; the others can overlap with half of the backward pass
    exposed = 0.0 if ranks.reduces else times[-1] + max(sum(times[:-1]) - step_s / 2, 0.0)
    steps_an_epoch = math.ceil(len(loader) / parts.settings.accumulate)
    return Plan(
        n_ranks=ranks.world_size,
        n_cells=loader.n_cells,
        n_steps=len(loader),
        load_s=load_s,
        step_s=step_s,
        both_s=both_s,
        validate_s=max(validate_s, load_s),
        n_validation_steps=len(validation),
        reduce_bytes=sum(sizes) if ranks.world_size > 1 else 0,
        reduce_s=sum(times),
        exposed_s=exposed,
        measured=ranks.reduces,
        warning=warn_of_few_steps(parts.settings, loader.n_cells),
        batch_size=loader.batch_size,
        epochs=epochs,
        share=min(1.0, (parts.settings.max_steps or math.inf) / (epochs * steps_an_epoch)) if epochs else 1.0,
        evaluation_cells=min(loader.n_cells, choose_evaluation_cells(parts.settings, validation.n_cells)),
        memory_bytes=peak_memory_bytes(),
        device_bytes=torch.cuda.max_memory_allocated() if parts.device.type == "cuda" else 0,
        disk_bytes=_reckon_disk(parts),
        on_cpu=parts.device.type == "cpu",
        is_store=isinstance(unwrap(parts.data), CellStore),
        bucket=bucket,
    )


def _reckon_disk(parts: RunParts) -> int:
    """Bytes of a run directory: a checkpoint has weights, the best weights, and two moments of each; then the model."""
    weights = sum(tensor.nbytes for tensor in parts.model.state_dict().values())
    return (4 * parts.settings.checkpoints_kept + 1) * weights


def reckon_reduce(n_bytes: int, n_ranks: int, network_gbps: float | None) -> float:
    """Seconds of a ring all-reduce: each rank sends and receives 2 (n - 1) / n of the bytes, in 2 (n - 1) messages."""
    if n_ranks == 1 or network_gbps is None:
        return 0.0
    return 2 * (n_ranks - 1) * (n_bytes / n_ranks / (network_gbps * 1e9 / 8) + LATENCY_S)


def _cycle(parts: RunParts) -> Iterator[Batch]:
    """Full minibatches (this rank's part of each), epoch after epoch."""
    loader = parts.loaders["train"]
    whole = max(loader.n_cells // loader.batch_size, 1)
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        with closing(iter(DeviceFeeder(loader, parts.device))) as batches:  # type: ignore[type-var]
            yield from itertools.islice(batches, whole)


def _time(
    act: Callable[[Batch], None], batches: Iterator[Batch], seconds: float, sync: Callable[[], None], ranks: Ranks
) -> float:
    """Seconds per minibatch, once the speed is steady; all ranks take the same number of minibatches."""
    for batch in itertools.islice(batches, 2):
        act(batch)
    sync()
    began, n = time.monotonic(), 0
    for batch in batches:
        act(batch)
        n += 1
        if n % 4 == 0 and ranks.from_first(lambda: time.monotonic() - began > seconds, "timing"):
            break
    sync()
    return (time.monotonic() - began) / n


def describe_plan(plan: Plan) -> Iterator[str]:
    """The plan as sentences for the user."""
    load, step, both, validate, reduce, exposed = (
        f"{seconds * 1e3:.2f} ms"
        for seconds in (plan.load_s, plan.step_s, plan.both_s, plan.validate_s, plan.reduce_s, plan.exposed_s)
    )
    yield (
        f"An epoch of {count(plan.n_cells, 'training cell')} on {count(plan.n_ranks, 'rank')}: "
        f"{count(plan.n_steps, 'step')}, "
        f"{plan.epoch_s:,.1f} s, {plan.n_cells / plan.epoch_s:,.0f} cells/s; {plan.limit} limits it."
    )
    device = f", {plan.device_bytes / 1e6:,.0f} MB of the device" if plan.device_bytes else ""
    yield (
        f"The whole run: {count(plan.epochs, 'epoch')}, {write_seconds(plan.run_s)} unless it stops early. It takes "
        f"{plan.memory_bytes / 1e6:,.0f} MB of memory a process{device}; {plan.disk_bytes / 1e6:,.1f} MB on disk."
    )
    yield (
        f"One rank's part of a minibatch: reading {load}, computing {step}, both at the same time {both}; "
        f"{count(plan.n_validation_steps, 'minibatch', 'minibatches')} of validation at {validate}."
    )
    if plan.bucket is not None:
        yield plan.bucket.describe()
    megabytes = f"{plan.reduce_bytes / 1e6:,.2f} MB"
    if plan.measured:
        yield f"The times above include summing {megabytes} of gradients over the ranks."
    elif plan.n_ranks > 1:
        yield f"Summing {megabytes} of gradients takes {reduce} a step; {exposed} don't overlap with the backward pass."
    if plan.doubt:
        yield f"Doubtful: {plan.doubt}, so something else was at work here: measure again, with more --seconds."
    if plan.hint:
        yield f"Hint: {plan.hint}."
    if plan.warning:
        yield plan.warning
