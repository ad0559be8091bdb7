import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atlasvi.engine.model.layers import Covariates
from atlasvi.engine.model.vae import VAE, ModelSettings, kl_of_normals, model_from_weights
from atlasvi.kernels import nb_log_prob
from atlasvi.loaders.batches.batch import Batch

SETTINGS = ModelSettings(n_genes=40, n_batches=3, n_hidden=16, n_latent=5, n_layers=3)


def make_batch(n_cells: int = 12, n_genes: int = 40, n_batches: int = 3, seed: int = 0) -> tuple[Batch, Tensor]:
    """A minibatch whose second cell is empty, and its counts densely."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(1, 90, (n_cells, n_genes), generator=generator)
    dense *= torch.rand(n_cells, n_genes, generator=generator) < 0.3
    dense[1] = 0
    rows, genes = dense.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=n_cells).cumsum(0)])
    codes = {"batch": torch.randint(n_batches, (n_cells,), generator=generator)} if n_batches > 1 else {}
    batch = Batch(
        indptr.int(),
        genes.to(torch.uint16),
        dense[rows, genes].to(torch.uint8),
        dense.sum(1).float(),
        torch.arange(n_cells),
        n_genes,
        codes,
    )
    return batch, dense.double()


def make_model(settings: ModelSettings = SETTINGS, seed: int = 0) -> VAE:
    return VAE(settings, torch.Generator().manual_seed(seed)).eval()


def layer(hidden: Tensor, weight: Tensor, bias: Tensor, columns: Tensor | None, one_hot: Tensor) -> Tensor:
    """A layer as scvi-tools writes it: one-hot covariates concatenated to the input, then Linear, LayerNorm, ReLU."""
    if columns is not None:
        hidden, weight = torch.cat([hidden, one_hot], 1), torch.cat([weight, columns.T], 1)
    return F.relu(F.layer_norm(F.linear(hidden, weight, bias), weight.shape[:1]))


def plain_losses(model: VAE, dense: Tensor, codes: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL of each cell, written densely and plainly in the model's precision."""
    one_hot = F.one_hot(codes, model.settings.n_batches).to(dense) if codes is not None else torch.empty(0)
    hidden = torch.log1p(dense)
    first = model.encoder.first
    hidden = layer(hidden, first.weight.T, first.bias, first.batch, one_hot)
    for part in model.encoder.layers:
        hidden = layer(hidden, part.weight, part.bias, part.batch, one_hot)
    qzm, qzv = model.encoder.mean(hidden), model.encoder.log_variance(hidden).exp() + 1e-4
    hidden = qzm + qzv.sqrt() * noise
    for part in model.decoder.layers:
        hidden = layer(hidden, part.weight, part.bias, part.batch, one_hot)
    mean = torch.softmax(model.decoder.logits(hidden), 1) * dense.sum(1, keepdim=True)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(qzm, qzv.sqrt()), normal(0.0, 1.0)).sum(1)
    return -nb_log_prob(dense, mean, model.log_theta.exp()).sum(1), kl


@pytest.mark.parametrize("n_batches", [1, 3])
def test_losses_and_gradients_are_those_of_scvi_written_plainly(n_batches: int):
    settings = SETTINGS.model_copy(update={"n_batches": n_batches})
    batch, dense = make_batch(n_batches=n_batches)
    model, plain = make_model(settings), make_model(settings).double()
    noise = torch.empty(len(batch), settings.n_latent).normal_(generator=torch.Generator().manual_seed(9))
    got = model(batch, torch.Generator().manual_seed(9))[:2]
    expected = plain_losses(plain, dense, batch.codes.get("batch"), noise.double())
    for ours, theirs in zip(got, expected):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    sum(part.mean() for part in got).backward()  # type: ignore[union-attr]
    sum(part.mean() for part in expected).backward()  # type: ignore[union-attr]
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad.double() - theirs.grad).norm() <= 1e-5 * theirs.grad.norm() + 1e-8, name


def test_every_parameter_gets_a_gradient():
    """What gets none costs memory and, under DDP, waits for ever."""
    model = make_model().train()
    losses = model(make_batch()[0], torch.Generator().manual_seed(1))
    (losses.reconstruction + losses.kl).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_an_empty_cell_costs_its_kl_alone():
    losses = make_model()(make_batch()[0], torch.Generator().manual_seed(1))
    assert losses.reconstruction[1] == 0
    assert not losses.kl_library.any()
    assert torch.isfinite(losses.reconstruction).all()
    assert torch.isfinite(losses.kl).all()


def test_weights_are_drawn_as_torch_and_scvi_tools_draw_them():
    settings = ModelSettings(n_genes=3000, n_batches=4)
    model = make_model(settings)
    sizes = {  # inputs of each layer, the one-hot batch counted
        "encoder.first": 3004,
        "encoder.layers.0": 132,
        "encoder.mean": 128,
        "decoder.layers.0": 24,
        "decoder.layers.1": 132,
        "decoder.logits": 128,
    }
    for name, n_in in sizes.items():
        for part, values in model.get_submodule(name).named_parameters():
            assert values.abs().max() <= 1 / math.sqrt(n_in), (name, part)
            if values.numel() > 5000:
                assert values.std().item() * math.sqrt(3 * n_in) == pytest.approx(1, abs=0.02), (name, part)
    assert model.log_theta.std().item() == pytest.approx(1, abs=0.05)
    assert model.log_theta.mean().item() == pytest.approx(0, abs=0.06)


def test_a_model_is_a_function_of_its_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    first.train()(make_batch()[0], torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters()))
    assert all(torch.equal(one, same) for one, same, _ in pairs)
    assert not any(torch.equal(one, different) for one, _, different in pairs)


def test_dropout_is_in_the_encoder_in_training_alone():
    batch, _ = make_batch()
    model = make_model(SETTINGS.model_copy(update={"dropout_rate": 0.5}))
    still, _ = model.encode(batch)
    assert torch.equal(model.encode(batch)[0], still)
    model.train()
    draws = [model.encode(batch, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    z, codes = torch.ones(3, 5), {"batch": torch.zeros(3, dtype=torch.int64)}
    assert torch.equal(model.decode(z, codes).proportions, model.eval().decode(z, codes).proportions)


def test_dropout_keeps_the_mean():
    model = make_model(ModelSettings(n_genes=40, dropout_rate=0.3))
    part = model.encoder.layers[0].train()
    hidden = torch.rand(4000, 128, generator=torch.Generator().manual_seed(0))
    kept = part.finish(hidden, Covariates(), torch.Generator().manual_seed(1))
    expected = part.eval().finish(hidden, Covariates(), None)
    assert kept.mean().item() == pytest.approx(expected.mean().item(), rel=0.01)
    assert (kept == 0).float().mean() > 0.3 * (expected > 0).float().mean()


def test_decoding_gives_proportions_that_depend_on_the_batch():
    model, z = make_model(), torch.zeros(2, 5)
    proportions = model.decode(z, {"batch": torch.tensor([0, 2])}).proportions
    assert torch.allclose(proportions.sum(1), torch.ones(2))
    assert not torch.allclose(proportions[0], proportions[1])


def test_kl_is_that_of_two_normals():
    qzm, qzv = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(qzm, qzv.sqrt()), normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_of_normals(qzm, qzv).sum(1), expected, atol=1e-5)


def test_weights_of_another_shape_are_refused_unread():
    class Unreadable:
        """An array that says it is large."""

        shape = (2**40, 16)

        def __array__(self, *_args: object, **_options: object) -> None:
            raise AssertionError("it was read")

    weights = {**make_model().state_dict(), "encoder.first.batch": Unreadable()}
    with pytest.raises(ValueError, match=r"'encoder.first.batch' has shape \(1099511627776, 16\) instead of \(3, 16\)"):
        model_from_weights(SETTINGS.model_dump(), weights)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(value: float):
    weights = make_model().state_dict()
    weights["log_theta"] = weights["log_theta"].clone().index_fill(0, torch.tensor([3]), value)
    with pytest.raises(ValueError, match="weight 'log_theta' holds NaN or infinite values"):
        model_from_weights(SETTINGS.model_dump(), weights)


@pytest.mark.parametrize("use_size_factor", [False, True])
def test_some_genes_are_decoded_as_all_of_them_are(use_size_factor: bool):
    model = make_model(SETTINGS.model_copy(update={"use_size_factor": use_size_factor}))
    z, codes = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), {"batch": torch.arange(9) % 3}
    with torch.inference_mode():
        for batch in (None, 2):
            whole = model.proportions(z, codes, transform_batch=batch)
            hidden = model.hide(z, codes, transform_batch=batch)
            for genes in (slice(3, 17), torch.tensor([5, 0, 39])):
                found = model.some_proportions(hidden, model.normaliser(hidden), genes)
                torch.testing.assert_close(found.T, whole[:, genes])
