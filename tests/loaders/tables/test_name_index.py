"""Names are found by the index of their hashes, whichever names a table has."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.tables import name_index
from atlasvi.loaders.tables.name_index import NameIndex, hash_names, write_name_index


def write(path: Path, names: list[str]) -> NameIndex:
    index = pd.Index(names, dtype=object)
    write_name_index(path, lambda start, stop: index[start:stop], len(names))
    return NameIndex(path, len(names))


@pytest.mark.parametrize(("block", "bucket", "rows"), [(4, 8, 8), (3, 5, 7), (2**14, 2**22, 2**16)])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text("ab\u00e9", max_size=3), max_size=60), wanted=st.sets(st.text("ab\u00e9", max_size=3)))
def test_candidates_are_the_rows_whose_names_have_these_hashes(
    tmp_path: Path, block: int, bucket: int, rows: int, names: list[str], wanted: set[str]
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name_index, "BLOCK", block)
        patch.setattr(name_index, "BUCKET_ROWS", bucket)
        patch.setattr(name_index, "SLICE_ROWS", rows)
        found = write(tmp_path / "index", names).find_candidates(wanted)
    assert found.tolist() == [row for row, name in enumerate(names) if name in wanted]
    assert not [path for path in tmp_path.iterdir() if path.name != "index"]


def test_names_of_one_hash_are_all_candidates(tmp_path: Path):
    # crc32 is linear: these two texts are known to have the same one
    assert len(set(hash_names(["plumless", "buckeroo"]).tolist())) == 1
    index = write(tmp_path / "index", ["plumless", "other", "buckeroo", "plumless"])
    assert index.find_candidates(["buckeroo"]).tolist() == [0, 2, 3]
    assert index.find_candidates(["none", "other"]).tolist() == [1]
    assert index.find_candidates([]).tolist() == []


def test_only_the_blocks_of_the_wanted_hashes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(name_index, "BLOCK", 16)
    index = write(tmp_path / "index", [f"cell {k}" for k in range(4_000)])
    read: list[tuple[int, int]] = []
    real = NameIndex._read
    monkeypatch.setattr(NameIndex, "_read", lambda self, file, parts: read.extend(parts) or real(self, file, parts))
    assert index.find_candidates(["cell 7"]).tolist() == [7]
    assert len(read) <= 2


def test_a_flipped_byte_or_a_file_cut_short_is_noticed(tmp_path: Path):
    names = [f"cell {k}" for k in range(50)]
    write(tmp_path / "index", names)
    content = bytearray((tmp_path / "index").read_bytes())
    for at in range(0, len(content), 11):
        content[at] ^= 1
        (tmp_path / "index").write_bytes(content)
        with pytest.raises(SourceError, match="index is damaged or cut short"):
            NameIndex(tmp_path / "index", 50).find_candidates(names)
        content[at] ^= 1
    (tmp_path / "index").write_bytes(content[:-20])
    with pytest.raises(SourceError, match="index is damaged or cut short"):
        NameIndex(tmp_path / "index", 50)


def test_rows_are_wide_enough_for_any_table():
    assert np.iinfo(name_index._row_dtype(2**32)).max == 2**32 - 1
    assert np.iinfo(name_index._row_dtype(2**32 + 1)).max > 2**32
