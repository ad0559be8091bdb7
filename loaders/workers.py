"""Tasks of ingest and minify, run in this process, in processes of this machine, or on a Dask cluster.

Other executors do not fit: those of concurrent.futures fork, which the threads of numba and zarr do not survive, or
need a main guard in scripts; loky restarts a worker whose memory has grown by 300 MB, with a warning.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

from atlasvi.loaders import errors
from atlasvi.loaders.errors import AtlasviError, MissingDependencyError, WorkerError
from atlasvi.loaders.places.storage import Storage, use_storage, usual_storage

Task = tuple[str, str, int]  # function ("module:name"), scratch folder, number


def make_task(function: Callable[[str, int], object], scratch: str, number: int) -> Task:
    """A task that another process can do: it finds the function by its module and name."""
    return f"{function.__module__}:{function.__name__}", scratch, number


def run_task(task: Task, storage: Mapping[str, str] | None = None) -> None:
    """Call the task's function with its scratch folder and number.

    storage  how buckets are reached, by name: a worker of a cluster has its own environment, and credentials, but not
             the options of the command
    """
    if storage:
        use_storage(Storage(**storage))
    where, scratch, number = task
    module, name = where.split(":")
    getattr(importlib.import_module(module), name)(scratch, number)


class Workers:
    """Processes of this machine, or a Dask cluster whose workers see the same files or buckets; a context manager.

    n_processes  1 runs all tasks in this process, None starts one for each core that has two tasks to do
    dask         address of a Dask scheduler, to be used instead of processes of this machine
    """

    def __init__(self, n_processes: int | None, dask: str | None) -> None:
        self._n_processes, self._dask = n_processes, dask
        self._processes: list[subprocess.Popen[str]] = []
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None], here: bool = False) -> None:
        """Run all tasks, in any order; `done` is called in this thread after each. `here`: all in this process.

        The first error of a task stops the others and is raised here with its own type.
        """
        n_processes = count_processes(self._n_processes, len(tasks))
        if here or (self._dask is None and n_processes == 1):
            for task in tasks:
                run_task(task)
                done(task)
        elif self._dask is not None:
            _run_on_dask(tasks, self._dask, done)
        else:
            self._run_in_processes(tasks, n_processes, done)

    def _run_in_processes(self, tasks: Sequence[Task], n_processes: int, done: Callable[[Task], None]) -> None:
        while len(self._processes) < n_processes:
            self._processes.append(_start_process())
            self._idle.put(self._processes[-1])

        def run(task: Task) -> Task:
            process = self._idle.get()
            try:
                _ask(process, task)
            finally:
                self._idle.put(process)
            return task

        with ThreadPoolExecutor(len(self._processes), thread_name_prefix="atlasvi-ingest") as threads:
            try:
                for future in as_completed([threads.submit(run, task) for task in tasks]):
                    done(future.result())
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for process in self._processes:
                    process.kill()
                raise


def count_processes(wanted: int | None, n_tasks: int) -> int:
    """How many processes of this machine do so many tasks; `wanted` is the argument of `Workers`."""
    return min(wanted or max(1, min(os.cpu_count() or 1, n_tasks // 2)), n_tasks)


def _run_on_dask(tasks: Sequence[Task], address: str, done: Callable[[Task], None]) -> None:
    try:
        from distributed import Client
        from distributed import as_completed as dask_as_completed
    except ImportError:
        raise MissingDependencyError("Work over a cluster needs Dask: pip install 'atlasvi[dask]'.") from None
    try:
        client = Client(address, timeout=20)
    except OSError as error:
        raise WorkerError(f"dask: no scheduler answers at {address} ({error}): check the address.") from error
    with client:
        futures = {client.submit(run_task, task, usual_storage().options, pure=False): task for task in tasks}
        try:
            for future in dask_as_completed(list(futures)):
                future.result()
                done(futures[future])
        finally:
            client.cancel(list(futures))


def _start_process() -> "subprocess.Popen[str]":
    """Start a process that runs `serve`, neither forked nor spawned, so a user's script needs no main guard for it."""
    # atlasvi is a namespace package: the child finds it where this process does, installed or not
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "atlasvi.loaders.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(process: "subprocess.Popen[str]", task: Task) -> None:
    """Let a process run a task. Raises the task's error, or WorkerError if the process died."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except (OSError, ValueError):
        line = ""
    if not line:
        raise WorkerError(
            f"ingest: a worker process ended with status {process.wait()} (-9: killed, often because memory ran out): "
            "run the same command again to continue, with fewer --workers if memory was short."
        )
    if (answer := json.loads(line)) is None:
        return
    kind = getattr(errors, answer["kind"], None)
    if isinstance(kind, type) and issubclass(kind, AtlasviError):
        raise kind(answer["message"])
    if answer["errno"] is not None:
        raise OSError(answer["errno"], answer["message"])
    raise RuntimeError(f"{answer['kind']} in a worker process:\n{answer['traceback']}")


def serve() -> None:
    """Main loop of a worker process: reads tasks as JSON lines, answers each with null or an error."""
    for line in sys.stdin:
        answer = None
        try:
            run_task(json.loads(line))
        except Exception as error:  # sent to the parent process
            answer = {
                "kind": type(error).__name__,
                "message": error.strerror if isinstance(error, OSError) and error.errno else str(error),
                "errno": error.errno if isinstance(error, OSError) and not isinstance(error, AtlasviError) else None,
                "traceback": traceback.format_exc(),
            }
        print(json.dumps(answer), file=OUT, flush=True)


if __name__ == "__main__":
    # output that a library prints must not be taken for an answer
    OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve()
