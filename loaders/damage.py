"""Damaged files: whatever a library throws at one becomes a sentence to a person."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError, SourceError

# A flipped byte can raise nearly anything, anywhere in h5py, zarr, numcodecs, TileDB or pandas. What is left out
# (AttributeError, NameError, AssertionError, ...) would be a mistake of ours and should be seen as one.
_LIBRARY_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,  # a damaged length asks for petabytes
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn a library's error while `path` is read into a SourceError that names the path; let our own errors pass."""
    try:
        yield
    except AtlasviError:
        raise
    except PermissionError as error:
        raise SourceError(
            f"{path}: no permission to read it; ask its owner, or copy it to a place of yours."
        ) from error
    except _LIBRARY_ERRORS as error:
        # KeyError shows its message in quotes; the libraries' messages run over many lines.
        words = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        first_line = next((line.strip() for line in words.splitlines() if line.strip()), type(error).__name__)
        raise SourceError(
            f"{path}: it is damaged or cut short and can't be read; copy it again, or write it anew "
            f"(the reader's own words: {first_line[:200].rstrip('.')})."
        ) from error
