"""What an ingest would take is measured on some of its cells, and what would be wrong is said."""

from pathlib import Path

import pytest

from atlasvi.loaders.errors import ColumnError, CountsError, OutputError
from atlasvi.loaders.ingestion import ingest_estimate as module
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.ingestion.ingest_estimate import estimate_ingest
from tests.loaders.conftest import make_counts


def test_the_size_is_that_of_the_store_and_nothing_is_written(write_h5ad, tmp_path: Path, monkeypatch):
    sources = [write_h5ad("a", make_counts(600, 40)), write_h5ad("b", make_counts(300, 40, seed=1))]
    before = sorted(tmp_path.rglob("*"))
    found = estimate_ingest(sources, tmp_path / "store", workers=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.n_cells, found.n_genes, found.n_tried) == (900, 40, 900)
    assert found.seconds > 0
    assert "Genes that all sources have: 40 of 40." in found.notes
    monkeypatch.setattr(module, "TRIAL_NNZ", 2000)  # several runs of cells, of both sources
    ingest(sources, tmp_path / "store", workers=1)
    written = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert found.disk_bytes == pytest.approx(written, rel=0.05)
    some = estimate_ingest(sources, tmp_path / "other", workers=1)
    assert some.n_tried <= 900
    assert some.disk_bytes == pytest.approx(written, rel=1)  # a chunk of few cells has its own index and metadata


def test_what_is_wrong_is_said_as_ingest_would(write_h5ad, tmp_path: Path):
    negative = make_counts(50, 10)
    negative.data[3] = -1
    with pytest.raises(CountsError, match="negative"):
        estimate_ingest(write_h5ad("negative", negative), tmp_path / "store")
    path = write_h5ad("a", make_counts(50, 10))
    with pytest.raises(ColumnError, match="no column 'donor'"):
        estimate_ingest(path, tmp_path / "store", batch_key="donor", top_genes=5)
    with pytest.raises(OutputError, match="exists already"):
        estimate_ingest(path, path)


def test_data_by_gene_is_not_sorted_for_an_estimate(write_h5ad, tmp_path: Path):
    found = estimate_ingest(write_h5ad("a", make_counts(50, 10).tocsc()), tmp_path / "store", top_genes=5)
    assert (found.n_tried, found.seconds) == (0, None)
    assert any("ordered by gene" in note for note in found.notes)
    assert any("5 are kept" in note for note in found.notes)
