"""The training step on a GPU as one CUDA graph: with small minibatches, launching kernels takes longer than running.

A graph replays kernels on fixed addresses. So minibatches are copied into fixed buffers, the weight of the KL term is a
tensor, and nothing in the step may read a value back from the device.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE
from atlasvi.kernels import choose_backend
from atlasvi.loaders.batches.batch import Batch

WARM_UP_STEPS = 3  # ordinary steps before capture: kernels are compiled, libraries allocate workspaces
SPARE = 1.25  # buffer size over counts of the first minibatch: minibatches of one size differ little


class StaticBatch:
    """Buffers at fixed addresses for minibatches of one number of cells, with room for more nonzeros than usual."""

    def __init__(self, like: Batch) -> None:
        room = int(len(like.counts) * SPARE)
        # one piece of memory, copied in one go: first all that has a fixed length, then the counts, the genes last
        self._memory: Tensor | None = None
        if like.memory is not None:
            start = like.indices.data_ptr() - like.memory.data_ptr()
            self._memory = like.memory.new_zeros(start + room * like.indices.itemsize)

        def reserve(tensor: Tensor) -> Tensor:
            length = room if tensor is like.indices or tensor is like.counts else len(tensor)
            if like.memory is None or self._memory is None or tensor is like.counts:
                return tensor.new_zeros(length, *tensor.shape[1:])
            start, n_bytes = tensor.data_ptr() - like.memory.data_ptr(), length * tensor[:1].nbytes
            return self._memory[start : start + n_bytes].view(tensor.dtype).view(length, *tensor.shape[1:])

        codes = {name: reserve(tensor) for name, tensor in like.codes.items()}
        names = ("indptr", "indices", "counts", "library", "rows")
        self.batch = Batch(**{name: reserve(getattr(like, name)) for name in names}, n_genes=like.n_genes, codes=codes)

    def fits(self, batch: Batch) -> bool:
        """Whether a minibatch can be copied in: it has the same number of cells, and not more counts than fit."""
        return len(batch) == len(self.batch) and len(batch.counts) <= len(self.batch.counts)

    def fill(self, batch: Batch) -> Batch:
        """Copy a minibatch in. Old values remain behind its counts, but kernels read only what `indptr` covers."""
        pairs = list(zip(self.batch.tensors, batch.tensors, strict=True))
        if self._memory is not None and batch.memory is not None:
            end = batch.indices.data_ptr() + batch.indices.nbytes - batch.memory.data_ptr()
            pairs = [(self._memory, batch.memory[:end]), (self.batch.counts, batch.counts)]
        for there, here in pairs:
            there[: len(here)].copy_(here, non_blocking=True)
        return self.batch


def can_be_captured(model: VAE, device: torch.device) -> bool:
    """Whether no step of this model synchronises with the device: on CUDA, with fused kernels only."""
    fused = model.settings.likelihood.fused is not None
    return device.type == "cuda" and fused and choose_backend(device, dtype=model.dtype) == "triton"


class GraphedStep:
    """Calls `step(batch, kl_weight)`; after a few calls it replays the step's kernels on the device instead.

    step       forward, backward and optimizer; returns a tensor on the device
    generator  used by the step; seed it before each call

    The graph is captured again if a minibatch has more counts than fit. A minibatch of another number of cells runs
    without the graph.
    """

    def __init__(self, step: Callable[[Batch, Tensor], Tensor], generator: Generator, device: torch.device) -> None:
        self._step, self._generator, self._device = step, generator, device
        self._static: StaticBatch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._sums = torch.empty(0)
        self._kl_weight = torch.ones((), device=device)
        self._steps = 0

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor:
        """Do one step; the next call overwrites the tensor that it returns."""
        self._kl_weight.fill_(kl_weight)
        if self._static is None or (len(batch) == len(self._static.batch) and not self._static.fits(batch)):
            self._static, self._graph = StaticBatch(batch), None
        if not self._static.fits(batch):
            return self._run_aside(batch)
        static = self._static.fill(batch)
        if self._steps < WARM_UP_STEPS:
            self._steps += 1
            return self._run_aside(static)
        if self._graph is None:
            self._graph = self._capture(static)
        self._graph.replay()
        return self._sums

    def _run_aside(self, batch: Batch) -> Tensor:
        """Run the step on a stream other than the default, as capture does: autograd remembers the stream."""
        current, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            sums = self._step(batch, self._kl_weight)
        current.wait_stream(side)
        sums.record_stream(current)
        return sums

    def _capture(self, static: Batch) -> torch.cuda.CUDAGraph:
        """Capture the step as a graph; this does not run it."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        torch.cuda.synchronize(self._device)
        # thread_local: the loader's threads may pin memory during capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._sums = self._step(static, self._kl_weight)
        return graph


class DelayedRead:
    """Reads a small tensor one call late, so that the host need not wait for the step that it has just launched."""

    def __init__(self) -> None:
        self._there: Tensor | None = None
        self._event: torch.cuda.Event | None = None  # recorded after the copy of the pending values

    def swap(self, values: Tensor) -> list[float] | None:
        """Submit these values, and return those of the previous call, or None if there are none."""
        before = self.take()
        if self._there is None or self._there.shape != values.shape:
            self._there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._there.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()
        return before

    def take(self) -> list[float] | None:
        """The pending values, if any."""
        if self._event is None or self._there is None:
            return None
        self._event.synchronize()
        self._event = None
        return self._there.tolist()
