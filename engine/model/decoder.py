"""The decoder: z and covariates -> the logits of each gene's proportion, and other parameters of the likelihood."""

import torch
from torch import Tensor, nn

from atlasvi.engine.model.encoder import BlankLinear
from atlasvi.engine.model.layers import Covariates, Layer, LayerShape
from atlasvi.engine.model.model_options import ModelSettings


class Decoder(nn.Module):
    """Hidden layers, and a Linear for each parameter of the likelihood that depends on the cell."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        shape = LayerShape.of_part(settings, "decoder")
        hidden, genes = settings.n_hidden, settings.n_genes
        self.layers = nn.ModuleList(
            Layer(hidden if k else settings.n_latent + settings.n_numbers, hidden, shape, first=k == 0)
            for k in range(settings.n_layers)
        )
        self.logits = BlankLinear(hidden, genes)
        self.log_theta = BlankLinear(hidden, genes) if settings.decodes_theta else None
        self.dropout = BlankLinear(hidden, genes) if settings.likelihood.has_dropout else None

    def hide(self, z: Tensor, covariates: Covariates) -> Tensor:
        """The last hidden state, float32 [..., cells, hidden], for z [..., cells, latent]."""
        hidden = z
        if covariates.numbers is not None:
            hidden = torch.cat([z, covariates.numbers.expand(*z.shape[:-1], -1)], dim=-1)
        for layer in self.layers:
            hidden = layer(hidden, covariates, None)
        return hidden
