"""A layer of the encoder or the decoder: Linear with columns for covariates, norms, ReLU, dropout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.noise import Noise, draw_dropout
from atlasvi.kernels import GeneOrder, log1p_linear, norm_relu, take_columns
from atlasvi.loaders.batches.batch import Batch


@dataclass(frozen=True)
class Covariates:
    """The covariates of a minibatch, in the form that layers take.

    batch       int64 [cells], if batches are one-hot and there are at least two
    categories  int64 [cells] of each further covariate that has at least two categories
    numbers     float32 [cells, numbers]: continuous covariates, then the batch's embedding; only for the first layer
    """

    batch: Tensor | None = None
    categories: tuple[Tensor, ...] = ()
    numbers: Tensor | None = None


@dataclass(frozen=True)
class LayerShape:
    """What all layers of an encoder or decoder have in common.

    n_batches, n_categories  one-hot inputs of each covariate
    deep  whether layers after the first have one-hot inputs too
    """

    n_batches: int = 1
    n_categories: Sequence[int] = ()
    deep: bool = True
    dropout_rate: float = 0.0
    batch_norm: bool = False
    layer_norm: bool = True

    @classmethod
    def of_part(cls, settings: ModelSettings, part: Literal["encoder", "decoder"]) -> Self:
        """The layers of one part of a model; the decoder always has covariates as inputs, and never dropout."""
        takes_covariates = part == "decoder" or settings.encode_covariates
        return cls(
            settings.n_batches if takes_covariates and not settings.embeds_batch else 1,
            settings.n_categories if takes_covariates else (),
            settings.deeply_inject_covariates,
            settings.dropout_rate if part == "encoder" else 0.0,
            settings.use_batch_norm in (part, "both"),
            settings.use_layer_norm in (part, "both"),
        )

    def columns(self, first: bool) -> tuple[int, list[int]]:
        """Number of one-hot inputs of a layer: of the batch, and of each further covariate; one category needs none."""
        if not (first or self.deep):
            return 1, []
        return self.n_batches, [n for n in self.n_categories if n > 1]


class Layer(nn.Module):
    """Linear with a column for each category, batch norm, layer norm without parameters, ReLU, dropout.

    Adding the column of a category gives the same result as scvi-tools' product of one-hot covariate and weight.
    """

    def __init__(self, n_in: int, n_out: int, shape: LayerShape, first: bool = False) -> None:
        super().__init__()
        n_batches, n_categories = shape.columns(first)
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.batch = nn.Parameter(torch.empty(n_batches, n_out)) if n_batches > 1 else None
        self.categories = nn.ParameterList(torch.empty(n, n_out) for n in n_categories)
        # eps and momentum come from scVI's first, TensorFlow implementation
        self.norm = nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.01) if shape.batch_norm else None
        self.layer_norm, self.dropout_rate, self.n_in = shape.layer_norm, shape.dropout_rate, n_in

    def reset(self, generator: Generator) -> None:
        """Draw weights as torch's Linear does: uniform within 1 / sqrt(inputs); one-hot inputs count as inputs."""
        columns = [part for part in (self.batch, *self.categories) if part is not None]
        bound = 1 / math.sqrt(self.n_in + sum(len(part) for part in columns))
        for name, parameter in self.named_parameters():
            if not name.startswith("norm."):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, hidden: Tensor, covariates: Covariates, generator: Noise | None) -> Tensor:
        """hidden float32 [..., cells, in] -> [..., cells, out]; dropout only while training."""
        return self.finish(F.linear(hidden, self.weight), covariates, generator)

    def finish(self, projected: Tensor, covariates: Covariates, generator: Noise | None) -> Tensor:
        """All of the layer that follows the product with the weight."""
        for codes, columns in zip(covariates.categories, self.categories):
            projected = projected + take_columns(columns, codes)
        # bias and column are added in one look-up, which saves one pass over the cells forward and one backward
        columns = self.bias[None] if self.batch is None else self.batch + self.bias
        codes_of_batch = None if self.batch is None else covariates.batch
        rate = self.dropout_rate if self.training else 0.0
        dropout = draw_dropout(projected, rate, generator) if rate > 0 else None
        if self.norm is None and self.layer_norm and projected.dim() == 2:
            return norm_relu(projected, columns, codes_of_batch, dropout)
        out = projected + (self.bias if codes_of_batch is None else take_columns(columns, codes_of_batch))
        if self.norm is not None:
            out = self._normalise(self.norm, out)
        if self.layer_norm:
            out = F.layer_norm(out, out.shape[-1:])
        out = F.relu(out)
        return out if dropout is None else out * dropout

    def _normalise(self, norm: nn.BatchNorm1d, out: Tensor) -> Tensor:
        flat = out.flatten(0, -2)
        of_one_rank = type(norm) is nn.BatchNorm1d  # a norm over all ranks must be called on every rank
        if self.training and len(flat) < 2 and of_one_rank:  # one cell has no variance: normalise as in evaluation
            return F.batch_norm(flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(flat).view_as(out)


class CountsLayer(Layer):
    """The first layer of an encoder: its inputs are sparse counts and numbers. Its weight is [genes, hidden]."""

    def __init__(self, n_genes: int, n_numbers: int, n_out: int, shape: LayerShape, logarithm: bool) -> None:
        super().__init__(n_genes, n_out, shape, first=True)
        self.weight = nn.Parameter(torch.empty(n_genes, n_out))  # so that each nonzero count reads one contiguous row
        self.numbers = nn.Parameter(torch.empty(n_numbers, n_out)) if n_numbers else None
        self.n_in, self.logarithm = n_genes + n_numbers, logarithm

    def encode(
        self, cells: Batch, covariates: Covariates, generator: Noise | None, order: GeneOrder | None = None
    ) -> Tensor:
        """Hidden state float32 [cells, out] of a minibatch."""
        csr = cells.indptr, cells.indices, cells.counts
        projected = log1p_linear(*csr, self.weight, raw=not self.logarithm, order=order)
        if self.numbers is not None:
            assert covariates.numbers is not None
            projected = projected + covariates.numbers @ self.numbers
        return self.finish(projected, covariates, generator)
