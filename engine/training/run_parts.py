"""The parts of a run before its first step: device, split, loaders, model, optimizer, configuration.

Everything is checked here, and nothing is written. Steps, epochs and the state of a run are elsewhere.
"""

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from atlasvi.engine.distributed.batch_norm import share_batch_norm
from atlasvi.engine.distributed.ranks import Ranks
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.initial_weights import SAMPLE_CELLS, start_from_sample
from atlasvi.engine.model.library_prior import fill_library_prior
from atlasvi.engine.model.model_options import ModelOptions, ModelSettings
from atlasvi.engine.model.noise import INITIAL_WEIGHTS, seed_draws
from atlasvi.engine.model.run_files import RUN_FORMAT
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.provenance import find_version
from atlasvi.engine.training.fingerprint import fingerprint, hash_sample
from atlasvi.engine.training.freezing import group_parameters
from atlasvi.engine.training.optimizers import OPTIMIZERS
from atlasvi.engine.training.settings import (
    SettingError,
    Settings,
    choose_batch_size,
    choose_evaluation_cells,
    resolve_schedule,
)
from atlasvi.engine.training.splits import Split, split_by_column, split_by_hash
from atlasvi.kernels import choose_backend
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData
from atlasvi.loaders.places.object_path import Place

PARTS = ("train", "validation", "test")


@dataclass(kw_only=True)
class RunParts:
    """The parts of a run; made by `prepare_run`.

    out       the run directory, which need not exist yet
    settings  the resolved settings
    config    all that the run records about how it was started
    kernels   the backend: see `kernels.choose_backend`
    codes     covariates of all cells
    loaders   one for the cells of each of PARTS
    cells     the cells of each of PARTS
    """

    data: CellData
    out: Place
    setup: Setup
    settings: Settings
    config: dict[str, Any]
    seed: int
    ranks: Ranks
    device: torch.device
    asked_device: str
    kernels: str
    codes: dict[str, np.ndarray]
    loaders: dict[str, BatchLoader]
    cells: Split
    model: VAE
    optimizer: torch.optim.Optimizer

    def check_watched(self) -> None:
        """Raises SettingError if a setting needs losses of validation cells, and there are no validation cells."""
        settings = self.settings
        stops = settings.early_stopping and "early_stopping" in settings.model_fields_set  # not by default
        for name, enabled, metric in (
            ("early_stopping", stops, settings.early_stopping_monitor),
            ("reduce_lr_on_plateau", settings.reduce_lr_on_plateau, settings.lr_scheduler_metric),
        ):
            if enabled and metric.startswith("validation") and not self.loaders["validation"].n_cells:
                raise SettingError(
                    f"{name} watches {metric}, and no cell is held out for validation: hold some out, or watch "
                    f"{metric.replace('validation', 'train')}."
                )

    def measure_library(self) -> None:
        """Set the prior of a latent library size, if the model has one, from one pass over all cells."""
        if self.model.settings.has_latent_library:
            self.ranks.note("measuring library sizes")
            fill_library_prior(self.model, self.data, self.codes)

    def start_weights(self) -> None:
        """Set the weights of a new model as `initial_weights` says: rank 0 does the work, all ranks get its bits."""
        if self.settings.initial_weights != "sample":
            return
        self.ranks.note("fitting the initial weights to a sample of cells")
        dtype = {torch.float32: np.float32, torch.float64: np.float64}[self.model.dtype]

        def fit() -> bytes:
            sample = BatchLoader(self.data, SAMPLE_CELLS, self.seed, codes=self.codes, cells=self.cells.train)
            with closing(iter(sample)) as minibatches:  # type: ignore[type-var]  # a generator
                batch = next(minibatches).to(self.device)
            start_from_sample(self.model, batch, seed_draws(Generator(), self.seed, INITIAL_WEIGHTS, 1))
            return parameters_to_vector(self.model.parameters()).numpy(force=True).tobytes()

        weights = np.frombuffer(self.ranks.bytes_from_first(fit, "the initial weights"), dtype)
        vector_to_parameters(torch.tensor(weights, device=self.device), self.model.parameters())

    def load(self, state: Mapping[str, Any], keep_rates: bool = False) -> None:
        """Load the weights and the optimizer's moments from the state of a checkpoint (moments None: keep ours).

        keep_rates  keep our learning rates and similar options, instead of those of the checkpoint
        Raises ValueError if moments don't have the shape of their parameter: fused optimizers do not check it.
        """
        self.model.load_state_dict(state["weights"])
        if (saved := state["optimizer"]) is None:
            return
        groups = self.optimizer.state_dict()["param_groups"] if keep_rates else saved["param_groups"]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, rates):  # the run may have started on another device
            group["capturable"], group["lr"] = self.device.type == "cuda", rate  # each step sets the rate anew
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} of the optimizer has shape {tuple(value.shape)}")


def prepare_run(
    data: CellData,
    out: Place,
    setup: Setup,
    arguments: Mapping[str, Any],
    settings: Settings,
    device: str,
    ranks: Ranks | None = None,
) -> RunParts:
    """All parts of a run over one data set, with newly drawn weights.

    arguments  other arguments, for the configuration; only `seed` and `split_column` are used here
    device     'auto', 'cpu' or 'cuda'
    Raises SettingError, ColumnError and CountsError for settings, columns and counts that don't fit.
    """
    ranks, seed, chosen = ranks or Ranks(), int(arguments["seed"]), choose_device(device)
    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    kernels = choose_backend(chosen, dtype=dtype)
    if settings.precision == "bf16" and kernels != "triton":
        raise SettingError(f"Setting precision = 'bf16': the kernels for {chosen} support float32 and float64 only.")
    codes = setup.read_codes(data, labels=settings.uses_labels)
    ranks.note("splitting the cells")
    split = (
        split_by_hash(data, settings.validation_fraction, seed)
        if arguments["split_column"] is None
        else split_by_column(data, arguments["split_column"], needs_validation=settings.validation_fraction > 0)
    )
    ranks.note("planning the epochs")
    n_train = split.train.count()
    settings = resolve_schedule(settings, n_train)
    evaluation_cells = choose_evaluation_cells(settings, split.validation.count())
    settings = settings.model_copy(update={"evaluation_cells": evaluation_cells})
    loaders = {
        part: BatchLoader(
            data,
            choose_batch_size(settings, n_train),
            seed,
            codes=codes,
            cells=getattr(split, part),
            shuffle=part == "train",
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        for part in PARTS
    }
    config = {
        "atlasvi": find_version("atlasvi"),
        "format_version": RUN_FORMAT,
        "data": data.spec.to_record(),
        **fingerprint(data),
        "sample_sha256": hash_sample(data),
        **arguments,
        "setup": setup.to_saved(),
        "device": str(chosen),
        "kernels": kernels,
        "launch": launch_id(),
        "settings": settings.model_dump(),
    }
    ranks.note("making the model")
    options = {name: getattr(settings, name) for name in ModelOptions.model_fields}
    model = VAE(
        ModelSettings(n_genes=len(data.genes), **setup.sizes, **options),
        seed_draws(Generator(), seed, INITIAL_WEIGHTS, 0),
    ).to(chosen, dtype)
    if ranks.reduces:
        share_batch_norm(model)
    if settings.precision == "bf16":
        model.precision = "bf16"
    assert settings.optimizer is not None
    assert settings.weight_decay is not None
    optimizer = OPTIMIZERS[settings.optimizer](
        group_parameters(model, settings.freezing, settings.weight_decay, settings.decayed or "all"),
        # a tensor on a GPU, as a CUDA graph replays the step with the rate that is in it then
        lr=torch.tensor(settings.learning_rate, device=chosen) if chosen.type == "cuda" else settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=True,
        capturable=chosen.type == "cuda",
    )
    return RunParts(
        data=data,
        out=out,
        setup=setup,
        settings=settings,
        config=config,
        seed=seed,
        ranks=ranks,
        device=chosen,
        asked_device=device,
        kernels=kernels,
        codes=codes,
        loaders=loaders,
        cells=split,
        model=model,
        optimizer=optimizer,
    )


def choose_device(device: str) -> torch.device:
    """The device; 'auto' is CUDA if there is one. Raises SettingError if CUDA is requested but not available."""
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"device {device!r}: use auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device is cuda, but torch finds no CUDA device here: use --device cpu or auto.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def launch_id() -> str | None:
    """Identifier of the torchrun launch that started this process, if any; the same after restarts."""
    return os.environ.get("TORCHELASTIC_RUN_ID")
