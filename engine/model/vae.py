"""scVI: an encoder q(z | x, covariates), a decoder to gene proportions, a likelihood of the counts.

It computes the same numbers as scvi-tools 1.5.1 from the same weights. Three things are stored differently, and
`scvi_tools.weights` translates them: the one-hot columns of each layer are parameters of their own; the first layer's
weight is transposed, [genes, hidden], so that each nonzero count reads one contiguous row; and parameters that the
settings never use are left out.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.profiler import record_function

from atlasvi.engine.model.decoder import Decoder
from atlasvi.engine.model.encoder import Encoder
from atlasvi.engine.model.layers import Covariates, Layer
from atlasvi.engine.model.likelihoods import Expression
from atlasvi.engine.model.loss_terms import CellLosses
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.noise import Noise, draw_normal
from atlasvi.kernels import (
    GeneOrder,
    Head,
    Precision,
    SparseCounts,
    decoder_nll,
    order_by_gene,
    sample_counts,
    take_columns,
)
from atlasvi.loaders.batches.batch import Batch

__all__ = ["VAE", "CellLosses", "Expression", "ModelSettings", "kl_of_normals", "model_from_weights"]

Codes = Mapping[str, Tensor]
"""Covariates of cells by name, as `Batch.codes` holds them: batch, labels int64 [cells]; categories int64 [cells,
covariates]; continuous float32 [cells, covariates]; size_factor float32 [cells]. A name that the model does not use may
be missing; so may `batch` and `labels` if the model has only one of them."""


class VAE(nn.Module):
    """The model; see the module's docstring. Random draws use the generator that is passed, never torch's own."""

    library_log_means: Tensor
    library_log_vars: Tensor
    precision: Precision = "float32"
    """Precision of the output layer's products: see `kernels.decoder_nll`."""

    def __init__(self, settings: ModelSettings, generator: Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings, settings.n_layers, settings.n_latent)
        self.library_encoder = Encoder(settings, 1, 1) if settings.has_latent_library else None
        self.decoder = Decoder(settings)
        rows = settings.theta_rows
        shape = (settings.n_genes,) if settings.dispersion == "gene" else (rows, settings.n_genes)
        self.log_theta = nn.Parameter(torch.empty(shape)) if rows else None
        embedding = torch.empty(settings.n_batches, settings.embedding_dim)
        self.batch_embedding = nn.Parameter(embedding) if settings.embeds_batch else None
        if settings.has_latent_library:
            self.register_buffer("library_log_means", torch.zeros(settings.n_batches))
            self.register_buffer("library_log_vars", torch.ones(settings.n_batches))
        if generator is not None:
            self.reset(generator)

    def reset(self, generator: Generator) -> None:
        """Draw all weights from the distributions that scvi-tools draws them from."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.reset(generator)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for parameter in (self.log_theta, self.batch_embedding):
            if parameter is not None:
                nn.init.normal_(parameter, generator=generator)

    @property
    def n_latent(self) -> int:
        """Number of dimensions of z."""
        return self.settings.n_latent

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights and of all that is computed: float32, or float64 after `double()`."""
        return self.encoder.mean.weight.dtype

    def encode(
        self, cells: Batch, generator: Noise | None = None, order: GeneOrder | None = None
    ) -> tuple[Tensor, Tensor]:
        """qzm, qzv float32 [cells, latent]: mean and variance of q(z | x), before the softmax if the latents are ln."""
        return self.encoder(cells, self._encoder_covariates(cells), generator, order)

    def encode_library(
        self, cells: Batch, generator: Noise | None = None, order: GeneOrder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(log library | x), float32 [cells]. Raises ValueError if the library is observed."""
        if self.library_encoder is None:
            raise ValueError("the library size of this model is observed: it has no posterior")
        mean, variance = self.library_encoder(cells, self._encoder_covariates(cells), generator, order)
        return mean[:, 0], variance[:, 0]

    def library_prior(self, codes: Codes, n_cells: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the log library size in each cell's batch, float32 [cells]; latent library only."""
        batch = self._codes(codes, "batch", self.settings.n_batches, n_cells)
        return self.library_log_means[batch], self.library_log_vars[batch]

    def to_latent(self, normal: Tensor) -> Tensor:
        """z from a draw of the normal, [..., latent]: the draw itself, or its softmax if the latents are ln."""
        return torch.softmax(normal, dim=-1) if self.settings.latent_distribution == "ln" else normal

    def proportions(self, z: Tensor, codes: Codes | None = None, *, transform_batch: int | None = None) -> Tensor:
        """Only the proportions of `decode`, float32 [..., cells, genes]."""
        return self._proportions(self.hide(z, codes, transform_batch=transform_batch))

    def hide(self, z: Tensor, codes: Codes | None = None, *, transform_batch: int | None = None) -> Tensor:
        """The decoder's last hidden state, float32 [..., cells, hidden]; the arguments are those of `decode`."""
        return self._hide(z, codes, transform_batch)[1]

    def normaliser(self, hidden: Tensor) -> Tensor:
        """Log of the sum of the exponentials of a cell's logits, float32 [cells]; zeros for a model of size factors.

        With it, `some_proportions` decodes some genes at a time, however many genes the model has.
        """
        if self.settings.use_size_factor:
            return torch.zeros_like(hidden[..., 0])
        return torch.logsumexp(self.decoder.logits(hidden), dim=-1)

    def some_proportions(self, hidden: Tensor, normaliser: Tensor, genes: slice | Tensor) -> Tensor:
        """`proportions` of some genes, genes first: float32 [genes, cells], from what `hide` and `normaliser` gave."""
        weight, bias = self.decoder.logits.weight[genes], self.decoder.logits.bias[genes]
        logits = torch.addmm(bias[:, None], weight, hidden.T)
        return F.softplus(logits) if self.settings.use_size_factor else logits.sub_(normaliser).exp_()

    def decode(
        self,
        z: Tensor,
        codes: Codes | None = None,
        library: Tensor | float = 1.0,
        *,
        transform_batch: int | None = None,
    ) -> Expression:
        """Parameters of the likelihood at z [..., cells, latent].

        codes            covariates of the cells (see `Codes`)
        library          counts per cell [..., cells], or one number for all cells; a size factor is used instead if the
                         model has one
        transform_batch  decode all cells as if they belonged to this batch
        Raises ValueError if a covariate that the model uses is missing from codes.
        """
        codes, hidden = self._hide(z, codes, transform_batch)
        proportions = self._proportions(hidden)
        scale = (
            _take(codes, "size_factor") if self.settings.use_size_factor else torch.as_tensor(library, device=z.device)
        )
        theta, rows = self._dispersion(codes, z.shape[-2])
        if self.decoder.log_theta is not None:
            theta = self.decoder.log_theta(hidden)
        elif rows is not None:
            assert theta is not None
            theta = theta[rows]
        return Expression(
            proportions,
            proportions * scale[..., None],
            None if theta is None else theta.exp(),
            None if self.decoder.dropout is None else self.decoder.dropout(hidden),
        )

    def _hide(self, z: Tensor, codes: Codes | None, transform_batch: int | None) -> tuple[Codes, Tensor]:
        """The codes, with transform_batch applied, and the decoder's last hidden state."""
        n_cells, codes = z.shape[-2], dict(codes or {})
        if transform_batch is not None:
            codes["batch"] = torch.full((n_cells,), transform_batch, device=z.device)
        return codes, self.decoder.hide(z, self._covariates(codes, n_cells))

    def _proportions(self, hidden: Tensor) -> Tensor:
        logits = self.decoder.logits(hidden)
        return F.softplus(logits) if self.settings.use_size_factor else torch.softmax(logits, dim=-1)

    def reconstruction(
        self,
        cells: Batch,
        z: Tensor,
        library: Tensor | None = None,
        n_cells: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each cell's counts at z [cells, latent], summed over genes, nats: float32 [cells].

        library  counts per cell, float32 [cells]; None: the observed ones
        n_cells  number of cells of the mean loss, if these are only part of them; saves work, does not change the loss
        """
        library = (cells.library if library is None else library).to(z.dtype)
        settings = self.settings
        if settings.likelihood.fused is None:
            return -settings.likelihood.log_prob(cells.to_dense(), self.decode(z, cells.codes, library)).sum(1)
        head, theta, rows, dropout = self._heads(cells.codes, len(cells))
        hidden = self.decoder.hide(z, self._covariates(cells.codes, len(cells)))
        counts = SparseCounts(cells.indptr, cells.indices, cells.counts)
        return decoder_nll(
            hidden,
            head,
            counts,
            _take(cells.codes, "size_factor").to(z.dtype) if settings.use_size_factor else library,
            theta,
            theta_rows=rows,
            dropout=dropout,
            likelihood=settings.likelihood.fused,
            softmax=not settings.use_size_factor,
            expected_grad=1 / max(n_cells or len(cells), 1),
            precision=self.precision,
        )

    def sample_counts(
        self,
        z: Tensor,
        codes: Codes,
        library: Tensor,
        seed: int,
        numbers: Tensor,
        draw: int,
        *,
        transform_batch: int | None = None,
    ) -> SparseCounts:
        """Counts drawn from the likelihood at z [cells, latent]: CSR, indices and counts int32 (normal: float32).

        numbers  int64 [cells], the number of each cell; with seed and draw it chooses the cell's random numbers
        The other arguments are as for `decode`. Raises kernels.InvalidParametersError.
        """
        settings = self.settings
        if settings.likelihood.sample is not None:
            values = settings.likelihood.sample(
                self.decode(z, codes, library, transform_batch=transform_batch), seed, numbers, draw
            )
            n_cells, n_genes = values.shape
            indptr, genes = (torch.arange(n, device=z.device) for n in (n_cells + 1, n_genes))
            return SparseCounts(indptr * n_genes, genes.int().repeat(n_cells), values.flatten())
        assert settings.likelihood.fused is not None
        codes, hidden = self._hide(z, codes, transform_batch)
        head, theta, rows, dropout = self._heads(codes, len(z))
        return sample_counts(
            hidden,
            head,
            _take(codes, "size_factor").to(z.dtype) if settings.use_size_factor else library,
            theta,
            cells=numbers,
            seed=seed,
            draw=draw,
            theta_rows=rows,
            dropout=dropout,
            likelihood=settings.likelihood.fused,
            softmax=not settings.use_size_factor,
        )

    def _heads(self, codes: Codes, n_cells: int) -> tuple[Head, Tensor | Head | None, Tensor | None, Head | None]:
        """The output layer, log theta and the row of each cell in it, and the layer of dropouts, for the kernels."""
        table, rows = self._dispersion(codes, n_cells)
        head, theta_head, dropout = (
            None if part is None else Head(part.weight, part.bias)
            for part in (self.decoder.logits, self.decoder.log_theta, self.decoder.dropout)
        )
        assert head is not None
        return head, table if theta_head is None else theta_head, rows, dropout

    def forward(self, cells: Batch, generator: Noise, n_cells: int | None = None) -> CellLosses:
        """The terms of the loss of each cell, with one draw of z (and of a latent library).

        n_cells  see `reconstruction`
        """
        with record_function("encoder"):
            learns = torch.is_grad_enabled()
            order = order_by_gene(cells.indptr, cells.indices, self.settings.n_genes) if learns else None
            qzm, qzv = self.encode(cells, generator, order)
            z = self.to_latent(_draw(qzm, qzv, generator))
            kl, library, kl_library = kl_of_normals(qzm, qzv).sum(1), None, torch.zeros_like(cells.library)
            if self.library_encoder is not None:
                qlm, qlv = self.encode_library(cells, generator, order)
                library = _draw(qlm, qlv, generator).exp()
                kl_library = kl_of_normals(qlm, qlv, *self.library_prior(cells.codes, len(cells)))
        with record_function("decoder + loss"):
            return CellLosses(self.reconstruction(cells, z, library, n_cells), kl, kl_library)

    def _codes(self, codes: Codes, name: str, n: int, n_cells: int) -> Tensor:
        """int64 [cells]; zeros if the covariate has one category and is missing from codes."""
        if name in codes or n > 1:
            return _take(codes, name)
        return torch.zeros(n_cells, dtype=torch.int64, device=self.encoder.mean.weight.device)

    def _encoder_covariates(self, cells: Batch) -> Covariates:
        """Those of a minibatch, if they are inputs of the encoders; otherwise its codes may lack them."""
        return self._covariates(cells.codes, len(cells)) if self.settings.encode_covariates else Covariates()

    def _covariates(self, codes: Codes, n_cells: int) -> Covariates:
        """The covariates of a minibatch in the form that layers take."""
        settings = self.settings
        numbers = [_take(codes, "continuous").to(self.dtype)] if settings.n_continuous else []
        batch = None
        if settings.embeds_batch:
            assert self.batch_embedding is not None
            batch_codes = self._codes(codes, "batch", settings.n_batches, n_cells)
            numbers.append(take_columns(self.batch_embedding, batch_codes))
        elif settings.n_batches > 1:
            batch = self._codes(codes, "batch", settings.n_batches, n_cells)
        categories = tuple(_take(codes, "categories")[:, k] for k, n in enumerate(settings.n_categories) if n > 1)
        return Covariates(batch, categories, torch.cat(numbers, dim=1) if numbers else None)

    def _dispersion(self, codes: Codes, n_cells: int) -> tuple[Tensor | None, Tensor | None]:
        """The table of log theta, if there is one, and the row of each cell, if the table has several rows."""
        if self.log_theta is None or self.settings.dispersion == "gene":
            return self.log_theta, None
        name = "batch" if self.settings.dispersion == "gene-batch" else "labels"
        return self.log_theta, self._codes(codes, name, self.settings.theta_rows, n_cells)


def _take(codes: Codes, name: str) -> Tensor:
    if name not in codes:
        raise ValueError(f"the covariate {name!r} is missing from the codes of the cells: see Codes")
    return codes[name]


def _draw(mean: Tensor, variance: Tensor, noise: Noise) -> Tensor:
    """A draw of N(mean, variance), differentiable in both."""
    return mean + variance.sqrt() * draw_normal(mean, noise)


def kl_of_normals(
    mean: Tensor, variance: Tensor, to_mean: Tensor | float = 0, to_variance: Tensor | float = 1
) -> Tensor:
    """KL(N(mean, variance) || N(to_mean, to_variance)), elementwise, in nats; by default to the standard normal."""
    ratio = variance / to_variance
    return 0.5 * ((mean - to_mean).square() / to_variance + ratio - 1 - ratio.log())


def model_from_weights(settings: Mapping, weights: Mapping[str, Any]) -> VAE:
    """A model in evaluation mode from settings and weights.

    Raises RuntimeError or ValueError if they don't match, ValueError for weights that are NaN or infinite.

    weights  arrays, tensors or Zarr arrays by name; an array of another shape is not read
    """
    model = VAE(ModelSettings.model_validate(settings))
    shapes = {name: tuple(own.shape) for name, own in model.state_dict().items()}
    if wrong := next((name for name in weights if tuple(weights[name].shape) != shapes.get(name)), None):
        raise ValueError(f"weight {wrong!r} has shape {tuple(weights[wrong].shape)} instead of {shapes.get(wrong)}")
    model.load_state_dict({name: torch.as_tensor(np.asarray(values)) for name, values in weights.items()})
    check_finite(model)
    return model.eval()


def check_finite(model: VAE) -> None:
    """Raises ValueError if a weight is NaN or infinite: all answers of such a model would be."""
    for name, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise ValueError(f"weight {name!r} holds NaN or infinite values")
