"""The result of a finished run: the losses of the weights that are kept, and how the run went.

This module uses the parts of a run and its final state, but not the steps that led there.
"""

import platform
from collections.abc import Callable
from typing import Any

import torch

from atlasvi.engine.provenance import find_version
from atlasvi.engine.training.checkpoint_content import RunState
from atlasvi.engine.training.evaluation import Evaluation, count_informative
from atlasvi.engine.training.run_parts import PARTS, RunParts


def make_result(
    parts: RunParts, state: RunState, n_bytes_reduced: int, evaluate: Callable[[str, int], Evaluation]
) -> dict[str, Any]:
    """Evaluate the weights that are kept and set them in the model; returns plain values, as result.json holds them.

    n_bytes_reduced  gradients that a rank sends into the all-reduce of each step
    evaluate         evaluates one part of the cells, by its name, with the weights after an epoch, by its index
    If the kept weights are not the last ones, `last` of the result has the losses of the last ones.
    """

    def evaluate_all(epoch: int) -> dict[str, Any]:
        return {part: evaluate(part, epoch).report() for part in PARTS if parts.loaders[part].n_cells}

    best = state.best.epoch
    keeps_best = parts.settings.keep == "best" and -1 < best < state.epoch - 1
    kept_epoch = best if keeps_best else state.epoch - 1
    last = {"last": evaluate_all(state.epoch - 1)} if keeps_best else {}
    if keeps_best:
        parts.model.load_state_dict(state.best.weights)
    trained = sum(line["n_cells"] for line in state.history[state.first_epoch :])
    kept = evaluate_all(kept_epoch)
    device = torch.cuda.get_device_name() if parts.device.type == "cuda" else platform.processor() or "cpu"
    return {
        **kept,
        **last,
        "informative_latents": count_informative(kept["train"]["kl_by_dimension"]),
        "kept_epoch": kept_epoch,
        "best_epoch": best if best >= 0 else None,
        "epochs": state.epoch,
        "steps": state.step,
        "stopped_early": state.stopped_early,
        "seconds": state.seconds,
        "cells_per_s": trained / max(state.seconds, 1e-9),
        "seed": parts.seed,
        "ranks": parts.ranks.world_size,
        "bytes_reduced_a_step": n_bytes_reduced,
        "device": device,
        "threads": torch.get_num_threads(),
        "kernels": parts.kernels,
        "versions": {name: find_version(name) for name in ("atlasvi", "torch", "numpy")},
    }
