"""Minibatches on a device: the next one is copied there while the model computes with the current one."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch.profiler import record_function

from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.loader import BatchLoader


class DeviceFeeder:
    """The minibatches of a loader, on `device`.

    On CUDA, a separate thread takes the next minibatch and copies it on a separate stream, from pinned memory, while
    the model computes. On the CPU, minibatches are passed on unchanged. `state_dict` is that of the next minibatch that
    the caller gets, not of those on their way.
    """

    def __init__(self, loader: BatchLoader, device: torch.device | str) -> None:
        self.loader, self.device = loader, torch.device(device)
        self._state: dict[str, int] | None = None

    def __len__(self) -> int:
        """Minibatches per epoch."""
        return len(self.loader)

    def state_dict(self) -> dict[str, int]:
        """Position of the next minibatch."""
        return self.loader.state_dict() if self._state is None else dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.loader.load_state_dict(state)
        self._state = None

    def __iter__(self) -> Iterator[Batch]:
        if self.device.type != "cuda":
            self._state = None
            yield from self.loader
            return
        side = torch.cuda.Stream(self.device)
        batches = iter(self.loader)
        crossing: deque[tuple[Batch, torch.cuda.Event]] = deque()  # host batches, kept until their copy is done

        def fetch() -> tuple[Batch, torch.cuda.Event, dict[str, int]] | None:
            batch = next(batches, None)
            if batch is None:
                return None
            with torch.cuda.stream(side), record_function("host to device"):
                copied, event = batch.to(self.device), torch.cuda.Event()
                event.record(side)
            crossing.append((batch, event))
            while crossing[0][1].query() and len(crossing) > 1:
                crossing.popleft()
            return copied, event, self.loader.state_dict()

        self._state = self.loader.state_dict()  # the loader itself runs ahead from here on
        with ThreadPoolExecutor(1, thread_name_prefix="atlasvi-feeder") as copier:
            following = copier.submit(fetch)
            try:
                while (fetched := following.result()) is not None:
                    following = copier.submit(fetch)
                    yield self._hand_out(*fetched)
                self._state = None  # the epoch is over: the state is the loader's again
            finally:
                wait([following])
                batches.close()  # type: ignore[attr-defined]  # a generator
                side.synchronize()
                if self._state is not None:  # the caller stopped early: go back to the minibatch it would get next
                    self.loader.load_state_dict(self._state)
                self._state = None

    def _hand_out(self, batch: Batch, event: "torch.cuda.Event", state: dict[str, int]) -> Batch:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in batch.tensors if batch.memory is None else [batch.memory]:
            tensor.record_stream(current)  # its memory must not be reused before this stream is done with it
        self._state = state
        return batch
