"""Experiments as tiledbsoma writes them."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import pytest


def write_soma(adata: ad.AnnData, path: Path, **options: object) -> Path:
    """Write an AnnData as an experiment, with the measurement RNA unless another is named.

    TileDB orders what it writes by milliseconds: of two schemas of one millisecond, which files in memory now and then
    have, the older one can be taken for the newer, and categories are missing. Then the experiment is written anew.
    """
    io = pytest.importorskip("tiledbsoma.io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # From 0.13 on anndata lists X among the layers as None, for which tiledbsoma 2.3 finds no name.
        with mock.patch.object(type(adata.layers), "items", list_named):
            while True:
                io.from_anndata(str(path), adata, **({"measurement_name": "RNA"} | options))
                if has_all_categories(path):
                    return path
                shutil.rmtree(path)


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
