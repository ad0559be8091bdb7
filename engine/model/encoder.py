"""The encoder: sparse counts and covariates -> mean and variance of a normal distribution."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlasvi.engine.model.layers import CountsLayer, Covariates, Layer, LayerShape
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.noise import Noise
from atlasvi.kernels import GeneOrder
from atlasvi.loaders.batches.batch import Batch


class BlankLinear(nn.Linear):
    """A Linear without initial weights, because torch's own initialisation would draw from the global generator.

    `torch.nn.utils.skip_init` makes the same, but imports sympy on its way, which takes 0.3 s.
    """

    def reset_parameters(self) -> None:
        """Leave the weights as they are in memory: they are set afterwards."""


class Encoder(nn.Module):
    """q(z | x, covariates), or q(log library | x, covariates) with one output."""

    def __init__(self, settings: ModelSettings, n_layers: int, n_out: int) -> None:
        super().__init__()
        shape = LayerShape.of_part(settings, "encoder")
        hidden, numbers = settings.n_hidden, settings.n_numbers if settings.encode_covariates else 0
        self.first = CountsLayer(settings.n_genes, numbers, hidden, shape, settings.log_variational)
        self.layers = nn.ModuleList(Layer(hidden, hidden, shape) for _ in range(n_layers - 1))
        self.mean, self.log_variance = BlankLinear(hidden, n_out), BlankLinear(hidden, n_out)
        self._make_positive: Callable[[Tensor], Tensor] = torch.exp if settings.var_activation == "exp" else F.softplus

    def forward(
        self, cells: Batch, covariates: Covariates, generator: Noise | None, order: GeneOrder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance, float32 [cells, out]; the variance is above 1e-4. order: see `kernels.order_by_gene`."""
        hidden = self.first.encode(cells, covariates, generator, order)
        for layer in self.layers:
            hidden = layer(hidden, covariates, generator)
        return self.mean(hidden), self._make_positive(self.log_variance(hidden)) + 1e-4
