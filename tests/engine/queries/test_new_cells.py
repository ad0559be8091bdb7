import anndata
import numpy as np
import pytest
from scipy import sparse

from atlasvi.engine.queries.new_cells import open_new_cells
from atlasvi.loaders.errors import AtlasviWarning, ColumnError, GeneError
from tests.engine.api.small_models import make_adata, make_model


def encode(adata: anndata.AnnData, model, **options) -> np.ndarray:
    cells = open_new_cells(adata, model.run, **options)
    return np.concatenate([qzm for qzm, _ in cells.read_latents(model.run.model.eval(), None)])


@pytest.fixture(scope="module")
def model():
    return make_model(make_adata(60), epochs=1, encode_covariates=False)


def test_cells_of_unknown_batches_are_encoded_if_the_encoder_does_not_use_batches(model):
    known, unknown = make_adata(20, seed=3), make_adata(20, seed=3, batches="xy")
    np.testing.assert_array_equal(encode(unknown, model), encode(known, model))
    np.testing.assert_allclose(encode(known, model), model.get_latent_representation(known), atol=1e-6)
    del unknown.obs["batch"]
    np.testing.assert_array_equal(encode(unknown, model), encode(known, model))


def test_an_encoder_that_uses_batches_needs_known_ones():
    with pytest.raises(ColumnError, match="'x'"):
        encode(make_adata(20, seed=3, batches="xy"), make_model(make_adata(60), epochs=1, encode_covariates=True))


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
