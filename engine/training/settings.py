"""Settings of a run: typed, checked once at the start, and written into the run as resolved."""

import difflib
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from atlasvi.engine.model.model_options import Freezing, ModelOptions
from atlasvi.engine.terminal import count
from atlasvi.engine.training.schedule import name_metric
from atlasvi.loaders.errors import AtlasviError

MOST_UNITS = 2**16


class SettingError(AtlasviError, ValueError):
    """A setting that does not exist, or a value that it can't have."""


class Settings(ModelOptions):
    """All that can be set with `--set KEY=VALUE` or in a TOML file; includes the options of the model.

    None means: decided from the data when the run starts; the value is then written into its config.json.
    """

    recipe: Literal["scvi-tools", "atlas"] = "scvi-tools"
    """How the model is trained, where a setting does not say: see `RECIPES`. scvi-tools: as scvi-tools does. atlas: for
    a million cells or more, which get an epoch or two, and for large minibatches."""
    epochs: int | None = Field(default=None, ge=1)
    """Default: scvi-tools' heuristic, round(20,000 / training cells x 400), between 1 and 400. An atlas gets 1."""
    batch_size: int = Field(default=128, ge=1)
    """Cells per minibatch, over all ranks; fewer are taken where `least_steps_an_epoch` needs that."""
    least_steps_an_epoch: int | None = Field(default=None, ge=0)
    """Steps that an epoch has at the least: minibatches are made smaller for that, down to 128 cells. None: by the
    recipe: 0 (minibatches stay as they are), or with `atlas` 100, and as many as give a run of few epochs 200 steps."""
    accumulate: int = Field(default=1, ge=1)
    """Minibatches per step: their gradients are added up, and the ranks exchange them once."""
    compress_gradients: Literal["none", "bf16"] = "none"
    """What ranks exchange: float32 gradients, or bf16 gradients of half the size."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this number of optimizer steps, even within an epoch."""

    optimizer: Literal["Adam", "AdamW"] | None = None
    """None: by the recipe."""
    learning_rate: float | None = Field(default=None, ge=0)
    """None: by the recipe: 0.001, or with `atlas` 0.001 x sqrt(cells of a step / 64), at most 0.016."""
    learning_rate_warmup: float | None = Field(default=None, ge=0, lt=1)
    """Part of the steps, at the start, over which the learning rate rises. None: by the recipe."""
    learning_rate_decay: float | None = Field(default=None, ge=0, le=1)
    """Part of the steps, at the end, over which the learning rate falls to 0. None: by the recipe."""
    initial_weights: Literal["random", "sample"] | None = None
    """random: as scvi-tools draws them; sample: fitted to a sample of cells, see `start_from_sample`. None: by the
    recipe. A run that starts from another model has its weights."""
    adam_eps: float | None = Field(default=None, gt=0)
    """None: by the recipe."""
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    """How much of the mean of squared gradients is kept at each step. None: by the recipe."""
    weight_decay: float | None = Field(default=None, ge=0)
    """With Adam an L2 penalty that is added to the gradient; with AdamW decoupled from the gradient. None: by the
    recipe: 1e-6, or with `atlas` and AdamW by `atlas_decay`."""
    decayed: Literal["all", "weights"] | None = None
    """Which parameters `weight_decay` draws towards 0: all, or weights only (not biases, theta, norms). None: by the
    recipe."""
    reduce_lr_on_plateau: bool = False
    """Multiply the learning rate by lr_factor when lr_scheduler_metric has not improved for lr_patience epochs."""
    lr_factor: float = Field(default=0.6, gt=0, lt=1)
    lr_patience: int = Field(default=30, ge=0)
    lr_threshold: float = Field(default=0.0, ge=0)
    lr_scheduler_metric: str = "validation_elbo"
    lr_min: float = Field(default=0.0, ge=0)
    kl_warmup_epochs: int | None = Field(default=None, ge=0)
    """The weight of the KL term rises from min_kl_weight to max_kl_weight, in epoch e (from 0) by e / kl_warmup_epochs;
    0: the full weight from the start. None: min(400, epochs // 2), so that a run always ends at the full weight (short
    runs never reach the end of scvi-tools' 400 epochs); or 0 if there is a warm-up by steps, as there is by default in
    a run of at most 3 epochs."""
    kl_warmup_steps: int | None = Field(default=None, ge=1)
    """The same by optimizer steps; ignored if there is a warm-up by epochs. None, in a run of at most 3 epochs without
    any other warm-up: all of its steps. Half of so few epochs would be none or one, so the weight would jump; and with
    the full weight from the first step, the KL term collapses latents before they have learned anything."""
    min_kl_weight: float = Field(default=0.0, ge=0)
    max_kl_weight: float = Field(default=1.0, ge=0)

    freezing: Freezing | None = None
    """Which parameters of the model that a run starts from are frozen (see `load_query_data`); set with that model."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Proportion of cells that are held out, chosen by a hash of each cell's identity; 0 trains on all cells. Not used
    with a split column."""
    validate_every: int = Field(default=1, ge=1)
    """Number of epochs between validations."""
    early_stopping: bool = True
    early_stopping_patience: int = Field(default=45, ge=1)
    """Number of epochs without improvement of early_stopping_monitor after which training stops."""
    early_stopping_min_delta: float = Field(default=0.0, ge=0)
    early_stopping_monitor: str = "validation_elbo"
    """train_ or validation_ with reconstruction_loss, kl or elbo; scvi-tools' names (elbo_validation) also work."""
    early_stopping_warmup_epochs: int = Field(default=0, ge=0)
    """Number of first epochs that early stopping ignores."""
    keep: Literal["best", "last"] = "best"
    """The weights that the model keeps: those of the best validation ELBO, or the last ones."""
    evaluation_cells: int | None = Field(default=None, ge=1)
    """Largest number of training cells on which the final training loss is measured. None: as many as are held out,
    since the two are compared; at least 1,000 and at most 100,000. 10,000 if none is held out."""

    precision: Literal["float32", "bf16", "float64"] = "float32"
    """bf16: for the output layer's products on CUDA; the likelihood and all sums stay float32. float64: for everything,
    with torch's own operations, as a slow reference. The saved model is float32."""
    cuda_graph: bool = True
    """On one GPU: replay the step as a CUDA graph. Not used for a normal likelihood, accumulated steps or several
    ranks."""

    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A checkpoint is written at the end of each epoch, and within an epoch after this number of minutes."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """A checkpoint is also written after this number of steps."""
    checkpoints_kept: int = Field(default=2, ge=1)

    @field_validator("n_hidden", "n_latent", "n_layers", "embedding_dim")
    @classmethod
    def _check_size(cls, size: int) -> int:
        if size > MOST_UNITS:  # larger than anyone needs: report a typing error before memory runs out
            raise ValueError(f"at most {MOST_UNITS:,}")
        return size

    @field_validator("early_stopping_monitor", "lr_scheduler_metric")
    @classmethod
    def _name_metric(cls, name: str) -> str:
        return name_metric(name)

    @model_validator(mode="after")
    def _check_kl_weights(self) -> Self:
        if self.min_kl_weight > self.max_kl_weight:
            raise ValueError(f"min_kl_weight {self.min_kl_weight} is above max_kl_weight {self.max_kl_weight}")
        return self


RECIPES: dict[str, dict[str, Any]] = {
    "scvi-tools": {
        "optimizer": "Adam",
        "weight_decay": 1e-6,
        "decayed": "all",
        "learning_rate": 1e-3,
        "learning_rate_warmup": 0.0,
        "learning_rate_decay": 0.0,
        "initial_weights": "random",
        "adam_eps": 0.01,
        "adam_beta2": 0.999,
    },
    "atlas": {
        "optimizer": "AdamW",
        "decayed": "weights",
        "learning_rate_warmup": 0.05,
        "learning_rate_decay": 0.3,
        "initial_weights": "sample",
        "adam_eps": 1e-8,
        "adam_beta2": 0.99,
    },
}
"""What each recipe sets where a setting is None. docs/training.md shows what that does."""
FEWEST_STEPS = 200
"""Steps of the shortest runs that trained well, with the recipe `atlas`: docs/training.md has the figures."""
FEWEST_STEPS_AN_EPOCH = 100
"""Steps of an epoch: more of them reach the same ELBO with fewer cells seen, and hardly cost more: as there."""
FORGOTTEN_AFTER = 7
"""Epochs after which weights have forgotten what they learned, at the most: as there."""
EVALUATED = 1_000, 10_000, 100_000
"""Training cells of the final training loss, if it is not set: the least number, that if none is held out, the most."""
SMALLEST = 128
"""Cells of a minibatch that no recipe makes smaller."""


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE strings as a dictionary; values are parsed as TOML if possible, else kept as text."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingError(f"--set {assignment}: write it as KEY=VALUE.")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value
    return settings


def resolve_settings(config: Path | str | None = None, *overrides: Mapping[str, Any]) -> Settings:
    """Settings from the defaults, then a TOML file, then the overrides in order; None in an override changes nothing.

    Raises SettingError with the key, what is wrong with it, and similar keys.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values.update(tomllib.loads(Path(config).read_text()))
        except OSError as error:
            raise SettingError(f"{config}: can't be read ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{config}: not a TOML file ({error}).") from error
    for override in overrides:
        values.update({key: value for key, value in override.items() if value is not None})
    known = list(Settings.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(known)}."
            raise SettingError(f"There is no setting {key!r}; {hint}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a check of several settings together
            raise SettingError(f"Settings: {reason}.") from None
        key = ".".join(map(str, first["loc"]))
        raise SettingError(f"Setting {key} = {first['input']!r}: {reason[0].lower()}{reason[1:]}.") from None


def heuristic_epochs(n_cells: int) -> int:
    """scvi-tools' number of epochs: 400 up to 20,000 cells, then fewer, at least 1."""
    return max(1, min(400, round(20_000 / n_cells * 400)))


def atlas_rate(cells_of_a_step: int) -> float:
    """The learning rate of the recipe `atlas`."""
    return min(1e-3 * math.sqrt(cells_of_a_step / 64), 0.016)


def atlas_decay(epochs: float) -> float:
    """Weight decay of the recipe `atlas`, times the learning rate and the steps of the run.

    Its inverse is the part of the run after which weights have forgotten what they learned, whatever the number of
    cells (Wang & Aitchison 2024, arXiv 2405.13698). Cells that are seen many times are learned by heart otherwise.
    """
    return max(2 + math.log10(max(epochs, 1)), epochs / FORGOTTEN_AFTER)


def choose_batch_size(settings: Settings, n_train: int) -> int:
    """Cells of a minibatch: `batch_size`, or fewer where an epoch of n_train cells would have too few steps.

    settings  as `resolve_schedule` returns them
    """
    if not settings.least_steps_an_epoch:
        return settings.batch_size
    most = n_train // (settings.least_steps_an_epoch * settings.accumulate)
    return min(settings.batch_size, max(most, SMALLEST))


def choose_evaluation_cells(settings: Settings, n_held_out: int) -> int:
    """Largest number of training cells on which the final training loss is measured."""
    least, usual, most = EVALUATED
    return settings.evaluation_cells or min(max(n_held_out or usual, least), most)


def resolve_schedule(settings: Settings, n_train: int) -> Settings:
    """Fill in what the recipe and the number of training cells decide: rates, epochs, and from them the KL warm-up."""
    epochs = settings.epochs or heuristic_epochs(n_train)
    if settings.least_steps_an_epoch is None:
        least = max(FEWEST_STEPS_AN_EPOCH, math.ceil(FEWEST_STEPS / epochs)) if settings.recipe == "atlas" else 0
        settings = settings.model_copy(update={"least_steps_an_epoch": least})
    batch_size = choose_batch_size(settings, n_train)
    steps_an_epoch = math.ceil(math.ceil(n_train / batch_size) / settings.accumulate)
    steps = min(epochs * steps_an_epoch, settings.max_steps or sys.maxsize)
    cells_of_a_step = min(batch_size * settings.accumulate, n_train)
    by_recipe = {"learning_rate": atlas_rate(cells_of_a_step), **RECIPES[settings.recipe]}
    rate = settings.learning_rate or by_recipe["learning_rate"]
    same_optimizer = settings.optimizer in (None, by_recipe["optimizer"])
    decay = atlas_decay(steps / steps_an_epoch) / (rate * steps)
    by_recipe.setdefault("weight_decay", decay if same_optimizer else 1e-6)
    chosen = {name: value for name, value in by_recipe.items() if getattr(settings, name) is None}
    warmup_epochs, warmup_steps = settings.kl_warmup_epochs, settings.kl_warmup_steps
    if warmup_epochs is None:
        warmup_epochs = 0 if warmup_steps else min(400, epochs // 2)
        if warmup_epochs < 2 and not warmup_steps:
            warmup_epochs, warmup_steps = 0, steps
    return settings.model_copy(
        update={**chosen, "epochs": epochs, "kl_warmup_epochs": warmup_epochs, "kl_warmup_steps": warmup_steps}
    )


def warn_of_few_steps(settings: Settings, n_train: int) -> str | None:
    """A warning for the user if minibatches are so large that the run has fewer than FEWEST_STEPS steps, else None.

    settings  as `resolve_schedule` returns them
    A number of steps that was asked for, and the mapping of a query onto a trained model, are not warned of.
    """
    cells, epochs = choose_batch_size(settings, n_train) * settings.accumulate, settings.epochs or 1
    steps = epochs * math.ceil(n_train / cells)
    advised = max(SMALLEST, 2 ** int(math.log2(max(1, n_train * epochs / FEWEST_STEPS))))
    if steps >= FEWEST_STEPS or cells <= advised or settings.max_steps or settings.freezing is not None:
        return None
    return (
        f"Warning: {count(epochs, 'epoch')} of {n_train:,} cells are {count(steps, 'step')} of {cells:,} cells, and "
        f"runs of fewer than {FEWEST_STEPS} have not trained well: make a step of {advised:,} cells or fewer, or train "
        "for more epochs."
    )
