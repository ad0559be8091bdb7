"""Estimate how long an epoch takes on a number of devices, and what limits it, from measurements of some seconds."""

import itertools
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
from atlasvi.engine.terminal import count
from atlasvi.engine.training.run_parts import RunParts, prepare_run
from atlasvi.engine.training.settings import SettingError, resolve_settings, warn_of_few_steps
from atlasvi.engine.training.step import Step
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, open_cells
from atlasvi.loaders.sources.data_spec import DataSpec

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

    @property
    def epoch_s(self) -> float:
        """Seconds of training and validation in an epoch."""
        return self.n_steps * (self.both_s + self.exposed_s) + self.n_validation_steps * self.validate_s

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
        if isinstance(data, (DataSpec, str, Path)):
            data = open_cells(data)
            ours.callback(data.close)
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
        try:
            return _measure(parts, network_gbps, seconds / 4)
        finally:
            torch.set_num_threads(threads)


def _measure(parts: RunParts, network_gbps: float | None, seconds: float) -> Plan:
    loader, validation, ranks = parts.loaders["train"], parts.loaders["validation"], parts.ranks
    of_step = Step(parts.model, parts.optimizer, loader, ranks, parts.settings, parts.seed, may_capture=False)
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
    )


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
        f"An epoch of {plan.n_cells:,} training cells on {count(plan.n_ranks, 'rank')}: {plan.n_steps:,} steps, "
        f"{plan.epoch_s:,.1f} s, {plan.n_cells / plan.epoch_s:,.0f} cells/s; {plan.limit} limits it."
    )
    yield (
        f"One rank's part of a minibatch: reading {load}, computing {step}, both at the same time {both}; "
        f"{plan.n_validation_steps:,} minibatches of validation at {validate}."
    )
    megabytes = f"{plan.reduce_bytes / 1e6:,.2f} MB"
    if plan.measured:
        yield f"The times above include summing {megabytes} of gradients over the ranks."
    elif plan.n_ranks > 1:
        yield f"Summing {megabytes} of gradients takes {reduce} a step; {exposed} don't overlap with the backward pass."
    if plan.warning:
        yield plan.warning
