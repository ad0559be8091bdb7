"""Experiments as tiledbsoma writes them."""

import warnings
from collections.abc import Mapping
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
            io.from_anndata(str(path), adata, **({"measurement_name": "RNA"} | options))
    return path


def list_named(layers: Mapping[str | None, Any]) -> list[tuple[str, Any]]:
    return [(name, layers[name]) for name in layers if name is not None]
