"""Imported by the process that ranks are forked from: what each of them would else import and compile by itself.

A process that is forked while other threads run gets their locks and half-made state, but not the threads: it can hang
or crash much later. So no library may start a thread here, and this is checked at the end.
"""

import contextlib
import gc
import os
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's and scipy's; read when they are imported
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # of pyarrow, which pandas imports

import numpy as np
import pandas as pd
import torch

import atlasvi.engine.cli.commands
import atlasvi.engine.minified.minify
import atlasvi.engine.training.train  # noqa: F401
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.loaders.batches.batch import Batch

with contextlib.suppress(ImportError):
    import torch.utils.tensorboard
torch.set_num_threads(1)
pd.Series(["a"]).astype("category")
for rows in (2, 0):
    settings = ModelSettings(n_genes=30, n_batches=2, n_hidden=16, n_latent=4, n_layers=2)
    model = VAE(settings, torch.Generator().manual_seed(0))
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

threads = [Path("/proc/self/task", thread, "comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
if len(threads) > 1:
    raise RuntimeError(f"threads run in the process that ranks are forked from: {', '.join(threads)}")
gc.collect()
gc.freeze()  # the collector of a forked process then leaves alone what it shares with the others
