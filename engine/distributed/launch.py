"""Start one command as many processes, on one machine or several: torchrun for users who don't know torchrun."""

import logging
import os
import shlex
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import psutil

from atlasvi.engine.distributed.signals import EXIT_RESUMABLE
from atlasvi.engine.terminal import count, say
from atlasvi.loaders.errors import AtlasviError

LAUNCHED = "ATLASVI_LAUNCH"  # environment variable: the words before a command that launch it in the same way


class LaunchError(AtlasviError, RuntimeError):
    """The processes can't be started, or did not find each other."""


def launch(
    command: Sequence[str],
    n_processes: int | None,
    *,
    max_restarts: int = 0,
    n_nodes: int = 1,
    rendezvous: str | None = None,
) -> int:
    """Run `atlasvi COMMAND...` as `n_processes` processes on each of `n_nodes` machines; returns the exit status.

    n_processes   None: one per GPU of this machine; one if it has none, whose threads use all cores
    max_restarts  how many times all processes are restarted after one of them failed or was killed
    rendezvous    HOST:PORT of one of the machines, the same on all; needed for several machines
    On SIGTERM and SIGINT all processes stop: training writes a checkpoint, and the status is 75 (EX_TEMPFAIL), on
    which a scheduler can requeue. Raises LaunchError if the machines do not find each other.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if n_processes is None:
        n_processes = max(torch.cuda.device_count(), 1)
        say(f"launch: {count(n_processes, 'process', 'processes')} on this machine.", error=True)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # each logger has its own level
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs tables of tracebacks; we print sentences
    if n_nodes > 1 and rendezvous is None:
        raise LaunchError(
            "launch: several machines need a rendezvous: pass the same --rendezvous HOST:PORT on all of them."
        )
    if "OMP_NUM_THREADS" not in os.environ:  # else each process would use all cores
        os.environ["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // n_processes, 1))
    address, configs = None, {}
    if rendezvous is not None:
        address = find_address(rendezvous)
        # torch would use the host's name, which may resolve to another address than the one the others can reach
        configs = {"is_host": address == socket.gethostbyname(rendezvous.rpartition(":")[0])}
        if (interface := find_interface(address)) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
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
        rdzv_configs=configs,
        local_addr=address,
    )
    words = ["atlasvi", "launch", "--nproc", str(n_processes)]
    words += ["--max-restarts", str(max_restarts)] if max_restarts else []
    words += ["--nnodes", str(n_nodes), "--rendezvous", str(rendezvous)] if n_nodes > 1 else []
    os.environ[LAUNCHED] = shlex.join([*words, "--"])
    arguments = ["-m", "atlasvi.engine.cli.commands", *command]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return explain_end(error.failures)
    except RendezvousError as error:
        raise LaunchError(
            f"launch: the machines did not meet at {rendezvous} ({error}): check that each of them can reach it."
        ) from None
    except Exception as error:
        if type(error).__name__ != "SignalException":  # by name, because torch has moved the class
            raise
        return EXIT_RESUMABLE
    finally:
        del os.environ[LAUNCHED]
    return 0


def launch_prefix() -> str:
    """The words before a command that start it as this process was started: `atlasvi`, perhaps with a launch."""
    if LAUNCHED in os.environ:
        return os.environ[LAUNCHED]
    by_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return "torchrun ... -m atlasvi.engine.cli.commands" if by_torchrun else "atlasvi"


def find_address(rendezvous: str) -> str:
    """This machine's address in the network of HOST:PORT. Raises LaunchError if it can't reach that network."""
    host, _, port = rendezvous.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((host, int(port)))
            return probe.getsockname()[0]
    except (OSError, ValueError) as error:
        raise LaunchError(f"launch: --rendezvous {rendezvous} can't be reached ({error}): use HOST:PORT.") from None


def find_interface(address: str) -> str | None:
    """The name of the network interface that has an IPv4 address; None if there is none."""
    interfaces = psutil.net_if_addrs()
    return next((name for name, has in interfaces.items() if address in [each.address for each in has]), None)


def explain_end(failures: dict[int, Any]) -> int:
    """The exit status from how the processes ended; prints a line if a process was killed silently."""
    statuses = [failure.exitcode for failure in failures.values()]
    if EXIT_RESUMABLE in statuses:
        return EXIT_RESUMABLE
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # torch ends the remaining processes with it
            name = signal.Signals(-failure.exitcode).name
            say(f"atlasvi: launch: rank {rank} was ended by {name}, and no restart was left.", error=True)
    return 1
