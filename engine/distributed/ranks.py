"""The processes of one run: torchrun starts them, each takes its share of every minibatch. One process is a group too.

Rank 0 alone prints, reads and writes the run directory; what it reads, it sends the others.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from atlasvi.engine.distributed.heartbeat import GRACE_S, HeartbeatMonitor
from atlasvi.engine.distributed.rendezvous import meet
from atlasvi.engine.distributed.signals import StopNow, TrainingInterrupted
from atlasvi.loaders.errors import AtlasviError

RANK_TIMEOUT_S = 300.0
STARTED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankError(AtlasviError, RuntimeError):
    """Another rank failed, hangs, or is gone."""

    keeps_work = True


class BrokenGroup(RuntimeError):
    """A collective failed: some rank is not there any more."""

    keeps_work = True


class Ranks:
    """This process among those of a run; by itself it is rank 0 of 1, and no call costs anything."""

    def __init__(self, rank: int = 0, world_size: int = 1, monitor: HeartbeatMonitor | None = None) -> None:
        self.rank, self.world_size, self._monitor = rank, world_size, monitor
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints, reads and writes."""
        return self.rank == 0

    @property
    def reduces(self) -> bool:
        """Whether there is a group at all; torchrun makes one of a single process too."""
        return self._monitor is not None

    def note(self, what: str, waiting: bool = False) -> None:
        """Record what the main thread begins, for the sentence that names it if it never ends.

        waiting  whether it waits for other ranks
        """
        if self._monitor is not None:
            self._monitor.note(what, waiting)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The block waits for other ranks. Raises BrokenGroup if one is gone."""
        if self._monitor is None:
            yield
            return
        self._monitor.note(what, waiting=True)
        try:
            yield
        except RuntimeError as error:
            raise BrokenGroup(f"{what}: {str(error).splitlines()[0]}") from error
        self._monitor.note(f"what follows {what}")

    def start_sum(self, values: Tensor) -> Any:
        """Begin to add `values` up over all ranks, in place; the handle's `wait` ends it. None without a group."""
        try:
            return dist.all_reduce(values, async_op=True) if self.reduces else None
        except RuntimeError as error:
            raise BrokenGroup(str(error).splitlines()[0]) from error

    def sum(self, values: np.ndarray, what: str) -> np.ndarray:
        """float64 values added up over all ranks."""
        if self._monitor is None:
            return values
        tensor = torch.from_numpy(np.asarray(values, np.float64).copy())
        with self.waiting(what):
            dist.all_reduce(tensor)
        return tensor.numpy()

    def bytes_from_first(self, make: Callable[[], bytes], what: str) -> bytes:
        """What `make` gives on rank 0, the only one that calls it."""
        if self._monitor is None:
            return make()
        content = make() if self.is_first else b""
        size = torch.tensor([len(content)])
        with self.waiting(what):
            dist.broadcast(size, 0)
            tensor = torch.tensor(np.frombuffer(content or bytes(int(size)), np.uint8))
            dist.broadcast(tensor, 0)
        return tensor.numpy().tobytes()

    def from_first(self, make: Callable[[], Any], what: str) -> Any:
        """The plain value (one that JSON can hold) that `make` gives on rank 0, the only one that calls it."""
        if self._monitor is None:
            return make()
        return json.loads(self.bytes_from_first(lambda: json.dumps(make()).encode(), what))

    def wait_for_all(self, what: str) -> None:
        """Until all ranks are here, however long that takes as long as they move."""
        if self._monitor is not None:
            with self.waiting(what):
                self._monitor.wait_for_all()
                dist.barrier()  # rank 0 may end now, and the store with it: no rank needs it any more


_joined: Ranks | None = None


@contextmanager
def join_ranks(timeout_s: float = RANK_TIMEOUT_S) -> Iterator[Ranks]:
    """The group that torchrun (or `atlasvi launch`) started this process in, for the block; else this process alone.

    timeout_s  a rank that fails, hangs or is not heard of for so long ends all of them, and rank 0 says which it was
    An error in the block is raised on rank 0, whichever rank it happened on; the other ranks exit with its status, and
    say nothing. Within a block, another gives the same group. Raises RankError if another rank was at fault.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    if not all(name in os.environ for name in STARTED_BY_TORCHRUN):
        yield Ranks()
        return
    _joined, monitor = _join(timeout_s)
    try:
        yield _joined
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():  # torchrun ends what is left; first we say why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        monitor.end_within(3 * GRACE_S)
        raise _agree_on(error, _joined, monitor) from error
    else:
        _joined.wait_for_all("the end of the other ranks")
        monitor.stop()
        dist.destroy_process_group()
    finally:
        _joined = None


def _join(timeout_s: float) -> tuple[Ranks, HeartbeatMonitor]:
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % n_devices)
    # NCCL wants a device for each rank; gloo sums over ranks that share one, by way of the host
    shares_devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > n_devices
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))
        attempt = meet(dist.PrefixStore("atlasvi", store), rank, world_size, timeout_s)
        store = dist.PrefixStore(attempt, store)
        monitor = HeartbeatMonitor(dist.PrefixStore("heartbeats", store), rank, world_size, timeout_s)
        dist.init_process_group(
            "gloo" if shares_devices else "cpu:gloo,cuda:nccl",
            store=dist.PrefixStore("collectives", store),
            rank=rank,
            world_size=world_size,
            timeout=2 * limit,  # heartbeats show what is wrong within one
        )
    except (RuntimeError, TimeoutError) as error:
        raise RankError(
            f"rank {rank} of {world_size}: the ranks did not meet at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}): see that all start and reach each other."
        ) from error
    monitor.start()
    ranks = Ranks(rank, world_size, monitor)
    ranks.wait_for_all("the start of the other ranks")
    ranks.restarted = bool(ranks.sum(np.array([float(ranks.restarted)]), "the start")[0])
    return ranks, monitor


def _agree_on(error: BaseException, ranks: Ranks, monitor: HeartbeatMonitor) -> BaseException:
    """What this rank is to raise: rank 0 what went wrong on any, the others an exit that prints nothing."""
    if isinstance(error, BrokenGroup):
        found_failure = monitor.await_decision()
        if not ranks.is_first and found_failure is None:
            return SystemExit(monitor.status)  # rank 0 knows more
        cause = found_failure or f"the connection to another rank broke ({error})"
        found = RankError(
            f"{cause if ranks.is_first else f'rank {ranks.rank}: {cause}'}. Go on from what was saved last."
        )
        found.exit_status = monitor.status
        return found
    status = getattr(error, "exit_status", 1)
    if isinstance(error, TrainingInterrupted) and error.agreed:
        return error if ranks.is_first else SystemExit(status)
    if ranks.is_first:
        monitor.abort(status)
        return error
    sentence = str(error) if isinstance(error, (AtlasviError, StopNow)) else f"{type(error).__name__}: {error}"
    return SystemExit(status) if monitor.report_failure(sentence, status) else error
