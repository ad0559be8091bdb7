import pytest
import torch

from atlasvi.engine.model.loss_terms import MEASURES, TERMS, CellLosses, LossTerms, sum_terms


def draw_losses(n_cells: int, seed: int = 0) -> CellLosses:
    generator = torch.Generator().manual_seed(seed)
    return CellLosses(*(torch.rand(n_cells, generator=generator) * scale for scale in (300, 20, 2)))


def terms_of(losses: CellLosses) -> LossTerms:
    return LossTerms(*sum_terms(losses, torch.float64).tolist())


@pytest.fixture
def losses() -> CellLosses:
    return draw_losses(11)


def test_terms_of_parts_add_up_to_those_of_the_whole(losses: CellLosses):
    parts = [CellLosses(*(term[rows] for term in losses)) for rows in (slice(4), slice(4, None))]
    whole = terms_of(losses)
    added = sum(map(terms_of, parts), LossTerms())
    assert added.values == pytest.approx(whole.values, rel=1e-12)
    assert whole.n_cells == 11


def test_means_are_nats_a_cell_and_the_elbo_has_every_kl(losses: CellLosses):
    means = terms_of(losses).means()
    assert set(means) == set(MEASURES)
    assert means["reconstruction_loss"] == pytest.approx(losses.reconstruction.double().mean().item())
    assert means["kl"] == pytest.approx((losses.kl + losses.kl_library).double().mean().item())
    assert means["elbo"] == pytest.approx(-means["reconstruction_loss"] - means["kl"])


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_the_loss_of_the_sums_is_the_mean_loss_of_the_cells(losses: CellLosses, kl_weight: float):
    expected = losses.loss(kl_weight, 11).item()
    assert terms_of(losses).loss(kl_weight) == pytest.approx(expected, rel=1e-6)


def test_without_cells_all_means_are_0():
    assert LossTerms().means() == dict.fromkeys(MEASURES, 0.0)


def test_a_loss_that_is_not_finite_shows_in_the_terms(losses: CellLosses):
    assert terms_of(losses).is_finite()
    losses.kl_library[3] = float("nan")
    assert not terms_of(losses).is_finite()


def test_terms_hold_no_graph(losses: CellLosses):
    learned = CellLosses(*(term.clone().requires_grad_() for term in losses))
    assert not sum_terms(learned).requires_grad


def test_the_sums_of_a_minibatch_are_those_of_the_named_terms(losses: CellLosses):
    assert len(sum_terms(losses)) == len(TERMS)
    assert terms_of(losses).kl_library == pytest.approx(losses.kl_library.double().sum().item())
