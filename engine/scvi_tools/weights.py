"""Convert weights between our names and layout and those of scvi-tools.

A layer of scvi-tools is one matrix [out, inputs]: counts or hidden state, continuous covariates, the batch's embedding,
then the one-hot batch and each one-hot covariate. Here these are separate parameters, most of them transposed.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Generator, Tensor, nn

from atlasvi.engine.model.encoder import BlankLinear, Encoder
from atlasvi.engine.model.layers import CountsLayer, Layer
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.vae import VAE, check_finite

NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def from_scvi_weights(weights: Mapping[str, np.ndarray | Tensor], settings: ModelSettings) -> VAE:
    """A model in evaluation mode from scvi-tools' state dictionary; parameters that the settings never use are ignored.

    Raises KeyError if a parameter is missing, ValueError or RuntimeError if one has the wrong shape.
    """
    if f"decoder.px_decoder.fc_layers.Layer {settings.n_layers - 1}.0.weight" not in weights:
        raise ValueError(f"the weights have fewer than {settings.n_layers} layers")
    with torch.device("meta"):  # wrong settings must not allocate memory
        model = VAE(settings)
    ours, state = model.state_dict(), {}
    for theirs, pieces in _correspondence(model):
        values = weights[theirs]
        values = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
        if theirs.startswith("library_log"):
            values = values.flatten()
        widths = [ours[name].shape[0 if transposed else -1] if ours[name].dim() else 1 for name, transposed in pieces]
        if values.dim() == 2 and values.shape[1] != sum(widths):
            raise ValueError(f"{theirs} has {values.shape[1]} inputs, but with these settings it has {sum(widths)}")
        parts = values.split(widths, dim=1) if values.dim() == 2 else (values,)
        for (name, transposed), part in zip(pieces, parts):
            part = (part.T if transposed else part).to(ours[name].dtype).contiguous()
            if part.shape != ours[name].shape:
                raise ValueError(f"{theirs} has shape {tuple(values.shape)}, which does not fit these settings")
            state[name] = part.clone()
    model.load_state_dict(state, assign=True)
    check_finite(model)
    return model.eval()


def to_scvi_weights(model: VAE) -> dict[str, Tensor]:
    """scvi-tools' state dictionary of a model; parameters that it never uses are drawn as there, from a fixed seed."""
    whole = _add_unused_parts(model)
    ours = whole.state_dict()
    theirs = {}
    for name, pieces in _correspondence(whole):
        parts = [ours[part].T if transposed else ours[part] for part, transposed in pieces]
        values = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        theirs[name] = values[None] if name.startswith("library_log") else values.clone().contiguous()
    return theirs


def _add_unused_parts(model: VAE) -> VAE:
    """A copy on the CPU with every part that scvi-tools' module has, used or not."""
    settings = model.settings
    whole, hidden, genes = VAE(settings), settings.n_hidden, settings.n_genes
    whole.library_encoder = whole.library_encoder or Encoder(settings, 1, 1)
    whole.decoder.log_theta = whole.decoder.log_theta or BlankLinear(hidden, genes)
    whole.decoder.dropout = whole.decoder.dropout or BlankLinear(hidden, genes)
    if not settings.likelihood.has_dispersion:
        whole.log_theta = VAE(settings.model_copy(update={"gene_likelihood": "nb"})).log_theta
    whole.reset(Generator().manual_seed(0))
    whole.load_state_dict(model.state_dict(), strict=False)
    return whole


def _correspondence(model: VAE) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """(scvi-tools' name, [(our name, whether it is transposed)] of the blocks of columns of its matrix)."""
    yield from _encoder(model.encoder, "encoder", "z_encoder")
    if model.library_encoder is not None:
        yield from _encoder(model.library_encoder, "library_encoder", "l_encoder")
    for k, layer in enumerate(model.decoder.layers):
        yield from _layer(layer, f"decoder.layers.{k}", f"decoder.px_decoder.fc_layers.Layer {k}")
    for part, theirs in (
        ("logits", "px_scale_decoder.0"),
        ("log_theta", "px_r_decoder"),
        ("dropout", "px_dropout_decoder"),
    ):
        yield from _linear(getattr(model.decoder, part), f"decoder.{part}", f"decoder.{theirs}")
    if model.log_theta is not None:
        yield "px_r", [("log_theta", model.log_theta.dim() == 2)]
    if model.batch_embedding is not None:
        yield "_embeddings_dict.batch.weight", [("batch_embedding", False)]
    if model.settings.has_latent_library:
        for name in ("library_log_means", "library_log_vars"):
            yield name, [(name, False)]


def _encoder(encoder: Encoder, ours: str, theirs: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    yield from _layer(encoder.first, f"{ours}.first", f"{theirs}.encoder.fc_layers.Layer 0")
    for k, layer in enumerate(encoder.layers):
        yield from _layer(layer, f"{ours}.layers.{k}", f"{theirs}.encoder.fc_layers.Layer {k + 1}")
    yield from _linear(encoder.mean, f"{ours}.mean", f"{theirs}.mean_encoder")
    yield from _linear(encoder.log_variance, f"{ours}.log_variance", f"{theirs}.var_encoder")


def _layer(layer: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    assert isinstance(layer, Layer)
    pieces = [(f"{ours}.weight", isinstance(layer, CountsLayer))]
    if getattr(layer, "numbers", None) is not None:
        pieces.append((f"{ours}.numbers", True))
    if layer.batch is not None:
        pieces.append((f"{ours}.batch", True))
    pieces.extend((f"{ours}.categories.{k}", True) for k in range(len(layer.categories)))
    yield f"{theirs}.0.weight", pieces
    yield f"{theirs}.0.bias", [(f"{ours}.bias", False)]
    if layer.norm is not None:
        for part in NORM_PARTS:
            yield f"{theirs}.1.{part}", [(f"{ours}.norm.{part}", False)]


def _linear(part: nn.Linear | None, ours: str, theirs: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    if part is not None:
        for name in ("weight", "bias"):
            yield f"{theirs}.{name}", [(f"{ours}.{name}", False)]
