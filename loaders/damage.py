"""Damaged files: whatever a library throws at one becomes a sentence to a person."""

from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError, SourceError


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn a library's error while `path` is read into a SourceError that names the path; let our own errors pass.

    A flipped byte raises nearly anything, anywhere in h5py, zarr, numcodecs, TileDB, pandas or numpy (tried), even
    AttributeError where a table turns into something else; so no kind is left out. The first error stays attached.
    """
    try:
        yield
    except AtlasviError:
        raise
    except PermissionError as error:
        raise SourceError(
            f"{path}: no permission to read it; ask its owner, or copy it to a place of yours."
        ) from error
    except BlockingIOError as error:
        raise SourceError(
            f"{path}: another program is writing to it; wait until it is done, or pass a copy."
        ) from error
    except MemoryError as error:
        raise SourceError(
            f"{path}: reading it asks for more memory than there is; read fewer cells at once, or, if it asks for "
            "absurdly much, copy the file again: it may be damaged."
        ) from error
    except Exception as error:
        # The libraries' messages run over many lines; a KeyError may be a bare name.
        words = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if isinstance(error, KeyError) and " " not in words:
            words = f"there is no {words!r}"
        first_line = next((line.strip() for line in words.splitlines() if line.strip()), type(error).__name__)
        raise SourceError(
            f"{path}: it is damaged or cut short and can't be read; copy it again, or write it anew "
            f"(the reader's own words: {first_line[:200].rstrip('.')})."
        ) from error
