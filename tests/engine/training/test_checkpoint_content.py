import math

import pytest
import torch

from atlasvi.engine.model.loss_terms import TERMS, LossTerms
from atlasvi.engine.training.checkpoint_content import Best, RunState, check_state

LINE = {"kind": "epoch", "epoch": 0, "n_cells": 9, "validation_elbo": float("nan")}
STATE = {
    "weights": {"a": torch.zeros(2)},
    "epoch": 1,
    "step": 3,
    "batch": 0,
    "sums": [0.0, 1.0, 2.0],
    "seconds": 1.5,
    "history": [LINE],
    "best": {"elbo": float("-inf"), "epoch": -1, "weights": {}},
    "stopped_early": False,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", -1),
        ("step", 1.0),
        ("batch", True),
        ("batch", 2**60),
        ("seconds", [LINE]),
        ("sums", [1.0]),
        ("history", 1.2),
        ("history", ["x"]),
        ("history", [{"kind": "epoch"}]),
        ("history", [{**LINE, "validation_elbo": "x"}]),
        ("best", {"elbo": "x", "epoch": 1, "weights": {}}),
        ("best", {"elbo": 1.0, "epoch": 1, "weights": {"a": torch.zeros(3)}}),
        ("stopped_early", None),
    ],
)
def test_a_state_of_other_content_than_training_writes_is_refused(name: str, value: object):
    check_state(STATE)
    with pytest.raises(ValueError, match=name if name != "best" else "best"):
        check_state({**STATE, name: value})


def test_a_state_comes_back_as_it_was_saved():
    terms = LossTerms(3.0, 30.0, 6.0, 1.5)
    best = Best(-7.0, 1, {"a": torch.ones(2)})
    state = RunState(epoch=2, step=9, batch=3, terms=terms, history=[LINE], best=best, seconds=4.5)
    saved = {"weights": {"a": torch.zeros(2)}, **state.to_saved()}
    again = RunState.from_saved(saved)
    assert again.to_saved() == state.to_saved()
    assert again.terms == terms


def test_a_state_of_an_older_version_holds_three_sums_and_what_they_do_not_tell_is_not_known():
    older = {**STATE, "sums": [2.0, 30.0, 6.0], "epoch_seconds": 1.0}
    terms = RunState.from_saved(older).terms
    assert terms.means() == {"reconstruction_loss": 15.0, "kl": 3.0, "elbo": -18.0}
    assert math.isnan(terms.kl_library)
    assert terms.loss(0.5) is None
    assert RunState.from_saved({**older, **RunState.from_saved(older).to_saved()}).terms.loss(0.5) is None


def test_what_an_older_version_kept_too_must_be_there():
    with pytest.raises(KeyError, match="epoch_seconds"):
        RunState.from_saved(STATE)


def test_a_run_trained_further_counts_on_but_has_no_best_weights_yet():
    begun = RunState.beginning_from({"weights": {}, "epoch": 3, "step": 12, "history": [LINE]})
    assert (begun.epoch, begun.first_epoch, begun.step, begun.first_step) == (3, 3, 12, 12)
    assert (begun.history, begun.best.epoch, begun.terms.n_cells) == ([LINE], -1, 0)
    assert RunState.from_saved({"weights": {}, **begun.to_saved()}).first_step == 12


def test_sums_of_other_names_are_refused():
    with pytest.raises(ValueError, match="terms"):
        check_state({**STATE, "terms": {TERMS[0]: "many"}})
