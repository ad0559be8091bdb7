"""What an ingest promises, whoever does the work and wherever it is stopped.

The file is long because all of it is of one function, `ingest`, on sources of many kinds.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import ColumnError, CountsError, GeneError, OutputError, SourceError
from atlasvi.loaders.ingestion import bucket_sorting as sorting
from atlasvi.loaders.ingestion import ingest as module
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources import joined
from tests.loaders.conftest import make_counts


def assert_same_cells(store: anndata.AnnData, sources: dict[str, anndata.AnnData]) -> None:
    """Each row of the store is the row of its source that `source` and `source_row` name."""
    assert len(store) == sum(map(len, sources.values()))
    for path, source in sources.items():
        here = store[(store.obs["source"] == path).to_numpy()]
        rows = here.obs["source_row"].to_numpy()
        assert sorted(rows) == list(range(len(source)))
        shared = source.var_names[source.var_names.isin(store.var_names)]
        assert (here[:, shared].X != source[rows][:, shared].X).nnz == 0
        others = here[:, ~here.var_names.isin(shared)].X
        assert others.nnz == 0
        assert here.obs_names.tolist() == source.obs_names[rows].tolist()


def test_a_store_is_plain_anndata_and_holds_every_cell_as_its_source_does(write_h5ad, tmp_path: Path):
    path = write_h5ad("a", make_counts(300, 50, largest=300))
    report = ingest(path, tmp_path / "store")
    store, source = anndata.read_zarr(tmp_path / "store"), anndata.read_h5ad(path)
    assert_same_cells(store, {str(path): source})
    assert (report.n_cells, report.n_genes, report.largest_count) == (300, 50, 300)
    assert store.X.dtype == np.uint16
    assert store.X.indices.dtype == np.uint16
    rows = store.obs["source_row"].to_numpy()
    assert rows.tolist() != sorted(rows)
    for name in ("batch", "n", "note"):
        assert store.obs[name].tolist() == source.obs[name].iloc[rows].tolist()


def test_statistics_of_the_store_are_those_of_the_counts(write_h5ad, tmp_path: Path):
    counts = make_counts(200, 30)
    ingest(write_h5ad("a", counts), tmp_path / "store")
    store = open_cells(tmp_path / "store")
    assert np.array_equal(store.statistics["gene_totals"], np.asarray(counts.sum(0)).ravel())
    assert np.array_equal(store.statistics["gene_cells"], counts.getnnz(0))
    log_library = np.log(np.asarray(counts.sum(1)).ravel())
    per_batch = [log_library[k::3] for k in range(3)]
    expected = [[len(values), values.sum(), (values**2).sum()] for values in per_batch]
    assert np.allclose(store.statistics["library"]["batch"], expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    piece_nnz=st.sampled_from([1, 50, 10_000]),
    unit_nnz=st.sampled_from([30, 500, 10_000]),
    bucket_nnz=st.sampled_from([100, 10_000]),
    chunk=st.sampled_from([8, 64, 10_000]),
    cells=st.integers(1, 60),
)
def test_any_pieces_units_buckets_and_chunks_keep_every_cell(
    write_h5ad, tmp_path_factory, piece_nnz, unit_nnz, bucket_nnz, chunk, cells
):
    tmp_path = tmp_path_factory.mktemp("ingest")
    path = write_h5ad("a", make_counts(cells, 7, seed=cells))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined.JoinedSources.pieces, "__defaults__", (piece_nnz,))
        patch.setattr(sorting, "UNIT_NNZ", unit_nnz)
        patch.setattr(module, "BUCKET_NNZ", bucket_nnz)
        patch.setattr(cell_store, "CHUNK", chunk)
        patch.setattr(cell_store, "BLOCK_CHUNKS", 3)
        ingest(path, tmp_path / "store", workers=1)
    assert_same_cells(anndata.read_zarr(tmp_path / "store"), {str(path): anndata.read_h5ad(path)})
    if find_spec("torch") is not None:  # batches are its tensors
        from atlasvi.loaders.batches.loader import BatchLoader

        seen = [batch.rows.numpy() for batch in BatchLoader(tmp_path / "store", 16, seed=0)]
        assert sorted(np.concatenate(seen)) == list(range(cells))


def test_the_order_depends_on_the_seed_alone_not_on_the_pieces(write_h5ad, tmp_path: Path, monkeypatch):
    path = write_h5ad("a", make_counts(100, 9))
    orders = []
    for name, seed, piece, unit in (("x", 0, 10, 50), ("y", 0, 1000, 10**6), ("z", 1, 10, 50)):
        monkeypatch.setattr(joined.JoinedSources.pieces, "__defaults__", (piece,))
        monkeypatch.setattr(sorting, "UNIT_NNZ", unit)
        ingest(path, tmp_path / name, seed=seed, workers=1)
        orders.append(anndata.read_zarr(tmp_path / name).obs["source_row"].tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def many_tasks(monkeypatch) -> None:
    """Small units and buckets, so that a small file makes several of each."""
    monkeypatch.setattr(sorting, "UNIT_NNZ", 500)
    monkeypatch.setattr(module, "BUCKET_NNZ", 700)
    monkeypatch.setattr(cell_store, "CHUNK", 64)


@pytest.mark.parametrize("how", ["processes", "dask"])
def test_whoever_does_the_work_the_store_is_the_same_to_the_byte(write_h5ad, tmp_path: Path, many_tasks, how: str):
    paths = [write_h5ad("a", make_counts(300, 20)), write_h5ad("b", make_counts(200, 20, seed=1, largest=400))]
    alone = ingest(paths, tmp_path / "alone", workers=1)
    if how == "processes":
        others = ingest(paths, tmp_path / "others", workers=3)
    else:
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            others = ingest(paths, tmp_path / "others", dask=cluster.scheduler_address)
    assert dataclasses.replace(others, out=alone.out) == alone
    assert files_of(tmp_path / "others") == files_of(tmp_path / "alone")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_the_same_sentence_and_leaves_nothing(write_h5ad, tmp_path: Path, many_tasks, workers):
    counts = make_counts(300, 20)
    counts.data[-1] = 0.5
    path = write_h5ad("a", counts)
    with pytest.raises(CountsError, match=r"values that are not whole numbers.*cell 'a_299'"):
        ingest(path, tmp_path / "store", workers=workers)
    assert os.listdir(tmp_path) == ["a.h5ad"]


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    ("stage", "workers"),
    [
        ("reading", 1),
        ("writing", 1),
        ("joining", 1),
        ("writing", 2),
        pytest.param("reading", 2, marks=pytest.mark.slow),  # each starts four processes
        pytest.param("joining", 2, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_ingest_goes_on_with_what_was_not_finished(
    write_h5ad, tmp_path: Path, many_tasks, stage: str, workers: int
):
    path = write_h5ad("a", make_counts(500, 20))

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and 2 * done > total:
            raise Stop

    with pytest.raises(Stop):
        ingest(path, tmp_path / "store", workers=workers, progress=stop)
    scratch = tmp_path / ".store.unfinished"
    finished = {
        path: path.stat().st_mtime_ns for path in [*scratch.glob("sorted/*.json"), *scratch.glob("encoded/*.npz")]
    }
    assert finished
    touched: list[int] = []

    def look(now: str, done: int, total: int) -> None:
        touched.extend(path.stat().st_mtime_ns - time for path, time in finished.items())

    ingest(path, tmp_path / "store", workers=workers, progress=look)
    assert set(touched) == {0}
    ingest(path, tmp_path / "whole", workers=1)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["a.h5ad", "store", "whole"]


@pytest.mark.parametrize("stage", ["writing", "joining"])
def test_a_flipped_bit_in_what_a_stopped_ingest_left_is_noticed(write_h5ad, tmp_path: Path, many_tasks, stage: str):
    path, scratch, out = write_h5ad("a", make_counts(60, 20)), tmp_path / ".store.unfinished", tmp_path / "store"
    ingest(path, tmp_path / "whole", workers=1)

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and 2 * done > total:
            raise Stop

    with pytest.raises(Stop):
        ingest(path, out, workers=1, progress=stop)
    shutil.copytree(scratch, tmp_path / "kept")
    files = [file for file in sorted(scratch.rglob("*")) if file.is_file() and "result" not in file.parts]
    kinds = {file.suffix + file.parent.name: file.relative_to(scratch) for file in files}
    assert len(kinds) == 6
    for name in kinds.values():
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", scratch)
        content = bytearray((scratch / name).read_bytes())
        content[len(content) // 2] ^= 1
        (scratch / name).write_bytes(content)
        try:
            ingest(path, out, workers=1)
        except SourceError as error:
            assert "damaged or gone, so all of it is removed: give the same command again" in str(error)  # noqa: PT017
            assert not scratch.exists()
            ingest(path, out, workers=1)
        assert files_of(out) == files_of(tmp_path / "whole")


def test_what_an_older_version_left_is_not_gone_on_with(write_h5ad, tmp_path: Path, many_tasks):
    """It has no checksums: nobody could say that it is as it was written."""
    path, scratch = write_h5ad("a", make_counts(60, 20)), tmp_path / ".store.unfinished"

    def stop(now: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        ingest(path, tmp_path / "store", workers=1, progress=stop)
    for file in scratch.glob("*.json"):
        file.write_text(
            json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "crc32c"})
        )
    (scratch / "sorted" / "000000-0.part").write_bytes(b"of another version")
    ingest(path, tmp_path / "store", workers=1)
    assert_same_cells(anndata.read_zarr(tmp_path / "store"), {str(path): anndata.read_h5ad(path)})


def test_a_stopped_ingest_begins_anew_if_the_source_or_an_option_changed(write_h5ad, tmp_path: Path, many_tasks):
    path = write_h5ad("a", make_counts(500, 20))

    def stop(now: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        ingest(path, tmp_path / "store", workers=1, progress=stop)
    write_h5ad("a", make_counts(400, 20, seed=7))
    ingest(path, tmp_path / "store", seed=3, workers=1)
    assert_same_cells(anndata.read_zarr(tmp_path / "store"), {str(path): anndata.read_h5ad(path)})


def test_the_small_profile_holds_the_same_in_less_room(shared: Path, tmp_path: Path):
    sizes = {}
    for profile in ("fast", "small"):
        ingest(shared / "data/onek1k.h5ad", tmp_path / profile, profile=profile)
        sizes[profile] = sum(map(len, files_of(tmp_path / profile / "X").values()))
    fast, small = (anndata.read_zarr(tmp_path / profile) for profile in ("fast", "small"))
    assert (fast.X != small.X).nnz == 0
    assert fast.obs.equals(small.obs)
    assert sizes["small"] < 0.75 * sizes["fast"]


@pytest.mark.parametrize("how", ["union", "intersection"])
def test_files_whose_genes_differ_are_aligned_by_name(write_h5ad, tmp_path: Path, how: str):
    genes = {"a": ["g0", "g1", "g2"], "b": ["g2", "x", "g0", "y"], "c": ["g0", "z", "g2"]}
    paths = {
        name: write_h5ad(name, make_counts(20, len(names), seed=len(name), density=0.9), names)
        for name, names in genes.items()
    }
    ingest(list(paths.values()), tmp_path / "store", genes=how)
    store = anndata.read_zarr(tmp_path / "store")
    expected = ["g0", "g1", "g2", "x", "y", "z"] if how == "union" else ["g0", "g2"]
    assert store.var_names.tolist() == expected
    assert_same_cells(store, {str(path): anndata.read_h5ad(path) for path in paths.values()})
    assert store.obs["source"].cat.categories.tolist() == [str(path) for path in paths.values()]


@pytest.mark.parametrize("how", ["union", "intersection"])
def test_the_sc_mixology_files_ingest_together_exactly(shared: Path, tmp_path: Path, how: str):
    sources = {str(path): anndata.read_h5ad(path) for path in sorted((shared / "data/sc_mixology").glob("*.h5ad"))}
    ingest(list(sources), tmp_path / "store", genes=how)
    store = anndata.read_zarr(tmp_path / "store")
    assert store.n_vars == {"union": 17_601, "intersection": 11_872}[how]
    assert_same_cells(store, sources)
    lines = pd.concat([source.obs["cell_line"].astype(str) for source in sources.values()])
    assert store.obs["cell_line"].astype(str).tolist() == lines[store.obs_names].tolist()


def test_obs_columns_are_carried_along_with_categories_merged(write_h5ad, tmp_path: Path):
    counts = make_counts(4, 3)
    index = list("wxyz")
    first = pd.DataFrame(
        {"type": pd.Categorical(["B", "T", "B", "T"]), "age": [1, 2, 3, 4], "only": list("aabb")}, index
    )
    second = pd.DataFrame({"type": pd.Categorical(["NK", "B", "NK", "B"]), "age": [0.5, 1, 2, 3]}, index)
    third = pd.DataFrame({"type": pd.Categorical(["T", None, "T", "T"]), "flag": [True, False, True, False]}, index)
    tables = [first, second, third]
    paths = [write_h5ad(f"s{k}", counts, obs=table) for k, table in enumerate(tables)]
    ingest(paths, tmp_path / "store")
    obs = anndata.read_zarr(tmp_path / "store").obs.sort_values(["source", "source_row"])
    assert obs["type"].cat.categories.tolist() == ["B", "T", "NK"]
    assert obs["type"].astype(object).where(obs["type"].notna(), None).tolist() == [
        *first["type"], *second["type"], "T", None, "T", "T"
    ]  # fmt: skip
    assert np.array_equal(obs["age"], [1, 2, 3, 4, 0.5, 1, 2, 3] + [np.nan] * 4, equal_nan=True)
    assert obs["only"].isna().sum() == 8
    assert obs["only"].astype(str).tolist()[:4] == list("aabb")
    assert obs["flag"].astype(str).tolist()[8:] == ["True", "False", "True", "False"]


def test_a_store_can_be_ingested_again_and_keeps_its_provenance(write_h5ad, tmp_path: Path):
    path = write_h5ad("a", make_counts(30, 5))
    ingest(path, tmp_path / "one")
    ingest(tmp_path / "one", tmp_path / "two", seed=3)
    two, source = anndata.read_zarr(tmp_path / "two"), anndata.read_h5ad(path)
    assert (source.X[two.obs["source_row_before"].to_numpy()] != two.X).nnz == 0


def test_cells_without_counts_are_refused_dropped_or_kept(write_h5ad, tmp_path: Path):
    counts = make_counts(10, 5).tolil()
    counts[4] = 0
    counts[9] = 0
    path = write_h5ad("a", counts.tocsr())
    with pytest.raises(CountsError, match=r"a.h5ad: cell 'a_4' \(row 4\) has no counts"):
        ingest(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    report = ingest(path, tmp_path / "dropped", empty_cells="drop")
    assert (report.n_cells, report.dropped_cells) == (8, 2)
    rows = anndata.read_zarr(tmp_path / "dropped").obs["source_row"]
    assert sorted(rows) == [0, 1, 2, 3, 5, 6, 7, 8]
    ingest(path, tmp_path / "kept", empty_cells="keep")
    kept = anndata.read_zarr(tmp_path / "kept")
    assert_same_cells(kept, {str(path): anndata.read_h5ad(path)})
    assert report.empty_cells == 0
    store = open_cells(tmp_path / "kept")
    assert sum(len(store.read_block(block)) for block in range(len(store.block_starts) - 1)) == 10


def test_a_cell_that_only_the_choice_of_genes_left_empty_is_kept_and_reported(write_h5ad, tmp_path: Path):
    counts = sparse.csr_matrix(np.array([[1, 0], [0, 2], [3, 4]], np.float32))
    paths = [write_h5ad("a", counts, ["g0", "g1"]), write_h5ad("b", counts[:, :1] + counts[:, 1:], ["g0"])]
    report = ingest(paths, tmp_path / "store", genes="intersection")
    assert (report.n_cells, report.empty_cells) == (6, 1)
    assert ingest(paths, tmp_path / "less", genes="intersection", empty_cells="drop").n_cells == 5


@pytest.mark.parametrize("genes", [65_536, 65_537])
def test_indices_are_narrow_where_genes_allow_and_right_where_not(tmp_path: Path, write_h5ad, genes: int):
    counts = sparse.csr_matrix(
        ([1.0, 70_000.0, 3.0], ([0, 1, 1], [0, 1, genes - 1])), shape=(2, genes), dtype=np.float32
    )
    path = write_h5ad("a", counts)
    ingest(path, tmp_path / "store")
    store = anndata.read_zarr(tmp_path / "store")
    assert store.X.indices.dtype == (np.uint16 if genes == 65_536 else np.int32)
    assert_same_cells(store, {str(path): anndata.read_h5ad(path)})


def test_highly_variable_genes_are_chosen_as_scanpy_does(shared: Path, tmp_path: Path):
    scanpy = pytest.importorskip("scanpy")
    path = shared / "data/onek1k.h5ad"
    ingest(path, tmp_path / "store", top_genes=200, batch_key="sex")
    source = anndata.read_h5ad(path)
    scanpy.pp.highly_variable_genes(source, flavor="seurat_v3", n_top_genes=200, batch_key="sex")
    expected = source.var_names[source.var["highly_variable"]]
    store = anndata.read_zarr(tmp_path / "store")
    assert store.var_names.tolist() == expected.tolist()
    assert (store.X != source[store.obs["source_row"].to_numpy(), expected].X).nnz == 0


def test_bad_input_is_refused_and_leaves_nothing(write_h5ad, tmp_path: Path):
    good = write_h5ad("good", make_counts(10, 5))
    fractional = make_counts(10, 5)
    fractional.data[3] = 0.5
    cases = [
        (CountsError, "not whole numbers", dict(sources=write_h5ad("bad", fractional))),
        (GeneError, "no gene in common", dict(sources=[good, write_h5ad("other", make_counts(3, 2), ["p", "q"])])),
        (ColumnError, "obs has no column 'donor' .*batch", dict(sources=good, top_genes=2, batch_key="donor")),
        (SourceError, "missing.h5ad", dict(sources=tmp_path / "missing.h5ad")),
    ]
    before = sorted(os.listdir(tmp_path))
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            ingest(out=tmp_path / "store", **arguments)
        assert sorted(os.listdir(tmp_path)) == before


def test_an_output_that_exists_is_refused_before_anything_is_read(write_h5ad, tmp_path: Path):
    (tmp_path / "store").mkdir()
    with pytest.raises(OutputError, match="store exists already"):
        ingest(tmp_path / "never-read.h5ad", tmp_path / "store")


def test_a_store_of_a_newer_format_is_refused(write_h5ad, tmp_path: Path):
    ingest(write_h5ad("a", make_counts(10, 5)), tmp_path / "store")
    metadata = tmp_path / "store" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(SourceError, match=r"format 99, and this atlasvi reads up to 3: upgrade"):
        open_cells(tmp_path / "store")
    metadata.write_text(metadata.read_text().replace('"format_version": 99', '"format_version": 1'))
    with pytest.raises(SourceError, match=r"earlier draft of atlasvi: ingest its sources again"):
        open_cells(tmp_path / "store")


@pytest.mark.slow
def test_a_killed_ingest_leaves_nothing_that_looks_like_a_store(write_h5ad, tmp_path: Path):
    path = write_h5ad("a", make_counts(20_000, 300))
    program = [sys.executable, "-m", "atlasvi.engine.cli.commands"]
    command = [*program, "ingest", str(path), "--out", str(tmp_path / "store")]
    for delay in (0.8, 1.2, 1.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        if process.wait() != 0:
            assert not (tmp_path / "store").exists()
    subprocess.run(command, check=not (tmp_path / "store").exists(), stdout=subprocess.DEVNULL)
    assert len(anndata.read_zarr(tmp_path / "store")) == 20_000
    assert sorted(os.listdir(tmp_path)) == ["a.h5ad", "store"]


def test_an_ingest_that_fails_leaves_none_of_the_folders_that_it_made(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        ingest(tmp_path / "gone.h5ad", tmp_path / "x" / "y" / "store")
    assert list(tmp_path.iterdir()) == []
