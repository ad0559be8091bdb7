"""Damaged and hostile inputs: one sentence and status 1, nothing run, nothing written, never a wrong number."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.distributed.rank_processes import run_command

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

Unpack = Callable[[str], Path]


def refused(*arguments: object) -> str:
    """A command ends with status 1 and one sentence, which is returned."""
    done = run_command(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def done_well(*arguments: object) -> str:
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_originals_are_read(unpack: Unpack, tmp_path: Path):
    store, run = unpack("base-store"), unpack("base-run")
    assert "nothing is damaged" in done_well("check", store)
    assert "nothing is damaged" in done_well("check", run)
    assert "200 cells, 4 latent dimensions" in done_well("minify", run, store, "--out", tmp_path / "mini")


@pytest.mark.parametrize(("name", "inside"), [("pickle-a", "a/mini.zarr"), ("pickle-b", "b")])
def test_a_pickle_is_not_run_wherever_it_hides(unpack: Unpack, name: str, inside: str):
    place = unpack(name) / inside
    for arguments in (["query", place, "latent"], ["info", place]):
        assert "stored as Python pickles, which can run any program when read, and is refused" in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("store-ptr_mid_huge", "is damaged (its row pointers do not ascend from 0 to the 7,439 stored counts)"),
        ("store-idx_65535", "is damaged (the gene indices of a row do not ascend)"),
        pytest.param(
            *("store-index_len_huge", "X/data/c/0 is damaged (its index names places that hold no chunk)"),
            marks=pytest.mark.shard_reader,
        ),
        ("store-var_fewer_genes", "it is damaged: var has 30 genes, and X 60"),
        ("cellstore-obs-batch-codes-missing", "obs/batch/codes/c/0 is missing"),
    ],
)
def test_a_store_whose_content_is_wrong_never_reaches_compiled_code(unpack: Unpack, tmp_path: Path, name, said):
    store, run, out = unpack(name), unpack("base-run"), tmp_path / "out"
    for arguments in (
        ["train", store, "--batch-key", "batch", "--epochs", 1, "--out", out],
        ["minify", run, store, "--out", out],
        ["check", store],
    ):
        sentence = refused(*arguments)
        assert said in sentence
        assert "copy" in sentence
    assert not out.exists()
    with pytest.raises(SourceError):
        list(BatchLoader(store, 64, seed=0))


def test_batches_that_an_interrupted_copy_has_lost_are_not_all_the_first(unpack: Unpack, tmp_path: Path):
    path, out = unpack("partial-obs.zarr"), tmp_path / "out"
    for arguments in (
        ["info", path],
        ["ingest", path, "--out", out],
        ["train", path, "--batch-key", "batch", "--out", out],
    ):
        assert "2 of 4 chunks of obs/batch/codes are missing: the copy is incomplete" in refused(*arguments)
    assert not out.exists()


def test_a_flipped_bit_of_a_model_is_noticed(unpack: Unpack, tmp_path: Path):
    run = unpack("run-modelpt-bitflip-7055")
    for arguments in (
        ["minify", run, unpack("base-store"), "--out", tmp_path / "out"],
        ["export", run, tmp_path / "out"],
        ["check", run],
    ):
        assert "model.pt: it is damaged or cut short (Bad CRC-32" in refused(*arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_newest_checkpoint_is_damaged_is_not_gone_on_from_an_older_one(unpack: Unpack, tmp_path: Path):
    run, store = unpack("start-damaged-newest-checkpoint"), unpack("base-store")
    arguments = ["train", store, "--out", tmp_path / "out", "--start", run, "--batch-key", "batch", "--epochs", 1]
    sentence = refused(*arguments)
    assert "step-000000012-8295ab3e028274e5.pt is damaged, and it is the newest checkpoint: copy it again" in sentence
    assert not (tmp_path / "out").exists()
    shutil.rmtree(run / "checkpoints")  # the way out that the sentence names
    done_well(*arguments)


def test_a_damaged_part_of_an_unfinished_ingest_is_not_used(unpack: Unpack, tmp_path: Path):
    source = unpack("ansi.h5ad")
    shutil.copytree(unpack("unf_sorted-part-flip"), tmp_path / ".store.unfinished")
    ingest(source, tmp_path / "store")
    assert not (tmp_path / ".store.unfinished").exists()
    adata, expected = anndata.read_zarr(tmp_path / "store"), anndata.read_h5ad(source)
    assert (adata.X != expected[adata.obs["source_row"].to_numpy()].X).nnz == 0


@pytest.mark.parametrize(
    ("name", "kept"), [("struct-col_named__index.h5ad", "_index_before"), ("struct-col_weird.h5ad", "a\nb")]
)
def test_columns_of_odd_names_are_kept(unpack: Unpack, tmp_path: Path, name: str, kept: str):
    path, store = unpack(name), tmp_path / "store"
    assert "200 cells x 60 genes" in done_well("ingest", path, "--out", store)
    obs = anndata.read_zarr(store).obs
    assert kept in obs
    with_source_row = anndata.read_h5ad(path).X[obs["source_row"].to_numpy()]
    assert (with_source_row != anndata.read_zarr(store).X).nnz == 0
    for place in (path, store):
        assert "\x1b" not in done_well("info", place)


def test_arrays_of_two_dimensions_where_one_belongs_are_refused(unpack: Unpack, tmp_path: Path):
    path = unpack("struct-indices_2d.h5ad")
    for arguments in (["info", path], ["ingest", path, "--out", tmp_path / "out"]):
        assert "X is damaged: indices is an array of int32 with 2 dimensions" in refused(*arguments)
    assert not (tmp_path / "out").exists()


def test_terminal_escapes_in_names_are_shown_not_sent(unpack: Unpack):
    said = done_well("info", unpack("ansi.h5ad"))
    assert "\\x1b]0;pwned\\x07\\x1b[31mred" in said
    assert not [letter for letter in said if ord(letter) < 32 and letter != "\n"]


def test_a_chunk_of_gigabytes_is_refused_before_it_is_decoded(unpack: Unpack, tmp_path: Path):
    path, before = unpack("gzip_bomb_data.h5ad"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for arguments in (["info", path], ["ingest", path, "--out", tmp_path / "out"]):
        assert "X/data is stored in chunks of 3.2 GB" in refused(*arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # kB
