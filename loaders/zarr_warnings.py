"""Warnings of the libraries that nobody who reads a store or a source can do anything about."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Without zarr's and anndata's notes on young parts of the format, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        warnings.filterwarnings("ignore", message="The data type .* does not have a Zarr V3 specification")
        warnings.filterwarnings(
            "ignore", message="Object at manifest.json is not recognized"
        )  # beside Zarr's own files
        yield


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without any warning: of other people's files they are about types off a standard, or about coming releases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
