from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from atlasvi.loaders.errors import CountsError, GeneError, MissingDependencyError
from atlasvi.loaders.ingestion.variable_genes import Blocks, find_variable_genes

pytest.importorskip("skmisc")


def in_blocks(counts: sp.csr_matrix, codes: np.ndarray, size: int) -> Blocks:
    def blocks() -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
        for start in range(0, counts.shape[0], size):
            yield counts[start : start + size], codes[start : start + size]

    return blocks


def find(counts: sp.csr_matrix, codes: np.ndarray, n_top: int, size: int = 777, **options: object) -> pd.DataFrame:
    return find_variable_genes(in_blocks(counts, codes, size), counts.shape[1], int(codes.max()) + 1, n_top, **options)


def draw(n_cells: int, n_genes: int, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(-0.5, 1.5, n_genes)
    return sp.csr_matrix(rng.poisson(rng.gamma(2, mean / 2, (n_cells, n_genes))).astype(np.uint16))


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal to the last bit up to scanpy 1.11; later ones differ from it by up to 1% in the normalised variances."""
    if version("scanpy").startswith("1.11."):
        for column in expected.columns.drop("gene_name", errors="ignore"):
            np.testing.assert_array_equal(found[column], expected[column], err_msg=column)
        return
    for column in ("means", "variances", "variances_norm"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-2, err_msg=column)
    chosen, theirs = (table["highly_variable"].to_numpy() for table in (found, expected))
    assert (chosen & theirs).sum() >= 0.9 * theirs.sum()


@pytest.mark.parametrize(
    ("name", "batch_key", "n_top", "span"),
    [
        ("pbmc3k", None, 500, 0.3),
        ("pbmc3k", None, 2000, 0.3),
        ("onek1k", "cell_type", 100, 0.3),
        ("onek1k", "cell_type", 500, 0.3),
        # Donors of about 195 cells: scanpy's own span of 0.3 ends in "near singularities" there.
        ("onek1k", "indiv", 100, 1.0),
        ("onek1k", "indiv", 500, 1.0),
        ("worm_embryo", None, 100, 0.3),
        ("worm_embryo", "batch", 100, 1.0),
        ("worm_embryo", "batch", 2000, 1.0),
    ],
)
def test_the_table_is_scanpys_to_the_last_bit(
    shared: Path, name: str, batch_key: str | None, n_top: int, span: float
) -> None:
    scanpy = pytest.importorskip("scanpy")
    data = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
    data.X = sp.csr_matrix(data.X)
    # Sorted by name, as scanpy goes through batches: the mean over them depends on the order in its last bit.
    codes = np.unique(data.obs[batch_key], return_inverse=True)[1] if batch_key else np.zeros(data.n_obs, int)
    expected = scanpy.pp.highly_variable_genes(
        data, flavor="seurat_v3", batch_key=batch_key, n_top_genes=n_top, span=span, inplace=False
    )
    found = find(data.X.astype(np.uint16), codes, n_top, spans=(span,))
    assert found["highly_variable"].sum() == n_top
    assert_same(found, expected)


def test_genes_that_are_constant_or_never_seen_agree_with_scanpy() -> None:
    scanpy = pytest.importorskip("scanpy")
    counts = draw(400, 300).toarray()
    counts[:, 7], counts[:, 8], counts[:200, 9] = 0, 3, 0
    data = anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    data.obs["batch"] = pd.Categorical(np.repeat(["a", "b"], 200))
    expected = scanpy.pp.highly_variable_genes(
        data, flavor="seurat_v3", batch_key="batch", n_top_genes=50, inplace=False
    )
    found = find(sp.csr_matrix(counts), np.repeat([0, 1], 200), 50)
    assert_same(found, expected)


def test_the_choice_does_not_depend_on_the_size_of_blocks() -> None:
    counts, codes = draw(500, 200), np.arange(500) % 2
    first = find(counts, codes, 40, size=500)
    for size in (1, 7, 499):
        pd.testing.assert_frame_equal(find(counts, codes, 40, size=size), first, check_exact=True)


def test_batches_too_small_to_fit_have_no_vote_and_narrow_ones_get_a_wider_span() -> None:
    counts = draw(400, 300)
    codes = np.repeat([0, 2, 3], [395, 4, 1])  # 1 is a category without cells
    found = find(counts, codes, 40)
    spans = found.attrs["spans"]
    assert spans[0] == 0.3
    assert spans[2] > 0.3
    assert set(spans) == {0, 2}
    alone = find(counts[:399], np.repeat([0, 1], [395, 4]), 40)
    columns = ["highly_variable", "highly_variable_rank", "highly_variable_nbatches", "variances_norm"]
    pd.testing.assert_frame_equal(found[columns], alone[columns], check_exact=True)


@pytest.mark.parametrize("shape", [(1, 50), (5, 2), (5, 3), (5, 4), (3, 1)])
def test_data_on_which_no_variance_can_be_fitted_are_refused_in_a_sentence(shape: tuple[int, int]) -> None:
    with pytest.raises(CountsError, match=f"the largest of {shape[0]} cells"):
        find(draw(*shape), np.zeros(shape[0], dtype=np.int64), 1)


@pytest.mark.parametrize("n_top", [0, 51])
def test_a_number_of_genes_that_is_not_there_is_refused(n_top: int) -> None:
    with pytest.raises(GeneError, match="of 50: ask for 1 to 50"):
        find(draw(20, 50), np.zeros(20, dtype=np.int64), n_top)


def test_without_scikit_misc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skmisc.loess", None)
    with pytest.raises(MissingDependencyError, match=r"atlasvi\[genes\]"):
        find(draw(20, 50), np.zeros(20, dtype=np.int64), 5)
