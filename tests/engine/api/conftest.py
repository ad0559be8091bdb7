import anndata
import pytest

from atlasvi.engine import SCVI
from tests.engine.api.small_models import make_adata, make_model


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="module")
def model(adata: anndata.AnnData) -> SCVI:
    return make_model(adata)
