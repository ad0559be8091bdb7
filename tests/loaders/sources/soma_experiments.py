"""Experiments as tiledbsoma writes them."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import pytest


def write_soma(adata: ad.AnnData, path: Path, **options: object) -> Path:
    """Write an AnnData as an experiment, with the measurement RNA unless another is named."""
    io = pytest.importorskip("tiledbsoma.io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # From 0.13 on anndata lists X among the layers as None, for which tiledbsoma 2.3 finds no name.
        with mock.patch.object(type(adata.layers), "items", list_named):
            named = {"measurement_name": "RNA"} | options
            write_until_whole(path, path, lambda: io.from_anndata(str(path), adata, **named))
    return path


def write_until_whole(experiment: Path, part: Path, write: Callable[[], object]) -> None:
    """Let `write` write a part of an experiment, or all of it, until tiledbsoma itself can read what it wrote.

    TileDB orders what it writes by milliseconds: of two schemas of one millisecond, which files in memory now and then
    have, the older one can be taken for the newer, and categories are missing.
    """
    write()
    while not has_all_categories(experiment):
        shutil.rmtree(part)
        write()


def has_all_categories(path: Path) -> bool:
    """Whether tiledbsoma itself can read obs and var."""
    import pyarrow as pa
    import tiledbsoma

    with tiledbsoma.open(str(path)) as experiment:
        try:
            for frame in (experiment.obs, *(measurement.var for measurement in experiment.ms.values())):
                frame.read().concat().to_pandas()
        except pa.ArrowIndexError:
            return False
    return True


def list_named(layers: Mapping[str | None, Any]) -> list[tuple[str, Any]]:
    return [(name, layers[name]) for name in layers if name is not None]
