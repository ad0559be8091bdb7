"""A folder for the code that numba compiles, where numba itself finds none: read-only installations without a home."""

import os
import stat
import sys
import tempfile
from pathlib import Path


def ensure_numba_cache(package: Path) -> None:
    """Give numba a folder among the temporary files, if it can write neither into `package` nor into a home.

    numba refuses to import code with cache=True if it can write no cache. This is common in containers: installed by
    root, run by a user id without a home. The folder is reused by later processes and passed on to child processes; the
    variable NUMBA_CACHE_DIR names another. kernels/numba_cache.py is the same as this file, since neither package
    imports the other.
    """
    if os.environ.get("NUMBA_CACHE_DIR") or _can_write(package / "__pycache__") or _can_write(_user_cache()):
        return
    try:
        folder = _private_folder()
    except OSError:
        return  # nothing can be written anywhere: numba will report it
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if "numba" in sys.modules:  # it has read its environment already
        sys.modules["numba"].config.CACHE_DIR = str(folder)


def _private_folder() -> Path:
    """A folder that no other user can write into, since numba loads pickles from it."""
    folder = Path(tempfile.gettempdir(), f"atlasvi-numba-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if ours else Path(tempfile.mkdtemp(prefix="atlasvi-numba-"))


def _user_cache() -> Path:
    """Where numba puts its cache: below XDG_CACHE_HOME or the home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")


def _can_write(folder: Path) -> bool:
    """Whether the folder and a file in it can be made; numba tests it the same way."""
    if not folder.is_absolute():  # '~' is not expanded for a user without a home
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


ensure_numba_cache(Path(__file__).parent)  # the package imports this file before any code that numba compiles
