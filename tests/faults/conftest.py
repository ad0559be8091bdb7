"""The inputs, unpacked where they are packed."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def faults(shared: Path) -> Path:
    """The folder of the inputs; skips where it is missing."""
    folder = shared / "faults"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder}")
    return folder


@pytest.fixture
def unpack(faults: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Unpacks an input of `hostile` by its name without .tar.gz or .gz; returns the file or folder that was in it."""

    def unpack(name: str) -> Path:
        archive, inside = faults / "hostile" / f"{name}.tar.gz", tmp_path / name
        if archive.exists():
            shutil.unpack_archive(archive, inside, filter="data")
            return next(inside.iterdir())
        inside.write_bytes(gzip.decompress((faults / "hostile" / f"{name}.gz").read_bytes()))
        return inside

    return unpack
