"""Several sources as one: how many genes they must share, and what becomes of fractions."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from atlasvi.loaders.errors import CountsError, GeneError
from atlasvi.loaders.ingestion.ingest import ingest


def write(path: Path, genes: list[str], rows: list[list[float]] | None = None) -> Path:
    matrix = np.array(rows or [[1.0] * len(genes), [2.0] * len(genes)])
    obs = pd.DataFrame(index=[f"{path.stem}{k}" for k in range(len(matrix))])
    ad.AnnData(sparse.csr_matrix(matrix), obs, pd.DataFrame(index=genes)).write_h5ad(path)
    return path


def test_sources_that_share_few_genes_are_joined_only_if_that_is_said(tmp_path):
    paths = [write(tmp_path / "a.h5ad", list("ABCDEF")), write(tmp_path / "b.h5ad", list("FGHI"))]
    with pytest.raises(GeneError, match=r"share 1 of 4 genes .*--gene-column NAME.* pass --genes union"):
        ingest(paths, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    report = ingest(paths, tmp_path / "store", genes="union")
    assert report.n_genes == 9
    assert "Genes that all sources have: 1 of 9." in report.notes
    assert ingest(paths, tmp_path / "few", genes="intersection").n_genes == 1


def test_a_panel_inside_a_transcriptome_is_joined_without_a_question(tmp_path):
    paths = [write(tmp_path / "a.h5ad", [f"g{k}" for k in range(40)]), write(tmp_path / "b.h5ad", ["g3", "g7", "x"])]
    report = ingest(paths, tmp_path / "store")
    assert report.notes == ["Genes that all sources have: 2 of 41."]


@pytest.mark.parametrize("shared", [[], ["GFP"]])
def test_ids_that_differ_by_their_versions_are_recognised(tmp_path, shared):
    ids = [f"ENSG0000000000{k}" for k in range(6)]
    paths = [write(tmp_path / "a.h5ad", ids + shared), write(tmp_path / "b.h5ad", [f"{g}.2" for g in ids] + shared)]
    with pytest.raises(GeneError, match=rf"without the versions .* {6 + len(shared)}: pass PATH::gene_versions=drop"):
        ingest(paths, tmp_path / "store")
    report = ingest([f"{path}::gene_versions=drop" for path in paths], tmp_path / "store")
    assert report.n_genes == 6 + len(shared)


def test_fractions_are_rounded_if_asked_for_and_their_share_is_told(tmp_path):
    path = write(tmp_path / "a.h5ad", list("ABC"), [[1.4, 0.2, 3.0], [0.0, 2.0000001, 0.6]])
    with pytest.raises(CountsError, match=r"first: 1\.4 at cell 'a0', gene 'A'\).* ingest --round rounds them"):
        ingest(path, tmp_path / "store")
    report = ingest(path, tmp_path / "store", rounded=True)
    assert report.notes == ["4 of 5 stored values (80.00%) were not whole numbers and were rounded."]
    store = ad.read_zarr(tmp_path / "store")
    assert store[["a0", "a1"]].X.toarray().tolist() == [[1, 0, 3], [0, 2, 1]]
    assert report.nnz == 4  # 0.2 is no count any more


@pytest.mark.parametrize(("value", "found"), [(-0.7, "negative values"), (np.nan, "NaN"), (np.inf, "infinite")])
def test_what_rounding_makes_no_count_of_is_refused_all_the_same(tmp_path, value, found):
    path = write(tmp_path / "a.h5ad", list("AB"), [[1.0, value], [2.0, 2.0]])
    with pytest.raises(CountsError, match=found):
        ingest(path, tmp_path / "store", rounded=True)


def test_almost_whole_values_are_shown_in_full(tmp_path):
    path = write(tmp_path / "a.h5ad", list("AB"), [[1.0, 2.0000000000000004], [2.0, 2.0]])
    with pytest.raises(CountsError, match=r"first: 2\.0000000000000004 at"):
        ingest(path, tmp_path / "store")
