import os
import resource
import signal
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.minified import minified_h5ad
from atlasvi.engine.minified.kept_posterior import MINIFIED, MINIFY_TYPE
from atlasvi.engine.minified.minified_anndata import MinifiedAnnData
from atlasvi.engine.minified.minified_h5ad import plan_h5ad, write_h5ad

N_CELLS = 3000


def make_cells(n_cells: int = N_CELLS) -> anndata.AnnData:
    """Minified cells in memory, with a column of each kind."""
    random, numbers = np.random.default_rng(0), np.arange(n_cells)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(["a", "b", "c"])[numbers % 3], categories=["a", "b", "c", "none has it"]),
            "barcode": [f"barcode {k:09d}" for k in numbers],
            "note": [None if k % 7 == 0 else "seen" for k in numbers],
            "id": pd.array([None if k % 5 == 0 else k for k in numbers.tolist()], "Int64"),
            "sick": pd.array([None if k % 5 == 0 else k % 2 == 0 for k in numbers], "boolean"),
            "score": random.normal(size=n_cells).astype(np.float32),
            "kept": numbers % 2 == 0,
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(numbers % 4, "D"),
            "phase": pd.Categorical((numbers % 2).astype(np.int16)),
            "observed_lib_size": random.uniform(1, 9, n_cells).astype(np.float32),
        },
        index=[f"cell {k}" for k in numbers],
    )
    var = pd.DataFrame({"symbol": [f"s{k}" for k in range(20)]}, index=[f"g{k}" for k in range(20)])
    latents = {f"scvi_latent_{name}": random.uniform(1, 2, (n_cells, 4)).astype(np.float32) for name in ("qzm", "qzv")}
    return anndata.AnnData(None, obs, var, obsm=latents, uns={MINIFIED: MINIFY_TYPE})


@pytest.mark.parametrize("rows", [None, np.array([0, 5, 999, 1000, 2999])])
def test_all_columns_are_written_in_slices_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows):
    monkeypatch.setattr(minified_h5ad, "SLICE_CELLS", 1000)
    cells = make_cells()
    cells.var.index.name = "gene_ids"
    write_h5ad(plan_h5ad(MinifiedAnnData(cells)), tmp_path / "x.h5ad", rows, ["counts"])
    found, expected = anndata.read_h5ad(tmp_path / "x.h5ad"), cells if rows is None else cells[rows]
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert list(found.obs) == list(expected.obs)
    for name in expected.obs:
        column = expected.obs[name].astype(str) if name == "day" else expected.obs[name]
        if name == "day":
            column = column.str.removesuffix(" 00:00:00")
            found.obs[name] = found.obs[name].astype(str).str.removesuffix(" 00:00:00")
        values = ([None if pd.isna(value) else value for value in each] for each in (found.obs[name], column))
        assert next(values) == next(values)
    assert found.obs["note"].dtype == "category"
    assert found.obs["batch"].cat.categories.tolist() == ["a", "b", "c", "none has it"]
    for name in expected.obsm:
        assert np.array_equal(found.obsm[name], expected.obsm[name])
    assert found.X.shape == found.layers["counts"].shape == expected.shape
    assert found.X.nnz == found.layers["counts"].nnz == 0
    assert found.var["symbol"].tolist() == cells.var["symbol"].tolist()
    assert found.var.index.name == "gene_ids"


def test_the_size_of_the_file_is_known_before_it_is_written(tmp_path: Path):
    plan = plan_h5ad(MinifiedAnnData(make_cells()))
    for name, rows in (("all", None), ("some", np.arange(0, N_CELLS, 2))):
        write_h5ad(plan, tmp_path / name, rows)
        n_cells = N_CELLS if rows is None else len(rows)
        assert plan.estimate_bytes(n_cells) == pytest.approx((tmp_path / name).stat().st_size, rel=0.1)


def test_memory_is_that_of_a_slice_of_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minified_h5ad, "SLICE_CELLS", 500)
    peaks = []
    for n_cells in (1000, 1000, 4000):  # the first imports what is imported when it is needed
        cells = make_cells(n_cells)
        del cells.obs["barcode"]  # up to 10,000 different texts of a column are kept, to see whether it has few
        minified = MinifiedAnnData(cells)
        tracemalloc.start()
        write_h5ad(plan_h5ad(minified), tmp_path / f"{len(peaks)}.h5ad")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


def test_no_cells_are_a_file_too(tmp_path: Path):
    write_h5ad(plan_h5ad(MinifiedAnnData(make_cells(1)[:0].copy())), tmp_path / "x.h5ad")
    assert anndata.read_h5ad(tmp_path / "x.h5ad").shape == (0, 20)


@pytest.mark.parametrize("most_bytes", [4096, 60_000, 150_000])
def test_a_disk_that_fills_at_any_time_is_an_error_of_the_system_and_not_of_hdf5(tmp_path: Path, most_bytes: int):
    plan, limits = plan_h5ad(MinifiedAnnData(make_cells())), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_h5ad(plan, tmp_path / "x.h5ad")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    os.unlink(tmp_path / "x.h5ad")
