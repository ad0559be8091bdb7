"""Compiled code has a place where neither the installation nor a home can be written to."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import atlasvi.loaders
from atlasvi.loaders import numba_cache

SOURCE = Path(atlasvi.loaders.__file__).parent


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("loaders", "import atlasvi.loaders.rows.chosen_genes"),
        pytest.param("kernels", "from atlasvi.kernels import cpu_sparse", id="kernels"),
    ],
)
def test_a_read_only_installation_without_a_home_can_be_imported(tmp_path: Path, package: str, statement: str):
    if package == "kernels":
        pytest.importorskip("torch")
    copy = shutil.copytree(SOURCE.parent / package, tmp_path / "atlasvi" / package, ignore=lambda *_: ["__pycache__"])
    (copy / "__pycache__").touch()  # a file: nobody, not even root, can make that folder
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**kept, "HOME": os.devnull, "TMPDIR": str(temporary), "PYTHONPATH": str(tmp_path)}
    script = f"{statement}; import atlasvi.{package} as found; print(found.__path__[0])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(copy)
    assert [folder.name for folder in temporary.glob("atlasvi-numba-*")] == [f"atlasvi-numba-{os.getuid()}"]


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """numba loads pickles from it, so whoever can write there runs code."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = numba_cache._private_folder()
    assert numba_cache._private_folder() == ours
    ours.chmod(0o777)
    other = numba_cache._private_folder()
    assert other != ours
    assert other.stat().st_mode & 0o077 == 0


def test_the_two_packages_have_the_same_file():
    """loaders and kernels import nothing of each other."""
    texts = [(SOURCE.parent / package / "numba_cache.py").read_text() for package in ("loaders", "kernels")]
    assert texts[0].replace("kernels/", "loaders/") == texts[1]
