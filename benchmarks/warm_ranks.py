"""Imported by the process that ranks are forked from: what each of them would else import and compile by itself."""

import contextlib

import numpy as np
import pandas as pd
import torch

import atlasvi.engine.commands
import atlasvi.engine.posterior
import atlasvi.engine.training  # noqa: F401
from atlasvi.engine.model import SCVI, ModelSettings
from atlasvi.loaders.batch import Batch

with contextlib.suppress(ImportError):
    import torch.utils.tensorboard
torch.set_num_threads(1)  # no thread may run when the process is forked
pd.Series(["a"]).astype("category")
for rows in (2, 0):
    settings = ModelSettings(n_genes=30, n_batches=2, n_hidden=16, n_latent=4, n_layers=2)
    model = SCVI(settings, torch.Generator().manual_seed(0))
    torch.optim.Adam(model.parameters())  # imports torch._dynamo, which takes seconds
    model(
        Batch(
            indptr=torch.arange(rows + 1, dtype=torch.int32),
            indices=torch.from_numpy(np.arange(rows, dtype=np.uint16)),
            counts=torch.ones(rows, dtype=torch.uint8),
            library=torch.ones(rows),
            rows=torch.arange(rows),
            n_genes=30,
            codes={"batch": torch.zeros(rows, dtype=torch.int64)},
        ),
        torch.Generator().manual_seed(0),
    )
