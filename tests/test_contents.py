"""The packages' tables of contents: what is promised is there, and editors and mypy see it."""

import ast
import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["atlasvi.loaders", "atlasvi.engine"])
def test_what_is_promised_is_there_and_typed(package: str):
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == module._PLACES
    for name, place in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(str(place)), name)
        assert name in dir(module)
