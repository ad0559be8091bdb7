"""Schedules: the weight of the KL term, the learning rate, when to stop; all are pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from atlasvi.engine.model.loss_terms import MEASURES

METRICS = tuple(f"{part}_{name}" for part in ("train", "validation") for name in MEASURES)


def weigh_kl(
    epoch: int, step: int, warmup_epochs: int | None, warmup_steps: int | None, least: float = 0.0, most: float = 1.0
) -> float:
    """Weight of the KL term at a step: from `least` to `most` over the warm-up, counted in epochs or steps from 0.

    The warm-up by steps is used only without one by epochs; without either, the weight is `most`. As in scvi-tools.
    """
    progress = epoch / warmup_epochs if warmup_epochs else step / warmup_steps if warmup_steps else 1.0
    return least + (most - least) * min(progress, 1.0)


def scale_rate(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Factor of the learning rate at a step, counted from 0, of a run of `n_steps`.

    It rises linearly to 1 over the first part `warmup` of the steps, and falls linearly towards 0 over the last part
    `decay`. With both 0 it is 1.
    """
    rising = (step + 1) / (warmup * n_steps) if warmup else 1.0
    falling = (n_steps - step) / (decay * n_steps) if decay else 1.0
    return max(min(rising, falling, 1.0), 0.0)


def name_metric(name: str) -> str:
    """A metric by its name in the log, or by scvi-tools' (elbo_validation). Raises ValueError, listing the metrics."""
    theirs = {f"{measure}_{part}": f"{part}_{measure}" for part in ("train", "validation") for measure in MEASURES}
    theirs.update(kl_local_train="train_kl", kl_local_validation="validation_kl")
    name = theirs.get(name, name)
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; there are: {', '.join(METRICS)}")
    return name


def costs(history: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """A metric in each epoch of a history, with its sign changed where larger is better (the ELBO)."""
    sign = -1.0 if metric.endswith("elbo") else 1.0
    return [sign * line[metric] for line in history if metric in line]


def epochs_since_best(values: Sequence[float], min_delta: float = 0.0) -> int:
    """Epochs since the last one that improved on the best before it by more than `min_delta`."""
    best, at = math.inf, 0
    for epoch, value in enumerate(values):
        if value < best - min_delta:
            best, at = value, epoch
    return len(values) - 1 - at if len(values) else 0


def rate_on_plateau(
    values: Sequence[float], rate: float, factor: float, patience: int, threshold: float = 0.0, least: float = 0.0
) -> float:
    """The learning rate after epochs of these costs: multiplied by `factor` after more than `patience` epochs without
    improvement.

    Equivalent to torch's ReduceLROnPlateau with an absolute threshold, as scvi-tools uses it.
    """
    best, waited = math.inf, 0
    for value in values:
        if value < best - threshold:
            best, waited = value, 0
        else:
            waited += 1
        if waited > patience:
            waited, reduced = 0, max(rate * factor, least)
            rate = reduced if rate - reduced > 1e-8 else rate
    return rate
