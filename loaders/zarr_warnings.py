"""Silences warnings of the libraries that a user who reads a store or a source can do nothing about."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Silence warnings of zarr and anndata about unfinished parts of the Zarr format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        warnings.filterwarnings("ignore", message="The data type .* does not have a Zarr V3 specification")
        warnings.filterwarnings(
            "ignore", message=r"Object at (manifest\.json|names\.index) is not recognized"
        )  # files that do not belong to Zarr
        yield


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence all warnings: about files of others they concern unusual types or future releases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
