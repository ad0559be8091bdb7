import math
from pathlib import Path

import pytest
import torch

from atlasvi.engine.model.loss_terms import LossTerms
from atlasvi.engine.training.checkpoint_files import write_checkpoint
from atlasvi.engine.training.training_error import explain_failure, find_infinite_loss, find_infinite_weights


@pytest.mark.parametrize("name", ["reconstruction", "kl", "kl_library"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_with_any_term_that_is_not_finite_is_found(name: str, value: float):
    terms = {"n_cells": 2.0, "reconstruction": 30.0, "kl": 6.0, "kl_library": 1.0}
    assert find_infinite_loss(LossTerms(**terms), 0.5) is None
    assert "not finite" in find_infinite_loss(LossTerms(**{**terms, name: value}), 0.5)


def test_the_terms_are_said_a_cell():
    said = find_infinite_loss(LossTerms(2.0, math.inf, 6.0, 0.0), 0.5)
    assert said == "the loss is not finite (reconstruction inf, KL 3 nats per cell, KL weight 0.5)"


def test_weights_that_are_not_finite_are_found():
    layer = torch.nn.Linear(2, 2)
    assert find_infinite_weights(layer) is None
    layer.bias.data[1] = math.nan
    assert "NaN" in find_infinite_weights(layer)


def test_the_error_says_where_and_which_checkpoint_is_good(tmp_path: Path):
    error = explain_failure(tmp_path, 0, 7, "the loss is not finite")
    assert error.what == "in epoch 1, step 7, the loss is not finite"
    assert "checkpoint is none" in str(error)
    saved = write_checkpoint(tmp_path / "checkpoints", 5, {"epoch": 0}, kept=1)
    assert f"checkpoint is {saved} (step 5)" in str(explain_failure(tmp_path, 0, 7, "it is not finite"))
