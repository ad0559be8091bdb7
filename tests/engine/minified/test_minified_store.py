"""A minified store is asked by row and by name, whichever format and dtype of latents it has."""

import json
import tarfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minified_store import NAMES, MinifiedStore, choose_inner_rows, to_stored
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.engine.queries.cell_choice import choose_cells, count_cells
from atlasvi.engine.queries.minified_queries import read_expression
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError, OutputError, SourceError
from atlasvi.loaders.outputs import name_scratch

N = 700
GENES = [f"g{k}" for k in range(12)]
NAME_OF = [f"cell {k}" if k != 300 else "cell 7" for k in range(N)]  # one name occurs twice
OLD = Path(__file__).parents[2] / "golden" / "runs" / "unversioned.tar.gz"


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    settings = ModelSettings(n_genes=12, n_batches=2, n_hidden=8, n_latent=3, n_layers=1)
    model = VAE(settings, torch.Generator().manual_seed(0)).eval()
    return TrainedRun(model, GENES, Setup.from_saved({"batch_key": "batch", "batch_categories": ["a", "b"]}))


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "counts.h5ad"
    generator = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(list("ab") * (N // 2)),
            "kind": pd.Categorical([["B", "T", None][k % 3] for k in range(N)]),
            "text": [f"note {k}" for k in range(N)],
            "whole": pd.array([None if k % 5 == 0 else k for k in range(N)], "Int64"),
            "sure": np.arange(N) % 7 == 0,
        },
        index=NAME_OF,
    )
    matrix = generator.poisson(1.0, (N, 12)).astype(np.float32)
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


@pytest.fixture(scope="module", params=["float32", "float16"])
def mini(request: pytest.FixtureRequest, run: TrainedRun, counts: Path, tmp_path_factory) -> MinifiedStore:
    path = tmp_path_factory.mktemp("mini") / "mini"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 256)
        minify(run, counts, path, batch_size=64, latents=request.param)
    return MinifiedStore(path)


def test_chosen_rows_are_those_of_the_whole(mini: MinifiedStore):
    qzm, qzv = mini.read_latent(0, N)
    rows = np.array([0, 7, 255, 256, 511, 650, N - 1])
    for found, whole in zip(mini.take_latent(rows), (qzm, qzv)):
        assert found.dtype == np.float32
        assert np.array_equal(found, whole[rows])
    assert np.array_equal(mini.take_mean(rows), qzm[rows])
    assert mini.take_names(rows).tolist() == [NAME_OF[row] for row in rows]
    for name in mini.obs_columns:
        taken, whole = mini.take_column(name, rows), mini.read_column(name)
        assert taken.dtype == whole.dtype
        pd.testing.assert_series_equal(taken, whole.iloc[rows].reset_index(drop=True))
    assert [len(part) for part in mini.take_latent(rows[:0])] == [0, 0]
    with pytest.raises(ColumnError, match=r"no column 'knd' .* Did you mean 'kind'\?"):
        mini.take_column("knd", rows)


def test_names_are_found_by_the_index_and_a_name_that_repeats_in_all_its_cells(mini: MinifiedStore, monkeypatch):
    monkeypatch.setattr(MinifiedStore, "read_names", None)  # all names are not read
    assert choose_cells(mini, names=["cell 7", "cell 699"]).tolist() == [7, 300, 699]
    assert choose_cells(mini, names=["cell 7", "cell 8"], where="kind=B,T").tolist() == [7, 300]
    assert count_cells(mini, names=["cell 7"]) == 2
    with pytest.raises(QueryError, match=r"1 of the cells do not exist \(first: 'cell 300'\)"):
        choose_cells(mini, names=["cell 300", "cell 7"])


def test_one_cell_all_cells_and_none_are_answered(mini: MinifiedStore):
    assert [len(values) for _, values in read_expression(mini, ["g3"], choose_cells(mini, names=["cell 5"]))] == [1]
    assert sum(len(values) for _, values in read_expression(mini, cells=choose_cells(mini))) == N
    assert list(read_expression(mini, cells=np.empty(0, np.int64))) == []


def test_it_is_plain_anndata_and_float16_is_close(mini: MinifiedStore, run: TrainedRun, counts: Path, tmp_path: Path):
    adata = anndata.read_zarr(mini.path)
    minify(run, counts, tmp_path / "mini")
    exact = MinifiedStore(tmp_path / "mini").read_latent(0, N)
    half = adata.obsm["scvi_latent_qzm"].dtype == np.float16
    for name, found, values in zip(("qzm", "qzv"), mini.read_latent(0, N), exact):
        assert np.array_equal(adata.obsm[f"scvi_latent_{name}"].astype(np.float32), found)
        assert np.allclose(found, values, rtol=2**-11 if half else 1e-5, atol=1e-6)
    assert adata.obs_names.tolist() == NAME_OF


def test_a_small_variance_does_not_become_zero_and_a_value_too_large_for_float16_is_refused():
    half = np.dtype(np.float16)
    stored = to_stored(np.array([[1e-12, 0.3, 65_504.0]], np.float32), half, "qzv", 0)
    assert stored.dtype == half
    assert (stored > 0).all()
    assert np.isfinite(stored).all()
    assert stored[0, 0] == pytest.approx(6e-8, rel=0.01)
    with pytest.raises(OutputError, match=r"qzv of cell 1,001 is 70000, and float16 holds numbers up to 65,504"):
        to_stored(np.array([[1.0], [70_000.0]], np.float32), half, "qzv", 1_000)
    assert to_stored(np.array([[-1e-12, np.nan]], np.float32), half, "qzm", 0)[0, 0] == 0


def test_inner_chunks_divide_the_files():
    assert choose_inner_rows(65_536, 256) == 256
    assert choose_inner_rows(65_000, 256) == 250
    assert choose_inner_rows(50, 256) == 50
    assert choose_inner_rows(65_537, 256) == 65_537  # a prime number of cells: one chunk


def test_a_store_of_the_first_format_is_asked_in_the_same_way(tmp_path: Path):
    with tarfile.open(OLD) as file:
        file.extractall(tmp_path, filter="data")
    store = MinifiedStore(tmp_path / "finished.mini")
    assert store.attributes["format_version"] == 1
    assert not (tmp_path / "finished.mini" / NAMES).exists()
    names, rows = store.read_names(), np.array([0, 3, store.n_cells - 1])
    assert choose_cells(store, names=list(names[rows])).tolist() == rows.tolist()
    assert np.array_equal(store.take_latent(rows)[0], store.read_latent(0, store.n_cells)[0][rows])
    assert store.take_names(rows).tolist() == names[rows].tolist()


def test_text_of_which_none_is_missing_is_plain_and_the_list_of_files_knows_it(run, counts: Path, tmp_path: Path):
    adata = anndata.read_h5ad(counts)
    adata.obs["gaps"] = adata.obs["text"].where(adata.obs["sure"])
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.obs[["text", "gaps"]] = adata.obs[["text", "gaps"]].astype("string")
        adata.write_h5ad(tmp_path / "text.h5ad")
    minify(run, tmp_path / "text.h5ad", tmp_path / "mini")
    store = MinifiedStore(tmp_path / "mini")
    assert store.take_column("text", np.array([3, 5])).tolist() == ["note 3", "note 5"]
    assert store.take_column("gaps", np.array([6, 7])).isna().tolist() == [True, False]


def test_a_damaged_index_of_names_is_noticed_and_an_incomplete_store_too(run: TrainedRun, counts: Path, tmp_path: Path):
    minify(run, counts, tmp_path / "mini")
    path = tmp_path / "mini" / NAMES
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"names.index is damaged"):
        choose_cells(MinifiedStore(tmp_path / "mini"), names=["cell 7"])
    path.unlink()
    with pytest.raises(SourceError, match=r"names.index is missing"):
        MinifiedStore(tmp_path / "mini")


def test_a_store_that_is_being_made_is_said_to_be(run: TrainedRun, counts: Path, tmp_path: Path):
    said: list[str] = []

    def look(stage: str, done: int, total: int) -> None:
        assert name_scratch(tmp_path / "mini").exists()
        with pytest.raises(SourceError, match="is not a minified store yet: it is being made, or its minify was inter"):
            MinifiedStore(tmp_path / "mini")
        said.append(stage)

    minify(run, counts, tmp_path / "mini", progress=look)
    assert set(said) == {"encoding", "indexing names"}
    assert json.loads((tmp_path / "mini" / "zarr.json").read_text())["attributes"]["atlasvi"]["format_version"] == 3
