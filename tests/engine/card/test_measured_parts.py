import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.card.cell_statistics import cell_statistics
from atlasvi.engine.card.measured_parts import PassOptions, hash_counts, measure_cells
from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.queries.predictive_counts import predictive_counts
from tests.engine.card.counts import make_counts

COUNTS = make_counts(60, 12)[1:]
SPLIT = np.random.default_rng(0).integers(0, 2, 59).astype(np.uint8)
LABELS = np.arange(59) % 3 - 1


pytestmark = pytest.mark.filterwarnings("ignore:the model is not trained", "ignore:.*cells have no counts")


@pytest.fixture(scope="module")
def model() -> SCVI:
    obs = pd.DataFrame(index=[f"cell{k}" for k in range(59)])
    adata = anndata.AnnData(COUNTS, obs, pd.DataFrame(index=[f"g{k}" for k in range(12)]))
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=8, n_latent=3, use_observed_lib_size=False)


def make_options(batch_size: int = 11) -> PassOptions:
    names = ("training", "validation", "test", "cells")
    return PassOptions(names, SPLIT, LABELS, 2, np.arange(0, 59, 4), 4, 3, 2, 1, batch_size)


def draw(model: SCVI) -> list[sparse.csr_matrix]:
    drawn = predictive_counts(model.module, model.ask(), 4, indices=np.arange(59), n_draws=3).toarray()
    return [sparse.csr_matrix(drawn.reshape(59, 12, 3)[:, :, k]) for k in range(3)]


@pytest.mark.parametrize("batch_size", [11, 1024])
def test_one_pass_gives_the_sums_of_counts_and_draws_in_memory(model: SCVI, batch_size: int):
    values = []
    options = make_options(batch_size)
    found = measure_cells(model.module, model.ask(), np.arange(59), options, lambda rows, each: values.append(each))
    draws = draw(model)
    assert set(found.parts) == {"training", "validation"}
    for name, code in (("training", 0), ("validation", 1)):
        rows = np.flatnonzero(code == SPLIT)
        expected = PartStatistics(12, 3, 2, n_tested=2)
        expected.add(COUNTS[rows], [each[rows] for each in draws], LABELS[rows])
        ours = found.parts[name].to_arrays()
        for key, sums in expected.to_arrays().items():
            if key != "losses":
                np.testing.assert_allclose(ours[key], sums, rtol=1e-9)
    kept = np.concatenate(values, axis=2)
    for source, counts in enumerate((COUNTS, *draws)):
        np.testing.assert_array_equal(kept[source], np.stack(cell_statistics(counts)))
    np.testing.assert_array_equal(np.concatenate(found.rows), np.arange(0, 59, 4))
    for source, counts in enumerate((COUNTS, draws[0])):
        sampled = sparse.vstack([each[source] for each in found.counts])
        np.testing.assert_array_equal(sampled.toarray(), counts[::4].toarray())
    assert found.hashes[0] == hash_counts(COUNTS)


def test_losses_are_those_of_the_model_at_each_draw_of_its_latents(model: SCVI):
    found = measure_cells(model.module, model.ask(), np.arange(59), make_options(), lambda *_: None)
    (posterior,) = model.ask().read_posteriors(model.module, None, 64)
    expected = []
    with torch.inference_mode():
        for k in range(3):
            z, library = posterior.draw_numbered(model.module, 4, torch.arange(59), k)
            expected.append(float(model.module.reconstruction(posterior.counts, z, library).double().sum()))
    np.testing.assert_allclose(sum(part.losses for part in found.parts.values())[1:], expected, rtol=1e-5)


def test_the_hash_of_counts_depends_on_counts_alone_not_on_their_order():
    shuffled = np.random.default_rng(1).permutation(59)
    assert hash_counts(COUNTS[shuffled]) == hash_counts(COUNTS)
    assert (hash_counts(COUNTS[:20]) + hash_counts(COUNTS[20:])) % 2**64 == hash_counts(COUNTS)
    changed, moved = COUNTS.tolil(), COUNTS[:, ::-1].tocsr()
    changed[7, 3] += 1
    assert hash_counts(changed.tocsr()) != hash_counts(COUNTS)
    assert hash_counts(moved) != hash_counts(COUNTS)
