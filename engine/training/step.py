"""One minibatch: the terms of its loss and, in training, its gradients; on one rank or on several together.

This module uses the model, its optimizer, the ranks and the seed of random draws, but no epochs, logs or files.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from atlasvi.engine.distributed.batch_norm import evaluating_norms
from atlasvi.engine.distributed.data_parallel import DataParallel
from atlasvi.engine.distributed.ranks import Ranks
from atlasvi.engine.model.loss_terms import CellLosses, LossTerms, sum_terms
from atlasvi.engine.model.noise import EVALUATION_NOISE, TRAINING_NOISE, Noise, seed_draws, share_noise
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training.cuda_graph import DelayedRead, GraphedStep, can_be_captured
from atlasvi.engine.training.profiling import record_function
from atlasvi.engine.training.settings import Settings
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.loader import BatchLoader


class StepTerms(NamedTuple):
    """Loss terms of an optimizer step, over all its minibatches and ranks; and whether some rank was asked to stop."""

    terms: LossTerms
    stop: bool


class Step:
    """The optimizer steps of a model on the minibatches of a loader.

    For each minibatch: `take` it; if it `ends` a step, check the terms that `take` returned, then `update` the weights.
    With a CUDA graph, `take` has updated the weights already and returns the terms of the previous step; `take_last`
    returns the last ones.
    """

    def __init__(
        self,
        model: VAE,
        optimizer: torch.optim.Optimizer,
        loader: BatchLoader,
        ranks: Ranks,
        settings: Settings,
        seed: int,
        may_capture: bool = True,
    ) -> None:
        self.model, self.ranks, self._optimizer, self._loader, self._seed = model, ranks, optimizer, loader, seed
        self._every, self.device = settings.accumulate, model.encoder.mean.weight.device
        self._noise, self._evaluation_noise = Generator(self.device), Generator(self.device)
        self._parallel = DataParallel(model, ranks, settings.compress_gradients)
        self._sums = torch.empty(0)  # over the minibatches of the current step: see `_pack`
        alone = ranks.world_size == 1 and settings.accumulate == 1
        self._graph = (
            GraphedStep(self._take_alone, self._noise, self.device)
            if settings.cuda_graph and may_capture and alone and can_be_captured(model, self.device)
            else None
        )
        self._delayed = DelayedRead()

    @property
    def is_graph(self) -> bool:
        """Whether steps are replayed as a CUDA graph."""
        return self._graph is not None

    @property
    def n_bytes_reduced(self) -> int:
        """Bytes of gradients that this rank sends into the all-reduce of each step; 0 on a single rank."""
        return self._parallel.n_bytes

    def ends(self, number: int) -> bool:
        """Whether minibatch `number` of an epoch is the last of its step."""
        return (number + 1) % self._every == 0 or number + 1 == len(self._loader)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step. On a GPU it is a tensor, which a CUDA graph reads at each replay."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def take(
        self, batch: Batch, number: int, step: int, kl_weight: float, stop_asked: Callable[[], bool] = lambda: False
    ) -> StepTerms | None:
        """Forward and backward of minibatch `number` of an epoch, part of optimizer step `step` (both from 0).

        stop_asked  whether this rank was asked to stop; all ranks receive it with the terms
        Returns the terms of a step after its last minibatch, else None; with a CUDA graph, one step later.
        """
        if self._graph is not None:
            seed_draws(self._noise, self._seed, TRAINING_NOISE, step)
            return _unpack(self._delayed.swap(self._graph(batch, kl_weight)))
        self._compute_gradients(batch, number, step, kl_weight, stop_asked)
        return _unpack(self._sums.cpu().tolist()) if self.ends(number) else None

    def update(self) -> None:
        """Update the weights with the gradients of the step."""
        if self._graph is None:
            with record_function("optimizer"):
                self._optimizer.step()

    def take_last(self) -> StepTerms | None:
        """The terms that `take` has not returned yet, if any."""
        return _unpack(self._delayed.take())

    def evaluate(self, batch: Batch, number: int, n_cells: int) -> LossTerms:
        """The terms of a minibatch without gradients, for this rank's cells only.

        number   selects the random draws
        n_cells  of the whole minibatch, over all ranks
        The sum over cells is float64, so that reported losses are precise.
        """
        noise = self._share(self._evaluation_noise, EVALUATION_NOISE, number, n_cells)
        return LossTerms(*sum_terms(self.model(batch, noise), torch.float64).tolist())

    def _compute_gradients(
        self, batch: Batch, number: int, step: int, kl_weight: float, stop_asked: Callable[[], bool]
    ) -> None:
        """The loss is the mean over the cells of the whole step: all ranks and accumulated minibatches. With the last
        minibatch of the step, gradients and terms are summed over the ranks.
        """
        size, n_cells = self._loader.batch_size, self._loader.n_cells
        place, is_last = number % self._every, self.ends(number)
        n_step = min(self._every * size, n_cells - (number - place) * size)
        self.ranks.note(f"step {step + 1}")
        n_here = min(size, n_cells - number * size)
        noise = self._share(self._noise, TRAINING_NOISE, step * self._every + place, n_here)
        with self._parallel.accumulating(is_last):
            with evaluating_norms(self.model) if n_here < 2 else nullcontext():  # one cell has no variance
                losses = self._parallel(batch, noise, n_step)
            sums = _pack(losses, stop_asked())
            if place == 0:
                self._optimizer.zero_grad(set_to_none=True)
            else:
                sums += self._sums
            self._sums = sums
            summing = self.ranks.start_sum(sums) if is_last else None
            with record_function("backward"):
                self._parallel.backward(losses.loss(kl_weight, n_step))
        if summing is not None:
            with self.ranks.waiting(f"step {step + 1}"):
                summing.wait()

    def _take_alone(self, batch: Batch, kl_weight: Tensor) -> Tensor:
        """A whole step of one process without device synchronisation, so that a CUDA graph can capture it."""
        losses = self.model(batch, self._noise, len(batch))
        self._optimizer.zero_grad(set_to_none=True)
        losses.loss(kl_weight, len(batch)).backward()
        self._optimizer.step()
        return _pack(losses, stop=False)

    def _share(self, generator: Generator, purpose: int, number: int, n_cells: int) -> Noise:
        """Random draws for this rank's cells of a minibatch of `n_cells`."""
        seed_draws(generator, self._seed, purpose, number)
        return share_noise(generator, n_cells, self.ranks.rank, self.ranks.world_size)


def _pack(losses: CellLosses, stop: bool) -> Tensor:
    """The terms, and 1 if this rank is to stop, float64, so that one call sums them over ranks."""
    return F.pad(sum_terms(losses), (0, 1), value=float(stop))


def _unpack(sums: list[float] | None) -> StepTerms | None:
    return None if sums is None else StepTerms(LossTerms(*sums[:-1]), sums[-1] > 0)
