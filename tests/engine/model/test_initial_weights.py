import numpy as np
import pytest
import torch
from torch import Generator

from atlasvi.engine.model.initial_weights import Sample, find_components, start_from_sample
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.loaders.batches.batch import Batch

N_CELLS, N_GENES, N_TYPES = 600, 400, 3


def make_sample(depth: float = 4_000.0, seed: int = 0) -> tuple[Batch, np.ndarray]:
    """Cells of three types that differ in a third of the genes, and the type of each."""
    draw = np.random.default_rng(seed)
    proportions = draw.dirichlet(np.full(N_GENES, 0.3)) * np.exp(draw.normal(0, 0.8, (N_TYPES, N_GENES)))
    types = draw.integers(N_TYPES, size=N_CELLS)
    library = depth * np.exp(draw.normal(0, 0.4, N_CELLS))
    means = library[:, None] * (proportions / proportions.sum(1, keepdims=True))[types]
    counts = draw.poisson(means * draw.gamma(5.0, 1 / 5.0, means.shape))
    counts[0] = 0
    codes = {
        "batch": torch.from_numpy(draw.integers(2, size=N_CELLS)),
        "size_factor": torch.from_numpy((library / depth).astype(np.float32)),
        "labels": torch.from_numpy(types),
    }
    return make_batch(counts, codes), types


def make_batch(counts: np.ndarray, codes: dict[str, torch.Tensor] | None = None) -> Batch:
    rows, genes = counts.nonzero()
    return Batch(
        torch.from_numpy(np.r_[0, np.bincount(rows, minlength=len(counts)).cumsum()].astype(np.int32)),
        torch.from_numpy(genes.astype(np.int32)),
        torch.from_numpy(counts[rows, genes].astype(np.int32)),
        torch.from_numpy(counts.sum(1).astype(np.float32)),
        torch.arange(len(counts)),
        counts.shape[1],
        codes or {},
    )


def make_model(**options: object) -> VAE:
    sizes = {"n_batches": 2, "n_hidden": 32, "n_latent": 6, **options}
    return VAE(ModelSettings(n_genes=N_GENES, **sizes), Generator().manual_seed(0))


def measure_loss(model: VAE, cells: Batch) -> float:
    """Mean reconstruction loss at the mean of the posterior."""
    model.eval()
    with torch.no_grad():
        z = model.to_latent(model.encode(cells)[0])
        library = None if model.library_encoder is None else model.encode_library(cells)[0].exp()
        return float(model.reconstruction(cells, z, library).mean())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gene_likelihood": "zinb", "dispersion": "gene-batch"},
        pytest.param(
            {"gene_likelihood": "poisson", "use_batch_norm": "both", "use_layer_norm": "none"}, marks=pytest.mark.slow
        ),
        {"dispersion": "gene-cell", "latent_distribution": "ln"},
        pytest.param({"use_size_factor": True, "batch_representation": "embedding"}, marks=pytest.mark.slow),
        {"use_observed_lib_size": False, "var_activation": "softplus", "dispersion": "gene-label", "n_labels": 3},
        pytest.param({"log_variational": False, "encode_covariates": False, "n_layers": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_model_of_any_options_starts_better_than_the_genes_means(options: dict):
    cells, _ = make_sample()
    model = make_model(**options)
    random = measure_loss(model, cells)
    start_from_sample(model, cells, Generator().manual_seed(1))
    start = measure_loss(model, cells)
    with torch.no_grad():
        centre = model.decoder.logits.weight.clone()
        model.decoder.logits.weight.zero_()
        hidden = model.decoder.hide(torch.zeros(1, 6), model._covariates({n: c[:1] for n, c in cells.codes.items()}, 1))
        model.decoder.logits.bias.add_((centre @ hidden.T)[:, 0])
    assert start < measure_loss(model, cells) < random
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_latents_tell_types_apart_before_the_first_step():
    cells, types = make_sample()
    model = make_model(n_hidden=128, n_latent=10).eval()
    start_from_sample(model, cells, Generator().manual_seed(1))
    with torch.no_grad():
        qzm, qzv = (part.double().numpy() for part in model.encode(cells))
    np.testing.assert_allclose(qzm.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(qzm.std(0), 1, atol=1e-3)
    assert 0.05 < np.median(qzv) < 0.2
    features = np.c_[qzm, np.ones(N_CELLS)]
    said = (features @ np.linalg.lstsq(features, np.eye(N_TYPES)[types])[0]).argmax(1)
    assert (said[1:] == types[1:]).mean() > 0.95  # the first cell is empty


def test_components_are_those_of_the_correlations_as_far_as_they_rise_above_noise():
    cells, _ = make_sample()
    logs = np.log1p(cells.to_dense().double().numpy())
    units = np.maximum(logs.std(0), 0.2)
    _, _, axes = np.linalg.svd((logs - logs.mean(0)) / units, full_matrices=False)
    found = find_components(Sample(cells, torch.float64), raw=False, n_components=10).numpy()
    assert found.shape[1] == 3  # two directions between three types, and the library size
    for component, axis in zip((found * units[:, None]).T, axes):
        assert abs(component @ axis) / np.linalg.norm(component) > 0.999
    scores = (logs - logs.mean(0)) @ found
    assert (scores.std(0) <= 1.001).all()


def test_a_gene_of_large_counts_and_no_meaning_hides_no_component():
    quiet, _ = make_sample(depth=300.0)
    counts = quiet.to_dense().numpy().astype(np.int64)
    counts[:, 7] = np.exp(np.random.default_rng(1).normal(5, 4, N_CELLS)).clip(max=1e6)
    assert np.log1p(counts[:, 7]).var() > np.linalg.eigvalsh(np.cov(np.log1p(quiet.to_dense().numpy()).T))[-2]
    found = find_components(Sample(make_batch(counts), torch.float64), raw=False, n_components=10)
    assert found.shape[1] == 3


def test_noise_alone_has_no_components_and_the_weights_stay_random():
    draw = np.random.default_rng(0)
    counts = draw.poisson(2.0, (400, 300))
    cells = make_batch(counts)
    assert find_components(Sample(cells, torch.float64), raw=False, n_components=10).shape[1] <= 2  # borderline ones
    model = VAE(ModelSettings(n_genes=300, n_hidden=16), Generator().manual_seed(0))
    start_from_sample(model, cells, Generator().manual_seed(1))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_one_cell_or_none_with_counts_leaves_a_model_that_can_be_trained():
    cells, _ = make_sample()
    n = int(cells.indptr[2])
    two = Batch(
        cells.indptr[:3],
        cells.indices[:n],
        cells.counts[:n],
        cells.library[:2],
        cells.rows[:2],
        N_GENES,
        {"batch": cells.codes["batch"][:2]},
    )
    one = Batch(
        two.indptr[1:] - two.indptr[1],
        two.indices,
        two.counts,
        two.library[1:],
        two.rows[1:],
        N_GENES,
        {"batch": two.codes["batch"][1:]},
    )
    empty = Batch(
        two.indptr[:2],
        two.indices[:0],
        two.counts[:0],
        two.library[:1],
        two.rows[:1],
        N_GENES,
        {"batch": two.codes["batch"][:1]},
    )
    for batch in (two, one, empty):
        model = make_model()
        start_from_sample(model, batch, Generator().manual_seed(1))
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        assert np.isfinite(measure_loss(model, batch))


def test_the_same_sample_gives_the_same_weights():
    cells, _ = make_sample()
    states = []
    for _ in range(2):
        model = make_model()
        start_from_sample(model, cells, Generator().manual_seed(1))
        states.append(model.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())
