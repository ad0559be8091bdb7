import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasvi.engine.training.schedule import (
    costs,
    epochs_since_best,
    name_metric,
    rate_on_plateau,
    scale_rate,
    weigh_kl,
)


def test_the_kl_weight_rises_by_epochs_or_by_steps():
    assert [weigh_kl(e, 0, 4, None) for e in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [weigh_kl(0, s, None, 2, 0.1, 0.5) for s in range(4)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert weigh_kl(1, 500, 2, 10) == 0.5  # epochs win over steps
    assert weigh_kl(0, 0, 0, None, 0.0, 0.7) == weigh_kl(0, 0, None, None, 0.0, 0.7) == 0.7


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 8).map(float), min_size=1, max_size=40),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.0, 3e-4]),
)
def test_the_rate_on_a_plateau_is_torchs(values: list[float], patience: int, threshold: float, least: float):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.6, patience=patience, threshold=threshold, threshold_mode="abs", min_lr=least
    )
    for n in range(1, len(values) + 1):
        plateau.step(values[n - 1])
        expected = optimizer.param_groups[0]["lr"]
        assert rate_on_plateau(values[:n], 1e-3, 0.6, patience, threshold, least) == pytest.approx(expected, rel=1e-12)


def test_the_rate_rises_stays_and_falls():
    assert [scale_rate(step, 10, 0.0, 0.0) for step in (0, 5, 9)] == [1, 1, 1]
    rates = [scale_rate(step, 20, 0.1, 0.25) for step in range(20)]
    assert rates[:3] == [0.5, 1, 1]
    assert rates[14:] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2])
    assert scale_rate(25, 20, 0.1, 0.25) == 0
    assert [scale_rate(0, 1, 0.05, 0.3)] == [1]  # a run of one step makes it


def test_epochs_are_counted_from_the_last_that_was_better():
    assert epochs_since_best([3.0, 2.0, 2.5, 2.0]) == 2
    assert epochs_since_best([3.0, 2.9, 2.8], min_delta=0.5) == 2
    assert epochs_since_best([3.0]) == epochs_since_best([]) == 0


def test_metrics_go_by_our_names_and_by_those_of_scvi_tools():
    assert name_metric("validation_elbo") == name_metric("elbo_validation") == "validation_elbo"
    assert name_metric("kl_local_train") == "train_kl"
    with pytest.raises(ValueError, match=r"no metric 'loss'; there are: train_reconstruction_loss"):
        name_metric("loss")


def test_less_is_better_whatever_the_metric():
    history = [{"train_elbo": -3.0, "train_kl": 2.0}, {"train_elbo": -2.0, "train_kl": 1.0}]
    assert costs(history, "train_elbo") == [3, 2]
    assert costs(history, "train_kl") == [2, 1]
    assert costs(history, "validation_kl") == []
