"""The processes of one run: torchrun starts them, and each computes a part of every minibatch.

Only rank 0 prints, reads and writes the run directory; it sends the others what it read.
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
    """A collective operation failed because some rank is gone."""

    keeps_work = True


class Ranks:
    """This process as a member of a run. A single process is rank 0 of 1, and its calls cost nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1, monitor: HeartbeatMonitor | None = None) -> None:
        self.rank, self.world_size, self._monitor = rank, world_size, monitor
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints, reads and writes."""
        return self.rank == 0

    @property
    def reduces(self) -> bool:
        """Whether there is a process group; torchrun makes one for a single process too."""
        return self._monitor is not None

    def note(self, what: str, waiting: bool = False) -> None:
        """Record what the main thread begins, for the error message if it never ends.

        waiting  True if it waits for other ranks
        """
        if self._monitor is not None:
            self._monitor.note(what, waiting)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """In this block the main thread waits for other ranks. Raises BrokenGroup if one is gone."""
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
        """Start summing `values` over all ranks, in place; call `wait` on the result. None on a single rank."""
        try:
            return dist.all_reduce(values, async_op=True) if self.reduces else None
        except RuntimeError as error:
            raise BrokenGroup(str(error).splitlines()[0]) from error

    def sum(self, values: np.ndarray, what: str) -> np.ndarray:
        """Sum of float64 values over all ranks."""
        if self._monitor is None:
            return values
        tensor = torch.from_numpy(np.asarray(values, np.float64).copy())
        with self.waiting(what):
            dist.all_reduce(tensor)
        return tensor.numpy()

    def bytes_from_first(self, make: Callable[[], bytes], what: str) -> bytes:
        """The bytes that `make` returns on rank 0, where alone it is called; on all ranks."""
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
        """The plain (JSON) value that `make` returns on rank 0, where alone it is called; on all ranks."""
        if self._monitor is None:
            return make()
        return json.loads(self.bytes_from_first(lambda: json.dumps(make()).encode(), what))

    def wait_for_all(self, what: str) -> None:
        """Wait until all ranks are here, for as long as they make progress."""
        if self._monitor is not None:
            with self.waiting(what):
                self._monitor.wait_for_all()
                dist.barrier()  # after this no rank needs the store, so rank 0 may end


_joined: Ranks | None = None


@contextmanager
def join_ranks(timeout_s: float = RANK_TIMEOUT_S) -> Iterator[Ranks]:
    """The group in which torchrun (or `atlasvi launch`) started this process, for the block; else this process alone.

    timeout_s  a rank that fails, hangs or sends no heartbeat for this long ends all ranks, and rank 0 names it
    An error in the block is raised on rank 0, whichever rank it happened on; the other ranks exit silently with its
    status. A nested block returns the same group. Raises RankError if another rank failed.
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
        if threading.current_thread() is threading.main_thread():  # torchrun stops the others: first report why
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
    # NCCL needs one device per rank; gloo can sum over ranks that share a device, through the host
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
            timeout=2 * limit,  # heartbeats find a failure within one `limit`
        )
    except (RuntimeError, TimeoutError) as error:
        raise RankError(
            f"rank {rank} of {world_size}: the ranks did not meet at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}): check that all start and reach each other."
        ) from error
    monitor.start()
    ranks = Ranks(rank, world_size, monitor)
    ranks.wait_for_all("the start of the other ranks")
    ranks.restarted = bool(ranks.sum(np.array([float(ranks.restarted)]), "the start")[0])
    return ranks, monitor


def _agree_on(error: BaseException, ranks: Ranks, monitor: HeartbeatMonitor) -> BaseException:
    """The error for this rank to raise: on rank 0 the failure of any rank, on others an exit that prints nothing."""
    if isinstance(error, BrokenGroup):
        found_failure = monitor.await_decision()
        if not ranks.is_first and found_failure is None:
            return SystemExit(monitor.status)  # rank 0 reports the failure
        cause = found_failure or f"the connection to another rank broke ({error})"
        found = RankError(
            f"{cause if ranks.is_first else f'rank {ranks.rank}: {cause}'}. Resume from the last checkpoint."
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
