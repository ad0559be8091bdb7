"""Many sources are read with few files open."""

import resource
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources import reopened_sources as reopened
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.reopened_sources import open_many
from tests.loaders.conftest import make_counts


def write_many(folder: Path, n: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{k:02d}.h5ad" for k in range(n)]
    for k, path in enumerate(paths):
        var = pd.DataFrame(index=[f"g{j}" for j in range(6)])
        obs = pd.DataFrame({"n": np.arange(3)}, index=[f"c{k}_{i}" for i in range(3)])
        ad.AnnData(make_counts(3, 6, seed=k), obs, var).write_h5ad(path)
    return paths


def test_sources_are_closed_and_opened_again_and_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(reopened, "MOST_OPEN", 2)
    paths = write_many(tmp_path / "in", 5)
    opened = open_many([DataSpec(str(path)) for path in paths])
    for k in (4, 0, 2, 0, 3):
        assert (opened[k].read_counts(0, 3) != make_counts(3, 6, seed=k)).nnz == 0
        assert opened[k].read_obs(0, 1).index.tolist() == [f"c{k}_0"]
        assert sum(source._source is not None for source in opened) == 2
    assert opened[0].var is opened[4].var  # equal tables are held once
    for source in opened:
        source.close()


def test_a_store_is_the_same_whether_its_sources_stay_open(tmp_path, monkeypatch):
    paths = write_many(tmp_path / "in", 5)
    ingest(paths, tmp_path / "all")
    monkeypatch.setattr(reopened, "MOST_OPEN", 2)
    ingest(paths, tmp_path / "few", workers=1)
    names = [file.relative_to(tmp_path / "all") for file in (tmp_path / "all").rglob("*") if file.is_file()]
    assert all((tmp_path / "all" / name).read_bytes() == (tmp_path / "few" / name).read_bytes() for name in names)


def test_more_sources_than_a_process_may_open_files_are_ingested(tmp_path):
    paths = write_many(tmp_path / "in", 70)
    program = (
        "import sys; from atlasvi.loaders import ingest; print(ingest(sys.argv[2:], sys.argv[1], workers=1).n_cells)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    command = [sys.executable, "-c", program, str(tmp_path / "store"), *map(str, paths)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.stdout == "210\n", done.stderr
