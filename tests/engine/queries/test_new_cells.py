from contextlib import closing
from pathlib import Path

import anndata
import numpy as np
import psutil
import pytest
import torch
from scipy import sparse

from atlasvi.engine.model.layers import Layer
from atlasvi.engine.queries.new_cells import open_new_cells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import AtlasviWarning, ColumnError, GeneError
from tests.engine.api.small_models import make_adata, make_model


def encode(adata: anndata.AnnData, model, **options) -> np.ndarray:
    new = open_new_cells(adata, model.run, **options)
    return np.concatenate([qzm for qzm, _ in new.cells.read_latents(new.model, None)])


@pytest.fixture(scope="module")
def model():
    return make_model(make_adata(60), epochs=1, encode_covariates=False)


def test_cells_of_unknown_batches_are_encoded_if_the_encoder_does_not_use_batches(model):
    known, unknown = make_adata(20, seed=3), make_adata(20, seed=3, batches="xy")
    np.testing.assert_array_equal(encode(unknown, model), encode(known, model))
    np.testing.assert_allclose(encode(known, model), model.get_latent_representation(known), atol=1e-6)
    del unknown.obs["batch"]
    np.testing.assert_array_equal(encode(unknown, model), encode(known, model))


@pytest.mark.parametrize("representation", ["one-hot", "embedding"])
def test_an_encoder_that_uses_batches_encodes_unknown_ones_as_their_average(representation: str):
    model = make_model(make_adata(60), epochs=1, encode_covariates=True, batch_representation=representation)
    known, unknown = make_adata(20, seed=3), make_adata(20, seed=3, batches="x")
    with torch.no_grad():
        if representation == "embedding":
            columns = [model.module.batch_embedding]
        else:
            columns = [layer.batch for layer in model.module.encoder.modules() if isinstance(layer, Layer)]
        for column in columns:
            column[:] = column.mean(0) + torch.tensor([[0.5], [-0.5]])
    with pytest.warns(AtlasviWarning, match=r"does not know batch = 'x': .* average"):
        latents = encode(unknown, model)
    assert np.abs(latents - encode(known, model)).max() > 1e-3
    with torch.no_grad():
        for column in columns:
            column[:] = column.mean(0)
    np.testing.assert_allclose(latents, encode(known, model), atol=1e-5)


def test_a_column_that_the_encoder_uses_must_be_there():
    model, adata = make_model(make_adata(60), epochs=1, encode_covariates=True), make_adata(20, seed=3)
    del adata.obs["batch"]
    with pytest.raises(ColumnError, match="'batch'"):
        encode(adata, model)


def test_missing_genes_are_refused_or_taken_as_zeros_with_their_share(model):
    full = make_adata(20, seed=3)
    part, zeroed = full[:, :30].copy(), full.copy()
    zeroed.X = sparse.csr_matrix(np.where(np.arange(40) < 30, full.X.toarray(), 0))
    with pytest.raises(GeneError, match=r"10 of the 40 genes .*'g30'.*--missing-genes zeros"):
        encode(part, model)
    with pytest.warns(AtlasviWarning, match=r"75.0% of the 40 genes .* 10 others .* zero"):
        latents = encode(part, model, missing_genes="zeros")
    np.testing.assert_array_equal(latents, encode(zeroed, model))


@pytest.mark.parametrize("missing_genes", ["refuse", "zeros"])
def test_genes_of_another_species_are_refused(model, missing_genes: str):
    mouse = make_adata(20)
    mouse.var_names = [f"ENSMUSG{k}" for k in range(40)]
    with pytest.raises(GeneError, match="none of the 40 genes of the model"):
        encode(mouse, model, missing_genes=missing_genes)


def test_what_was_opened_for_the_cells_is_closed_and_what_was_open_is_not(model, tmp_path: Path):
    def is_open() -> bool:
        return str(tmp_path / "new.h5ad") in [file.path for file in psutil.Process().open_files()]

    make_adata(20, seed=3).write_h5ad(tmp_path / "new.h5ad")
    new = open_new_cells(tmp_path / "new.h5ad", model.run)
    assert is_open()
    new.close()
    assert not is_open()
    with closing(open_cells(tmp_path / "new.h5ad")) as cells:
        open_new_cells(cells, model.run).close()
        assert is_open()
