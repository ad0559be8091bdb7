"""Start one command as many processes, on this machine or on several: torchrun without knowing torchrun."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from atlasvi.engine.interruption import EXIT_RESUMABLE
from atlasvi.loaders.errors import AtlasviError

STOP_S = 30  # after a signal, until processes that are still there are killed: a checkpoint takes less than 10


class LaunchError(AtlasviError, RuntimeError):
    """The processes can't be started, or did not come together."""


def launch(
    command: Sequence[str], n_processes: int, *, max_restarts: int = 0, n_nodes: int = 1, rendezvous: str | None = None
) -> int:
    """Run `atlasvi COMMAND...` as `n_processes` processes on each of `n_nodes` machines; the exit status.

    max_restarts  how often, when a process fails or is killed, all of them are started again
    rendezvous    HOST:PORT of one of the machines, the same on all of them; needed for several
    On SIGTERM and SIGINT all processes stop: a training writes a checkpoint, and the status is 75 (EX_TEMPFAIL),
    on which a scheduler can requeue. Raises LaunchError if the machines do not meet.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if n_nodes > 1 and rendezvous is None:
        raise LaunchError(
            "launch: several machines need a place to meet: give all of them the same --rendezvous HOST:PORT."
        )
    if "OMP_NUM_THREADS" not in os.environ:  # else each process takes all cores
        os.environ["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // n_processes, 1))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # tables of tracebacks; ours are sentences
    config = LaunchConfig(
        min_nodes=n_nodes,
        max_nodes=n_nodes,
        nproc_per_node=n_processes,
        run_id=os.environ.get("SLURM_JOB_ID") or (uuid.uuid4().hex if rendezvous is None else rendezvous),
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.2,
        start_method="spawn",
    )
    arguments = ["-m", "atlasvi.engine.commands", *command]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return explain_end(error.failures)
    except RendezvousError as error:
        raise LaunchError(
            f"launch: the machines did not meet at {rendezvous} ({error}): see that each reaches it."
        ) from None
    except Exception as error:
        if type(error).__name__ != "SignalException":  # torch moved it between modules
            raise
        return EXIT_RESUMABLE
    return 0


def explain_end(failures: dict[int, Any]) -> int:
    """The exit status that the ends of the processes come to; says so where a process was killed without a word."""
    statuses = [failure.exitcode for failure in failures.values()]
    if EXIT_RESUMABLE in statuses:
        return EXIT_RESUMABLE
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # by which torch ends those that are left
            name = signal.Signals(-failure.exitcode).name
            print(f"atlasvi: launch: rank {rank} was ended by {name}, and no restart was left.", file=sys.stderr)  # noqa: T201
    return 1
