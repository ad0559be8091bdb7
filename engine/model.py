"""scVI: an encoder q(z | x, batch), a decoder to gene proportions, a negative binomial likelihood.

As scvi-tools 1.5.1 defines it with the settings of the Tabula Sapiens model card; same weights, same numbers. Three
things are stored otherwise than there, and `scvi_files` translates: the one-hot columns of each layer are a parameter
of their own; the first layer's weight is transposed, [genes, hidden], so that sparse counts meet contiguous rows; and
parameters that the settings never use are left out.
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor, nn
from torch.profiler import record_function

from atlasvi.engine.noise import Noise, draw_bernoulli, draw_normal
from atlasvi.kernels import Head, SparseCounts, decoder_nll, log1p_linear
from atlasvi.loaders.batch import Batch


class ModelSettings(BaseModel):
    """What a model is made of; the defaults are those of the Tabula Sapiens model card."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_genes: int = Field(ge=1)
    n_batches: int = Field(default=1, ge=1)
    """Batches to correct for; 1 means none."""
    n_hidden: int = Field(default=128, ge=1)
    n_latent: int = Field(default=20, ge=1)
    n_layers: int = Field(default=3, ge=1)
    dropout_rate: float = Field(default=0.05, ge=0, lt=1)
    """In the encoder; the decoder has none."""


class Layer(nn.Module):
    """Linear with a column for each batch, layer norm without parameters, ReLU, dropout.

    The batch's column is what scvi-tools' one-hot covariate times the weight comes to.
    """

    def __init__(self, n_in: int, n_out: int, n_batches: int, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.batch = nn.Parameter(torch.empty(n_batches, n_out)) if n_batches > 1 else None
        self.n_in, self.dropout_rate = n_in, dropout_rate

    def reset(self, generator: Generator) -> None:
        """Draw weights as torch's Linear does: uniform within 1 / sqrt(inputs), the one-hot inputs counted."""
        bound = 1 / math.sqrt(self.n_in + (0 if self.batch is None else len(self.batch)))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def project(self, hidden: Tensor) -> Tensor:
        """The product with the weight, before bias and batch."""
        return hidden @ self.weight.T

    def forward(self, hidden: Tensor, batch: Tensor | None, generator: Noise | None) -> Tensor:
        """hidden float32 [cells, in] -> [cells, out]; batch int64 [cells]; dropout only while training."""
        return self.finish(self.project(hidden), batch, generator)

    def finish(self, projected: Tensor, batch: Tensor | None, generator: Noise | None) -> Tensor:
        """All that follows the product with the weight."""
        out = projected + self.bias
        if self.batch is not None:
            assert batch is not None
            out = out + F.embedding(batch, self.batch)  # indexing would add up its gradient in any order
        out = F.relu(F.layer_norm(out, out.shape[-1:]))
        if self.training and self.dropout_rate > 0:
            kept = draw_bernoulli(out, 1 - self.dropout_rate, generator)
            out = out * kept.div_(1 - self.dropout_rate)
        return out


class CountsLayer(Layer):
    """The first layer: log1p of sparse counts; its weight is [genes, hidden]."""

    def __init__(self, n_genes: int, n_out: int, n_batches: int, dropout_rate: float) -> None:
        super().__init__(n_genes, n_out, n_batches, dropout_rate)
        self.weight = nn.Parameter(torch.empty(n_genes, n_out))

    def encode(self, cells: Batch, batch: Tensor | None, generator: Noise | None) -> Tensor:
        """Hidden state float32 [cells, out] of a minibatch."""
        projected = log1p_linear(cells.indptr, cells.indices, cells.counts, self.weight)
        return self.finish(projected, batch, generator)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    """A Linear whose weights are not drawn yet: its own initialisation would draw from the global generator."""
    return nn.utils.skip_init(nn.Linear, n_in, n_out)


class Encoder(nn.Module):
    """q(z | x, batch): sparse counts -> mean and variance of the latent."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, batches, dropout = settings.n_hidden, settings.n_batches, settings.dropout_rate
        self.first = CountsLayer(settings.n_genes, hidden, batches, dropout)
        self.layers = nn.ModuleList(Layer(hidden, hidden, batches, dropout) for _ in range(settings.n_layers - 1))
        self.mean, self.log_variance = _linear(hidden, settings.n_latent), _linear(hidden, settings.n_latent)

    def forward(self, cells: Batch, batch: Tensor | None, generator: Noise | None) -> tuple[Tensor, Tensor]:
        """qzm, qzv [cells, latent]; qzv is a variance, above 1e-4."""
        hidden = self.first.encode(cells, batch, generator)
        for layer in self.layers:
            hidden = layer(hidden, batch, generator)
        return self.mean(hidden), self.log_variance(hidden).exp() + 1e-4


class Decoder(nn.Module):
    """z, batch -> logits of the gene proportions."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        sizes = [settings.n_latent] + [settings.n_hidden] * settings.n_layers
        self.layers = nn.ModuleList(Layer(a, b, settings.n_batches) for a, b in itertools.pairwise(sizes))
        self.logits = _linear(settings.n_hidden, settings.n_genes)

    def hide(self, z: Tensor, batch: Tensor | None) -> Tensor:
        """The last hidden state float32 [cells, hidden]."""
        hidden = z
        for layer in self.layers:
            hidden = layer(hidden, batch, None)
        return hidden

    def forward(self, z: Tensor, batch: Tensor | None) -> Tensor:
        """Logits float32 [cells, genes]."""
        return self.logits(self.hide(z, batch))


class SCVI(nn.Module):
    """The model: see the module. Noise comes from the generators that the calls are given, never from a global one."""

    def __init__(self, settings: ModelSettings, generator: Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.encoder, self.decoder = Encoder(settings), Decoder(settings)
        self.log_theta = nn.Parameter(torch.empty(settings.n_genes))
        if generator is not None:
            self.reset(generator)

    def reset(self, generator: Generator) -> None:
        """Draw all weights anew, from the distributions that scvi-tools draws them from."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.reset(generator)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        nn.init.normal_(self.log_theta, generator=generator)

    @property
    def n_latent(self) -> int:
        """Dimensions of z."""
        return self.settings.n_latent

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of each gene, float32 [genes]."""
        return self.log_theta.exp()

    def encode(self, cells: Batch, generator: Noise | None = None) -> tuple[Tensor, Tensor]:
        """qzm, qzv float32 [cells, latent]: mean and variance of q(z | x, batch)."""
        return self.encoder(cells, cells.codes.get("batch"), generator)

    def decode(self, z: Tensor, batch: Tensor | None = None) -> Tensor:
        """Gene proportions float32 [cells, genes] of z [cells, latent] in batches int64 [cells]; x library: means."""
        return torch.softmax(self.decoder(z, batch), dim=1)

    def reconstruction(self, cells: Batch, z: Tensor, n_cells: int | None = None) -> Tensor:
        """Negative log-likelihood of each cell's counts given z, summed over genes, nats: float32 [cells].

        n_cells  that the loss will be a mean over, where these are a share of them: spares work, changes no number
        """
        output = self.decoder.logits
        return decoder_nll(
            self.decoder.hide(z, cells.codes.get("batch")),
            Head(output.weight, output.bias),
            SparseCounts(cells.indptr, cells.indices, cells.counts),
            cells.library,
            self.log_theta,
            expected_grad=1 / max(n_cells or len(cells), 1),
        )

    def forward(self, cells: Batch, generator: Noise, n_cells: int | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and KL(q(z | x) || N(0, I)) of each cell, nats, z sampled once: float32 [cells] each.

        n_cells  see `reconstruction`
        """
        with record_function("encoder"):
            qzm, qzv = self.encode(cells, generator)
            z, kl = qzm + qzv.sqrt() * draw_normal(qzm, generator), kl_to_standard_normal(qzm, qzv)
        with record_function("decoder + loss"):
            return self.reconstruction(cells, z, n_cells), kl


def kl_to_standard_normal(qzm: Tensor, qzv: Tensor) -> Tensor:
    """KL(N(qzm, qzv) || N(0, I)) of each cell, summed over dimensions, nats: [cells]."""
    return 0.5 * (qzm.square() + qzv - 1 - qzv.log()).sum(1)


def model_from_weights(settings: Mapping, weights: Mapping[str, np.ndarray | Tensor]) -> SCVI:
    """A model in evaluation mode from its settings and its weights. Raises RuntimeError or ValueError on misfits."""
    model = SCVI(ModelSettings.model_validate(settings))
    model.load_state_dict({name: torch.as_tensor(np.asarray(values)) for name, values in weights.items()})
    return model.eval()
