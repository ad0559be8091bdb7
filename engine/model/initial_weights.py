"""Initial weights from a sample of cells: the model starts as a linear one that is fitted to them.

scVI's own initial weights know nothing of the data. All cells look alike to an encoder of random weights, because what
they share (a few genes have most of the counts) is far larger than what tells them apart; the decoder learns the genes'
means first and ignores a z that carries nothing, and then the KL term closes the latents for good. With many small
steps the model gets past that; with the few large ones of an atlas it does not. Here the first step begins beyond it:

1. The bias of each gene's logit is the log of its share of the counts, theta comes from its mean and variance.
2. The encoder's first layer projects onto random mixtures of the principal components of its input, as far as they
   rise above those of unrelated genes. Every gene is in units of its standard deviation: otherwise the noise of the few
   genes with the largest counts hides what the many others say together.
3. Every hidden unit, and the mean of q(z | x), has mean 0 and variance 1 over the sample, before it is normalised and
   activated (Mishkin & Matas 2016, "All you need is a good init"); the variance of q(z | x) is small.
4. The decoder's output layer is a ridge regression of the genes' proportions on the last hidden state: one step of
   iteratively reweighted least squares from the means (McCullagh & Nelder 1989, 2.5).
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from atlasvi.engine.model.encoder import Encoder
from atlasvi.engine.model.layers import CountsLayer, Covariates, Layer
from atlasvi.engine.model.vae import VAE
from atlasvi.kernels import log1p_linear, log1p_linear_transposed
from atlasvi.loaders.batches.batch import Batch

SAMPLE_CELLS = 4096
LEAST_UNIT = 0.2  # standard deviation of a gene's log1p: a gene that few cells express is not made as loud as the rest
COMPONENTS, SPARE, ROUNDS = 50, 10, 3  # of the randomised singular value decomposition (Halko et al. 2011)
FIRST_VARIANCE = 0.1  # of q(z | x): far below the 1 that z has over cells, so that the decoder sees what z says
LEAST_STD = 1e-3  # a unit that hardly varies over the sample is scaled by 1 / LEAST_STD at most
SPREAD = 0.1  # standard deviation that the ridge regression expects of the decoder's output weights
GENES_AT_ONCE = 256
FIRST_DROPOUT = -3.0  # logit of a zero inflation of 5%
LOG_THETA = (-3.0, 4.0)


class Sample:
    """Cells, and products with the matrix of their counts that never make it dense."""

    def __init__(self, cells: Batch, dtype: torch.dtype) -> None:
        self.cells, self.dtype, self.device = cells, dtype, cells.counts.device
        n_counts = int(cells.indptr[-1])
        self.genes, self.counts = cells.indices[:n_counts].long(), cells.counts[:n_counts].to(torch.float64)

    def multiply(self, weight: Tensor, raw: bool) -> Tensor:
        """X @ weight [genes, columns], where X is the counts or, unless raw, their log1p: [cells, columns]."""
        cells = self.cells
        return log1p_linear(cells.indptr, cells.indices, cells.counts, weight, raw=raw)

    def multiply_transposed(self, values: Tensor, raw: bool) -> Tensor:
        """X.T @ values [cells, columns]: [genes, columns]."""
        cells = self.cells
        return log1p_linear_transposed(cells.indptr, cells.indices, cells.counts, values, cells.n_genes, raw=raw)

    def shift_genes(self, generator: Generator) -> "Sample":
        """Each gene's values moved round by a number of cells of its own, so that genes are unrelated."""
        cells, n_cells = self.cells, len(self.cells)
        dtype = torch.int32 if n_cells * cells.n_genes < 2**31 else torch.int64  # half the time, if it fits
        rows = torch.arange(n_cells, dtype=dtype, device=self.device).repeat_interleave(cells.indptr.diff().long())
        shifts = torch.randint(n_cells, (cells.n_genes,), generator=generator).to(self.device, dtype)
        rows = rows.add_(shifts[self.genes]).remainder_(n_cells)
        order = torch.argsort(rows * cells.n_genes + self.genes.to(dtype))
        ends = torch.bincount(rows, minlength=n_cells).cumsum(0)
        indptr = torch.cat([ends.new_zeros(1), ends]).to(cells.indptr.dtype)
        counts = cells.counts[: len(order)][order]
        shifted = replace(cells, indptr=indptr, indices=cells.indices[: len(order)][order], counts=counts, memory=None)
        return Sample(shifted, self.dtype)

    def measure_genes(self, raw: bool) -> tuple[Tensor, Tensor]:
        """Each gene's mean over the cells, and its standard deviation, at least LEAST_UNIT: [genes, 1] each."""
        values = self.counts if raw else self.counts.log1p()
        mean = self.sum_genes(values) / len(self.cells)
        variance = self.sum_genes(values.square()) / len(self.cells) - mean.square()
        units = variance.clamp_min(LEAST_UNIT**2).sqrt()
        return mean.to(self.dtype)[:, None], units.to(self.dtype)[:, None]

    def sum_genes(self, values: Tensor) -> Tensor:
        """Sums over cells of one value for each count: float64 [genes]."""
        return torch.zeros(self.cells.n_genes, dtype=torch.float64, device=self.device).index_add_(
            0, self.genes, values
        )


@torch.no_grad()
def start_from_sample(model: VAE, cells: Batch, generator: Generator) -> None:
    """Set the weights of a newly made model from a sample of the cells that it will be trained on.

    cells      on the model's device; some thousands suffice
    generator  on the CPU
    A model of the normal likelihood, and one of cells without counts, keep the weights that they have.
    """
    if model.settings.likelihood.fused is None or not float(cells.library.sum()):
        return
    was_training = model.training
    model.eval()
    sample, covariates = Sample(cells, model.dtype), model._covariates(cells.codes, len(cells))
    scales = cells.codes["size_factor"] if model.settings.use_size_factor else cells.library
    rates = _start_genes(model, sample, scales.double())
    for encoder in (model.encoder, model.library_encoder):
        if encoder is not None:
            _start_encoder(encoder, sample, covariates, generator)
    model.encoder.log_variance.weight.mul_(0.1)
    model.encoder.log_variance.bias.fill_(_inverse(model.settings.var_activation, FIRST_VARIANCE))
    if model.library_encoder is not None:
        logs = torch.log(cells.library[cells.library > 0])
        spread = float(logs.std(correction=0))
        head = model.library_encoder.mean
        head.weight.mul_(spread)
        head.bias.mul_(spread).add_(float(logs.mean()))
        variance = max(spread**2 * FIRST_VARIANCE, 1e-3)
        model.library_encoder.log_variance.weight.mul_(0.1)
        model.library_encoder.log_variance.bias.fill_(_inverse(model.settings.var_activation, variance))
    _start_decoder(model, sample, covariates, rates, scales.to(model.dtype))
    model.train(was_training)


def _inverse(activation: str, value: float) -> float:
    return math.log(value) if activation == "exp" else math.log(math.expm1(value))


def _start_genes(model: VAE, sample: Sample, scales: Tensor) -> Tensor:
    """Set biases of the logits, and theta; returns each gene's mean proportion (or rate of a size factor), [genes].

    theta solves E[x^2] = E[mean] + E[mean^2] (1 + 1 / theta), over the cells of the sample.
    """
    total, decoder = sample.sum_genes(sample.counts), model.decoder
    rates = (total + 0.5) / scales.sum()  # half a count: a gene may have none in the sample
    if not model.settings.use_size_factor:
        rates = rates / rates.sum()
    decoder.logits.bias.copy_(torch.log(torch.expm1(rates)) if model.settings.use_size_factor else torch.log(rates))
    if decoder.dropout is not None:
        decoder.dropout.weight.mul_(0.1)
        decoder.dropout.bias.fill_(FIRST_DROPOUT)
    squares = rates.square() * scales.square().sum()
    excess = (sample.sum_genes(sample.counts.square()) - total) / squares - 1
    log_theta = -torch.log(excess.clamp_min(1e-12)).clamp(*LOG_THETA)
    if model.log_theta is not None:
        model.log_theta.copy_(log_theta.expand_as(model.log_theta))
    if decoder.log_theta is not None:
        decoder.log_theta.weight.mul_(0.1)
        decoder.log_theta.bias.copy_(log_theta)
    return rates.to(model.dtype)


def _start_encoder(encoder: Encoder, sample: Sample, covariates: Covariates, generator: Generator) -> None:
    """Principal components into the first layer; every unit, and the mean of the posterior, standardised."""
    first, raw = encoder.first, not encoder.first.logarithm
    components = find_components(sample, raw, min(COMPONENTS, len(sample.cells) - 1, sample.cells.n_genes - 1))
    if components.shape[1]:
        mixture = torch.randn(components.shape[1], first.weight.shape[1], generator=generator)
        first.weight.copy_(components @ mixture.to(components))
    hidden = _standardise(first, sample.multiply(first.weight, raw), covariates)
    hidden = _standardise_all(encoder.layers, hidden, covariates)
    mean = F.linear(hidden, encoder.mean.weight)
    scale = 1 / mean.std(0, correction=0).clamp_min(LEAST_STD)
    encoder.mean.weight.mul_(scale[:, None])
    encoder.mean.bias.copy_(-(mean * scale).mean(0))


def find_components(sample: Sample, raw: bool, n_components: int) -> Tensor:
    """Principal components of the encoder's input, each divided by its standard deviation: [genes, components].

    A component is kept if its variance is above the largest in a sample of the same genes without relations between
    them (parallel analysis: Horn 1965, Buja & Eyuboglu 1992), and weighed by the share that is above it.
    """
    generator = Generator().manual_seed(0)  # for the start of the decomposition, on which the result hardly depends
    edge = decompose(sample.shift_genes(generator), raw, 1, generator)[0][0]
    variances, weights = decompose(sample, raw, n_components, generator)
    signal = 1 - edge / variances.clamp_min(1e-30)
    kept = signal > 0
    return weights[:, kept] * (signal[kept] / variances[kept]).sqrt()


def decompose(sample: Sample, raw: bool, n_components: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The largest principal components of a sample, whose genes are in units of their standard deviations.

    Returns the variances [components], and the weights that make them of the input: [genes, components].
    """
    n_cells, n_genes = len(sample.cells), sample.cells.n_genes
    mean, units = sample.measure_genes(raw)

    def multiply(weight: Tensor) -> Tensor:
        weight = (weight / units).contiguous()
        return sample.multiply(weight, raw) - mean.T @ weight

    def multiply_transposed(values: Tensor) -> Tensor:
        return (sample.multiply_transposed(values, raw) - mean * values.sum(0)) / units

    start = torch.randn(n_genes, min(n_components + SPARE, n_cells, n_genes), generator=generator).to(mean)
    basis = torch.linalg.qr(multiply(start)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(multiply(torch.linalg.qr(multiply_transposed(basis)).Q)).Q
    axes, singular, _ = torch.linalg.svd(multiply_transposed(basis), full_matrices=False)
    return singular[:n_components].square() / n_cells, axes[:, :n_components] / units


def _standardise(layer: Layer, product: Tensor, covariates: Covariates) -> Tensor:
    """Scale and shift a layer so that its units have mean 0 and variance 1 over cells; returns its output.

    product  of the layer's input and its weight, [cells, units]
    """
    scale = 1 / product.std(0, correction=0).clamp_min(LEAST_STD)
    layer.weight.mul_(scale if isinstance(layer, CountsLayer) else scale[:, None])
    layer.bias.copy_(-(product * scale).mean(0))
    return layer.finish(product * scale, covariates, None)


def _standardise_all(layers: Iterable[nn.Module], hidden: Tensor, covariates: Covariates) -> Tensor:
    for layer in layers:
        assert isinstance(layer, Layer)
        hidden = _standardise(layer, F.linear(hidden, layer.weight), covariates)
    return hidden


def _start_decoder(model: VAE, sample: Sample, covariates: Covariates, rates: Tensor, scales: Tensor) -> None:
    """Standardise the hidden layers, and regress the genes' proportions on the last one."""
    hidden = model.to_latent(model.encode(sample.cells)[0])
    if covariates.numbers is not None:
        hidden = torch.cat([hidden, covariates.numbers], dim=1)
    hidden = _standardise_all(model.decoder.layers, hidden, covariates)
    centre, head, softplus = hidden.mean(0), model.decoder.logits, model.settings.use_size_factor
    hidden = hidden - centre
    slopes = torch.sigmoid(head.bias) if softplus else rates  # derivative of a gene's proportion by its logit
    used = scales > 0
    weighted = torch.where(used, 1 / scales.clamp_min(1e-6), 0)[:, None] * hidden
    # H^T (x / scale - rate) / slope; the rates drop out, as the hidden state has mean 0
    response = sample.multiply_transposed(weighted, raw=True) / slopes[:, None]
    means = rates * scales.mean()
    theta = _theta_of_genes(model)
    ridge = (1 / means + (0 if theta is None else 1 / theta)) / SPREAD**2
    if softplus:
        ridge = ridge * (rates / slopes).square()
    values, axes = torch.linalg.eigh(hidden.T @ hidden)
    weight = (response @ axes) / (values.clamp_min(0) + ridge[:, None]) @ axes.T
    head.weight.copy_(weight)
    head.bias.sub_(weight @ centre)
    if not softplus:  # exp is convex: keep the mean proportion of each gene
        raised = [torch.logsumexp(part @ hidden.T, 1) for part in weight.split(GENES_AT_ONCE)]
        head.bias.sub_(torch.cat(raised) - math.log(len(hidden)))


def _theta_of_genes(model: VAE) -> Tensor | None:
    if model.decoder.log_theta is not None:
        return model.decoder.log_theta.bias.exp()
    return None if model.log_theta is None else model.log_theta.reshape(-1, model.settings.n_genes)[0].exp()
