"""Which parameters stay frozen when a model is trained on new data: as in scvi-tools' scArches."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training.settings import SettingError


def group_parameters(
    model: VAE, freezing: Freezing | None, weight_decay: float, decayed: str = "all"
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, without the frozen parameters; the model is changed so that they stay frozen.

    decayed  'weights' puts biases, theta and the scale and shift of norms into a group without weight decay
    A parameter with some frozen rows is in a group without weight decay, which would change those rows.
    Raises SettingError if there is no parameter to train.
    """
    if freezing is None or freezing.unfrozen:
        whole: list[Tensor] = []
        partly: list[Tensor] = []
        for name, parameter in model.named_parameters():
            spared = decayed == "weights" and (parameter.dim() < 2 or name == "log_theta")
            (partly if spared else whole).append(parameter)
        return _decay_first(whole, partly, weight_decay)
    held_rows = choose_trained(model, freezing)
    if not held_rows:
        raise SettingError(
            "The model uses no covariate whose columns could be trained, and all its other parameters are frozen: use "
            "it as it is (atlasvi minify, SCVI.load), or train all parameters (--unfrozen, unfrozen=True)."
        )
    whole, partly = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in held_rows)
        if held_rows.get(name):
            parameter.register_hook(_freeze_rows(held_rows[name]))
            partly.append(parameter)
        elif name in held_rows:
            whole.append(parameter)
    return _decay_first(whole, partly, weight_decay)


def _decay_first(decayed: list[Tensor], spared: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def choose_trained(model: VAE, freezing: Freezing) -> dict[str, int]:
    """Names of the parameters to train, each with the number of its first rows that are frozen all the same."""
    settings = model.settings
    kept = [old for old, now in zip(freezing.n_categories, settings.n_categories) if now > 1]
    learned: dict[str, int] = {}
    if settings.embeds_batch:
        learned["batch_embedding"] = freezing.n_batches if settings.encode_covariates else 0
    for name, _ in model.named_parameters():
        place, _, part = name.rpartition(".")
        if name.startswith("library_encoder."):
            learned[name] = 0
        elif _is_free_first_layer(name, freezing):
            if ".norm." not in name:
                learned[name] = 0
        elif part == "batch":
            learned[name] = freezing.n_batches if place.startswith("encoder.") else 0
        elif place.endswith(".categories"):
            learned[name] = kept[int(part)] if place.startswith("encoder.") else 0
        if ".norm." in name and not name.startswith("library_encoder.") and not _is_norm_frozen(place, freezing):
            learned[name] = 0
    return learned


def _is_free_first_layer(name: str, freezing: Freezing) -> bool:
    return (name.startswith("encoder.first.") and not freezing.freeze_expression) or (
        name.startswith("decoder.layers.0.") and not freezing.freeze_decoder_first_layer
    )


def _is_norm_frozen(place: str, freezing: Freezing) -> bool:
    """Whether the batch norm of this encoder or decoder layer is frozen."""
    return freezing.freeze_batchnorm_decoder if place.startswith("decoder.") else freezing.freeze_batchnorm_encoder


def _freeze_rows(n: int) -> Callable[[Tensor], Tensor]:
    def freeze(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:n] = 0
        return gradient

    return freeze
