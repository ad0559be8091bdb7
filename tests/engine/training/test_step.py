"""One minibatch after the other through a Step, on the CPU; what a CUDA graph captures is run as it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.model.noise import TRAINING_NOISE, seed_draws
from atlasvi.engine.training.run_parts import RunParts, prepare_run
from atlasvi.engine.training.settings import Settings
from atlasvi.engine.training.step import Step, _unpack
from atlasvi.loaders.cells.open_cells import open_cells
from tests.engine.training.small_runs import SMALL, write_cells

ASKED = {"seed": 0, "split_column": None}
Prepare = Callable[..., tuple[RunParts, Step]]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """The parts of a run on 200 cells and its step, by settings."""
    data = open_cells(write_cells(tmp_path / "cells.h5ad"))
    setup = learn_setup(data, SetupKeys(batch_key="batch"))

    def prepare(**settings: object) -> tuple[RunParts, Step]:
        resolved = Settings.model_validate({**SMALL, "validation_fraction": 0, "dropout_rate": 0, **settings})
        parts = prepare_run(data, tmp_path / "run", setup, ASKED, resolved, "cpu")
        parts.model.train()
        return parts, Step(parts.model, parts.optimizer, parts.loaders["train"], parts.ranks, resolved, parts.seed)

    return prepare


def gradients_of(parts: RunParts) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parts.model.parameters() if parameter.grad is not None]


def test_preparing_a_run_writes_nothing(prepare: Prepare, tmp_path: Path):
    prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_terms_are_known_with_the_last_minibatch_of_a_step(prepare: Prepare):
    parts, step = prepare(accumulate=3)
    batches = list(parts.loaders["train"])  # 6 of 32 cells, one of 8
    found = [step.take(batch, number, number // 3, 1.0) for number, batch in enumerate(batches)]
    assert [step.ends(number) for number in range(7)] == [each is not None for each in found]
    assert [each.terms.n_cells for each in found if each is not None] == [96, 96, 8]
    assert step.take_last() is None


def test_accumulated_minibatches_have_the_gradients_of_their_mean_loss(prepare: Prepare):
    parts, step = prepare(accumulate=2)
    batches = list(parts.loaders["train"])[:2]
    found = [step.take(batch, number, 0, 0.5) for number, batch in enumerate(batches)][1]
    gradients = [gradient.clone() for gradient in gradients_of(parts)]
    parts.model.zero_grad()
    for number, batch in enumerate(batches):
        noise = seed_draws(torch.Generator(), 0, TRAINING_NOISE, number)
        losses = parts.model(batch, noise, 64)
        (losses.loss(0.5, 64)).backward()
    assert all(map(torch.allclose, gradients, gradients_of(parts)))
    assert found.terms.n_cells == 64


def test_what_a_graph_captures_is_what_a_step_does(prepare: Prepare):
    (parts, step), (others, captured) = prepare(), prepare()
    for number, (batch, same) in enumerate(zip(parts.loaders["train"], others.loaders["train"])):
        found = step.take(batch, number, number, 0.3)
        step.update()
        seed_draws(captured._noise, others.seed, TRAINING_NOISE, number)
        replayed = _unpack(captured._take_alone(same, torch.tensor(0.3)).tolist())
        assert found.terms == replayed.terms
    assert all(map(torch.equal, parts.model.parameters(), others.model.parameters()))


def test_a_stop_that_a_rank_asks_for_comes_with_the_terms(prepare: Prepare):
    parts, step = prepare(accumulate=2)
    first, second = list(parts.loaders["train"])[:2]
    step.take(first, 0, 0, 1.0, stop_asked=lambda: True)
    assert step.take(second, 1, 0, 1.0).stop
    assert not step.take(first, 0, 1, 1.0)
    assert not step.take(second, 1, 1, 1.0).stop


def test_evaluation_is_the_same_whatever_was_trained_before_and_draws_nothing_of_training(prepare: Prepare):
    parts, step = prepare()
    batch, other = list(parts.loaders["train"])[:2]
    parts.model.eval()
    with torch.inference_mode():
        before = step.evaluate(batch, 3, len(batch))
    step.take(other, 1, 1, 1.0)  # computes gradients, and changes no weight
    with torch.inference_mode():
        again = step.evaluate(batch, 3, len(batch))
        elsewhere = step.evaluate(batch, 4, len(batch))
    assert before == again != elsewhere
