"""The parts of a run before its first step."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.training import fingerprint as fingerprints
from atlasvi.engine.training.run_parts import RunParts, prepare_run
from atlasvi.engine.training.settings import resolve_settings
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec

BLOCK_CELLS = 2**15


class LazyCells(Cells):
    """Stands for a store of any number of cells, with three covariates; it holds nothing of them."""

    path, layer, group_blocks, n_cells, block_starts = "lazy.store", None, 2, 0, np.zeros(1, np.int64)
    genes = pd.Index(["a", "b"])
    obs_columns = ("donor", "site", "age")
    spec = DataSpec(path)

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self.block_starts = np.append(np.arange(0, n_cells, BLOCK_CELLS), n_cells)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        cells = np.arange(start, self.n_cells if stop is None else stop)
        if name == "age":
            return pd.Series(cells % 90 + 0.5)
        n = {"donor": 256, "site": 300}[name]
        return pd.Series(pd.Categorical.from_codes(cells % n, [f"{name}{k}" for k in range(n)]))

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        return cell_keys(0, np.arange(start, stop))

    def read_block(self, block: int) -> Rows:
        ends = np.arange(self.block_starts[block + 1] - self.block_starts[block] + 1)
        return Rows.from_csr(int(self.block_starts[block]), ends, ends[1:].astype(np.uint16) % 2, ends[1:] * 0 + 1)


def build(n_cells: int) -> RunParts:
    """The parts of a run on that many cells."""
    data = LazyCells(n_cells)
    keys = SetupKeys(batch_key="donor", categorical_covariate_keys=("site",), continuous_covariate_keys=("age",))
    setup = learn_setup(data, keys)
    arguments, settings = {"seed": 0, "split_column": None}, resolve_settings(None, {"epochs": 1})
    return prepare_run(data, Path("run"), setup, arguments, settings, "cpu")


def measure(n_cells: int) -> tuple[int, int]:
    """(bytes that a run holds before its first step, the most that it held on the way)."""
    tracemalloc.start()
    try:
        parts = build(n_cells)
        assert parts.loaders["train"].n_cells + parts.loaders["validation"].n_cells == n_cells
        dtypes = {name: values.dtype for name, values in parts.codes.items()}
        assert dtypes == {"batch": np.uint8, "categories": np.uint16, "continuous": np.float32}
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_a_run_holds_at_most_four_bytes_for_each_cell_and_covariate_at_any_moment():
    build(2**17)  # imports and compiles once, which takes long where memory is traced
    few, many = 2**18, 3 * 2**17
    (held_few, peak_few), (held_many, peak_many) = measure(few), measure(many)
    # codes of 1, 2 and 4 bytes, and a bit for each of three masks
    assert (held_many - held_few) / (many - few) == pytest.approx(7 + 3 / 8, abs=0.4)
    assert (peak_many - peak_few) / (many - few) < 4 * 3


def test_the_fingerprint_of_a_block_is_the_hash_of_its_wide_values(monkeypatch):
    monkeypatch.setattr(fingerprints, "HASHED", 1000)  # a block has 32,768 counts
    data = LazyCells(2 * BLOCK_CELLS)
    wide = b"".join(part.astype(np.int64).tobytes() for part in data.read_block(1).to_csr())
    assert fingerprints.fingerprint(data)["last_block_sha256"] == hashlib.sha256(wide).hexdigest()[:16]
