import contextlib
import json
from pathlib import Path

import google_crc32c
import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import (
    MANIFEST,
    check_files,
    find_damage,
    hash_file,
    names_below,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)


def test_json_is_read_as_it_was_written_and_every_flipped_bit_of_a_value_is_noticed(tmp_path: Path):
    path, values = tmp_path / "a.json", {"rate": 0.1, "names": ["a", None], "deep": {"1": float("inf")}}
    write_json(path, values)
    assert read_json(path) == values
    whole = path.read_bytes()
    for at in range(whole.index(b"crc32c") - 1):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with contextlib.suppress(SourceError):
                assert read_json(path) == values  # white space may be another


def test_json_of_older_versions_has_no_checksum_and_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"epochs": 3}')
    assert read_json(tmp_path / "a.json") == {"epochs": 3}


@pytest.mark.parametrize(("content", "message"), [("[1]", "no JSON object"), ("{", "not JSON"), (None, "missing")])
def test_what_is_no_json_object_is_said(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("files", ["[]", '{"a": [1]}', '{"a": ["1", "00000000"]}', '{"a": 1}', '{"a": [1, null]}'])
def test_a_list_that_does_not_list_files_is_called_damaged(tmp_path: Path, files: str):
    (tmp_path / MANIFEST).write_text(f'{{"files": {files}}}')
    with pytest.raises(SourceError, match="does not list files with their sizes and checksums"):
        read_manifest(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "var").mkdir(parents=True)
    for name in ("zarr.json", "var/c", "large"):
        (folder / name).write_bytes(name.encode() * 100)
    write_manifest(folder, known={"large": hash_file(folder / "large")})
    return folder


def test_a_missing_file_and_another_size_are_noticed_when_opened_and_all_else_when_checked(folder: Path):
    files = read_manifest(folder)
    assert files is not None
    assert sorted(files) == ["large", "var/c", "zarr.json"]
    compared = names_below(["var"])
    check_files(folder, files, compared)
    (folder / "not ours").write_text("anything")
    check_files(folder, files, compared)
    (folder / "large").write_bytes(b"LARGE" * 100)
    check_files(folder, files, compared)  # the same size, and not among those that are compared
    with pytest.raises(SourceError, match=r"large is damaged or was changed: its checksum is"):
        check_files(folder, files, lambda name: True)
    (folder / "var/c").write_bytes(b"VAR/C" * 100)
    with pytest.raises(SourceError, match=r"var/c is damaged"):
        check_files(folder, files, compared)
    (folder / "zarr.json").write_bytes(b"short")
    (folder / "var/c").unlink()
    assert [message.split(" is ")[1].split(":")[0] for message in find_damage(folder, files, compared)] == [
        "missing",
        "damaged or was changed",
    ]


def test_a_link_that_leads_nowhere_is_a_file_that_is_missing_and_no_matter_where_it_is_not_listed(folder: Path):
    files = read_manifest(folder)
    assert files is not None
    (folder / "not ours").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    check_files(folder, files, lambda name: True)
    write_manifest(folder)
    assert read_manifest(folder) == files
    (folder / "large").unlink()
    (folder / "large").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"large is missing"):
        check_files(folder, files, lambda name: True)


def test_a_damaged_list_is_said_and_a_missing_one_is_none(folder: Path):
    listed = json.loads((folder / MANIFEST).read_text())
    listed["files"]["large"][0] += 1
    (folder / MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(SourceError, match=r"manifest\.json is damaged"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    assert read_manifest(folder) is None


def test_what_a_killed_process_left_is_no_file_of_a_folder(tmp_path: Path):
    for name in ("a", ".embedding.unfinished/zarr.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    write_manifest(tmp_path)
    assert list(read_manifest(tmp_path) or {}) == ["a"]


def test_a_file_that_ends_with_its_crc32c_is_told_from_another_one_of_its_size(tmp_path: Path):
    """As a chunk of Zarr does: the crc32c of the whole is the same number for any content."""
    for name in ("a", "b"):
        content = name.encode() * 100
        (tmp_path / name).write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    assert hash_file(tmp_path / "a", "48674bc7") == hash_file(tmp_path / "b", "48674bc7") == (104, "48674bc7")
    write_manifest(tmp_path)
    files = read_manifest(tmp_path)
    assert files is not None
    check_files(tmp_path, files, lambda name: True)
    (tmp_path / "a").write_bytes((tmp_path / "b").read_bytes())
    with pytest.raises(SourceError, match=r"a is damaged or was changed"):
        check_files(tmp_path, files, lambda name: True)


def test_a_list_of_an_older_version_is_compared_with_the_crc32c_of_files(folder: Path):
    write_json(folder / MANIFEST, {"files": {"large": hash_file(folder / "large", like="")}})
    files = read_manifest(folder)
    assert files == {"large": (500, f"{google_crc32c.value((folder / 'large').read_bytes()):08x}")}
    check_files(folder, files, lambda name: True)
    (folder / "large").write_bytes(b"LARGE" * 100)
    with pytest.raises(SourceError, match=r"large is damaged"):
        check_files(folder, files, lambda name: True)
