"""Damaged files: whatever error a library raises while it reads one becomes one sentence for the user."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError, SourceError

OF_THE_SYSTEM = {errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}
"""Numbers of errors that say nothing about the content of a file: its name is too long, too many files are open ..."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn a library's error while `path` is read into a SourceError that names the path; our own errors pass through.

    A flipped byte can raise nearly any exception in h5py, zarr, numcodecs, TileDB, pandas or numpy (tried), even an
    AttributeError where a table becomes another object, so all of them are caught. The original error stays attached.
    """
    try:
        yield
    except AtlasviError:
        raise
    except PermissionError as error:
        raise SourceError(
            f"{path}: no permission to read it; ask its owner, or copy it to a place where you may read it."
        ) from error
    except BlockingIOError as error:
        raise SourceError(
            f"{path}: another program is writing to it; wait until it is done, or pass a copy."
        ) from error
    except MemoryError as error:
        raise SourceError(
            f"{path}: reading it takes more memory than there is; read fewer cells at once, or, if the size makes no "
            "sense, copy the file again: it may be damaged."
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            raise SourceError(
                f"{path}: the system can't open or read it ({os.strerror(error.errno)}); correct that, then try again."
            ) from error
        # The libraries' messages have many lines; the message of a KeyError may be only a name.
        words = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if isinstance(error, KeyError) and " " not in words:
            words = f"there is no {words!r}"
        first_line = next((line.strip() for line in words.splitlines() if line.strip()), type(error).__name__)
        raise SourceError(
            f"{path}: it is damaged or cut short and can't be read; copy it again, or write it again "
            f"(the library's message: {first_line[:200].rstrip('.')})."
        ) from error
