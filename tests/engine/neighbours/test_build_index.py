"""The index from its building to its answers: what is found, how it is measured, and that damage is noticed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasvi.engine.neighbours.build_index import build_index
from atlasvi.engine.neighbours.exact_search import search_exactly
from atlasvi.engine.neighbours.index_file import IndexFile, name_index
from atlasvi.engine.neighbours.search_index import choose_probing, search_index
from atlasvi.loaders.errors import OutputError, SourceError
from tests.engine.neighbours.small_latents import SmallLatents, make_latents

N_CELLS = 30_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallLatents:
    store = make_latents(N_CELLS, path=str(tmp_path_factory.mktemp("index") / "x.mini"))
    build_index(store)
    return store


@pytest.fixture(scope="module")
def index(store: SmallLatents) -> IndexFile:
    return IndexFile(name_index(store.path), store)


def share_found(found: np.ndarray, nearest: np.ndarray) -> float:
    return np.mean([len(np.intersect1d(*pair)) for pair in zip(found, nearest)]) / nearest.shape[1]


def search_all(store: SmallLatents, queries: np.ndarray, k: int, chosen: np.ndarray | None = None) -> np.ndarray:
    cells = np.arange(store.n_cells) if chosen is None else np.flatnonzero(chosen)
    return search_exactly([(store.qzm[cells], cells)], queries, k)[1]


def test_every_cell_is_in_one_list_near_its_code_and_lists_keep_the_order_of_the_store(
    store: SmallLatents, index: IndexFile
):
    assert np.array_equal(np.sort(index.cells), np.arange(N_CELLS))
    lists = np.repeat(np.arange(index.header.n_lists), np.diff(index.starts))
    decoded = index.low[lists] + index.step[lists] * index.codes
    assert (np.abs(decoded - store.qzm[index.cells]) <= 0.5001 * index.step[lists] + 1e-6).all()
    for start, stop in zip(index.starts, index.starts[1:]):
        assert (np.diff(index.cells[start:stop].astype(int)) > 0).all()


@pytest.mark.parametrize("recall", [0.7, 0.9, 0.97])
@pytest.mark.parametrize("k", [10, 50])
def test_new_cells_find_the_share_of_their_neighbours_that_was_asked_for(
    store: SmallLatents, index: IndexFile, recall: float, k: int
):
    queries = make_latents(2_000, path="new").qzm[:300] + np.float32(0.01)
    found = search_index(index, queries, k, n_lists=choose_probing(index, k, recall).n_lists)[1]
    assert share_found(found, search_all(store, queries, k)) > recall - 0.03


def test_all_lists_find_all_but_what_codes_confuse_at_distances_near_the_true_ones(
    store: SmallLatents, index: IndexFile
):
    queries = store.qzm[:100]
    squared, found = search_index(index, queries, 20, n_lists=index.header.n_lists, own=np.arange(100))
    true_squared, nearest = search_exactly([(store.qzm, np.arange(N_CELLS))], queries, 20, np.arange(100))
    assert share_found(found, nearest) > 0.97
    np.testing.assert_allclose(np.sqrt(squared), np.sqrt(true_squared), atol=2 * index.step.max())
    assert (found != np.arange(100)[:, None]).all()


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_chosen_cells_anywhere_are_found(store: SmallLatents, index: IndexFile, share: float):
    chosen = np.random.default_rng(0).random(N_CELLS) < share
    queries = store.qzm[:200] + np.float32(0.01)
    n_lists = choose_probing(index, int(15 / share), 0.95).n_lists
    found = search_index(index, queries, 15, n_lists=n_lists, chosen=chosen)[1]
    assert chosen[found].all()
    assert share_found(found, search_all(store, queries, 15, chosen)) > 0.92


def test_chosen_cells_that_are_all_far_from_the_query_are_found(store: SmallLatents, index: IndexFile):
    chosen = np.argsort(((store.qzm - store.qzm[0]) ** 2).sum(1))[-2_000:]
    mask = np.isin(np.arange(N_CELLS), chosen)
    found = search_index(index, store.qzm[:1], 15, n_lists=index.header.n_lists, chosen=mask)[1]
    assert mask[found].all()
    away, nearest = (
        np.linalg.norm(store.qzm[cells[0]] - store.qzm[0], axis=1)
        for cells in (found, search_all(store, store.qzm[:1], 15, mask))
    )
    np.testing.assert_allclose(away, nearest, rtol=0.001)  # many are equally far: codes can't tell which is nearest


def test_more_neighbours_than_cells_end_in_none(tmp_path: Path):
    small = make_latents(30, path=str(tmp_path / "small"))
    build_index(small)
    index = IndexFile(name_index(small.path), small)
    squared, found = search_index(index, small.qzm[:3], 40, n_lists=1, own=np.arange(3))
    assert (np.sort(found[:, :29])[0] == np.arange(1, 30)).all()
    assert (found[:, 29:] == -1).all()
    assert np.isinf(squared[:, 29:]).all()


def test_threads_do_not_change_the_answer(store: SmallLatents, index: IndexFile, monkeypatch: pytest.MonkeyPatch):
    answers = []
    for n in (1, 3):
        monkeypatch.setattr("atlasvi.engine.neighbours.ranking.count_threads", lambda n=n: n)
        answers.append(search_index(index, store.qzm[:100], 15, n_lists=4))
    for one, other in zip(*answers):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=10)
@given(seed=st.integers(0, 1_000), n_cells=st.integers(1, 400), n_latent=st.integers(1, 6), levels=st.integers(1, 4))
def test_any_latents_can_be_indexed_equal_ones_too(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_cells: int, n_latent: int, levels: int
):
    random = np.random.default_rng(seed)
    qzm = random.integers(levels, size=(n_cells, n_latent)).astype(np.float32)
    store = SmallLatents(qzm, np.full_like(qzm, 0.25), str(tmp_path_factory.mktemp("any") / "x"))
    build_index(store)
    index = IndexFile(name_index(store.path), store)
    squared, found = search_index(index, qzm[:5], 3, n_lists=index.header.n_lists)
    expected, nearest = search_exactly([(qzm, np.arange(n_cells))], qzm[:5], 3)
    np.testing.assert_allclose(squared, expected, atol=0.05)
    np.testing.assert_array_equal(found < 0, nearest < 0)


def test_the_same_seed_gives_the_same_files(store: SmallLatents, tmp_path: Path):
    build_index(store, tmp_path / "again")
    build_index(store, tmp_path / "other", seed=1)
    files = sorted(file.name for file in name_index(store.path).iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (name_index(store.path) / name).read_bytes()
    assert (tmp_path / "other" / "codes.npy").read_bytes() != (tmp_path / "again" / "codes.npy").read_bytes()


def test_an_index_takes_few_bytes_and_is_not_overwritten(store: SmallLatents):
    assert (
        sum(file.stat().st_size for file in name_index(store.path).iterdir()) < N_CELLS * (store.n_latent + 5) + 9_000
    )
    with pytest.raises(OutputError, match="exists already"):
        build_index(store)


def test_cells_without_latents_are_named_and_nothing_is_left(tmp_path: Path):
    store = make_latents(200, path=str(tmp_path / "x"))
    store.qzm[150] = np.nan
    with pytest.raises(SourceError, match=r"1 cells have no latents \(first: 'number 150'"):
        build_index(store)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_other_latents_is_noticed(store: SmallLatents):
    place = name_index(store.path)
    for other in (make_latents(N_CELLS, seed=1), make_latents(N_CELLS - 1), replace(store, qzm=store.qzm + 1)):
        with pytest.raises(SourceError, match=r"not of the latents of .* older version.*atlasvi index"):
            IndexFile(place, other)


def copy_index(store: SmallLatents, out: Path) -> Path:
    out.mkdir()
    for file in name_index(store.path).iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.mark.parametrize("name", ["index.json", "centroids.npy", "starts.npy", "manifest.json"])
def test_damage_of_a_small_file_is_noticed_when_the_index_is_opened(store: SmallLatents, tmp_path: Path, name: str):
    copy = copy_index(store, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-40] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        IndexFile(copy, store)
    (copy / name).unlink()
    with pytest.raises(SourceError, match="missing"):
        IndexFile(copy, store)


@pytest.mark.parametrize("name", ["codes.npy", "cells.npy"])
def test_damage_of_a_list_is_noticed_when_it_is_searched(store: SmallLatents, tmp_path: Path, name: str):
    copy = copy_index(store, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    index = IndexFile(copy, store)
    with pytest.raises(SourceError, match=r"list .* of the index is damaged.*atlasvi index"):
        search_index(index, store.qzm[:10], 5, n_lists=index.header.n_lists)
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(SourceError, match="bytes"):
        IndexFile(copy, store)


def test_a_newer_format_is_refused(store: SmallLatents, tmp_path: Path):
    from atlasvi.loaders.manifest import read_json, write_json, write_manifest

    copy = copy_index(store, tmp_path / "copy")
    write_json(copy / "index.json", {**read_json(copy / "index.json"), "format_version": 9})
    write_manifest(copy)
    with pytest.raises(SourceError, match="format 9"):
        IndexFile(copy, store)
