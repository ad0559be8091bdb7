"""Write what scvi-tools computes for each case of `cases` to losses.npz. Run it where scvi-tools 1.5.1 is installed.

For each case: reconstruction, kl, kl_library [cells], in evaluation mode; in training mode without dropout the loss
with KL weight 0.7 (batch norm by the minibatch), and the norm of each parameter's gradient, in the order of its names.
"""

import logging
import warnings
import zlib
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from cases import make_cases, make_cells, make_weights

warnings.filterwarnings("ignore")
scvi.settings.verbosity = logging.ERROR
OBS = ("batch", "labels", "donor", "same", "sex", "age", "score", "factor")


def main() -> None:
    cells = make_cells()
    golden = {}
    for case, (setup, options) in make_cases().items():
        obs = pd.DataFrame({name: cells[name] for name in OBS}, index=[f"c{k}" for k in range(len(cells["counts"]))])
        data = anndata.AnnData(cells["counts"].copy(), obs)
        scvi.model.SCVI.setup_anndata(data, **setup)
        model = scvi.model.SCVI(data, n_hidden=8, n_latent=4, dropout_rate=0.0, **options)
        module = model.module
        state = {
            name: torch.from_numpy(make_weights(name, tuple(tensor.shape))).to(tensor.dtype)
            for name, tensor in module.state_dict().items()
        }
        module.load_state_dict(state)
        (tensors,) = list(model._make_data_loader(data, batch_size=len(data), shuffle=False))

        def run(weight: float, module=module, tensors=tensors):
            inference = module.inference(**module._get_inference_input(tensors))
            qz, noise = inference["qz"], torch.from_numpy(cells["z_noise"])
            inference["z"] = module.z_encoder.z_transformation(qz.loc + qz.scale * noise)
            if inference["ql"] is not None:
                ql = inference["ql"]
                inference["library"] = ql.loc + ql.scale * torch.from_numpy(cells["library_noise"])[:, None]
            generative = module.generative(**module._get_generative_input(tensors, inference))
            return module.loss(tensors, inference, generative, kl_weight=weight)

        module.eval()
        with torch.no_grad():
            out = run(1.0)
        terms = [out.reconstruction_loss["reconstruction_loss"], *(out.kl_local[f"kl_divergence_{k}"] for k in "zl")]
        module.train()
        loss = run(0.7).loss
        loss.backward()
        names = sorted(dict(module.named_parameters()))
        parameters = dict(module.named_parameters())
        norms = [0.0 if parameters[name].grad is None else parameters[name].grad.norm().item() for name in names]
        shapes = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in module.state_dict().items())
        golden[f"{case}/terms"] = torch.stack(terms).numpy()
        golden[f"{case}/loss"] = np.array([loss.item(), *norms], np.float32)
        golden[f"{case}/shapes"] = np.array(zlib.crc32("\n".join(shapes).encode()))
    np.savez_compressed(Path(__file__).with_name("losses.npz"), **golden)


main()
