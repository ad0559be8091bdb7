import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atlasvi.loaders.errors import MissingDependencyError, SourceError, StorageError
from atlasvi.loaders.places import connections
from atlasvi.loaders.places.addresses import parse_address
from atlasvi.loaders.places.object_path import ObjectPath, open_folder, to_place
from atlasvi.loaders.places.objects import traffic
from atlasvi.loaders.places.storage import Storage
from tests.s3_server import Bucket


@pytest.fixture
def folder(bucket: Bucket) -> ObjectPath:
    """A folder of three objects."""
    place = to_place(f"{bucket.url}/folder")
    assert isinstance(place, ObjectPath)
    for name in ("a", "b/c", "b/d.txt"):
        (place / name).write_bytes(f"content of {name}".encode())
    return place


@pytest.fixture(params=["each look is a request", "with a list"])
def looked_at(request: pytest.FixtureRequest, folder: ObjectPath) -> ObjectPath:
    return folder.opened() if request.param == "with a list" else folder


def test_objects_are_read_and_listed_as_files_are(looked_at: ObjectPath):
    assert (looked_at / "a").read_text() == "content of a"
    assert (looked_at / "b" / "c").stat().st_size == 14
    assert (looked_at / "b/c").is_file()
    assert not (looked_at / "b").is_file()
    assert (looked_at / "b").is_dir()
    assert not (looked_at / "a").is_dir()
    assert not (looked_at / "nothing").exists()
    assert looked_at.list_sizes() == {"a": 12, "b/c": 14, "b/d.txt": 18}
    assert (looked_at / "b").list_names() == ["c", "d.txt"]
    assert [place.name for place in looked_at.iterdir()] == ["a", "b"]
    assert [str(place) for place in (looked_at / "b").glob("*.txt")] == [f"{looked_at}/b/d.txt"]
    with (looked_at / "b/d.txt").open("rb") as file:
        assert file.read() == b"content of b/d.txt"
    with pytest.raises(FileNotFoundError, match="folder/nothing"):
        (looked_at / "nothing").read_bytes()


def test_names_are_those_of_paths(folder: ObjectPath):
    file = folder / "b/d.txt"
    assert (file.name, file.suffix, file.parent) == ("d.txt", ".txt", folder / "b")
    assert file.with_suffix(".gz").name == "d.gz"
    assert len({file, folder / "b/d.txt"}) == 1


def test_a_list_saves_requests_for_what_is_known(folder: ObjectPath):
    opened = folder.opened()
    opened.read_ahead(["a", "b/c"])
    before = traffic.requests
    with (opened / "b/c").open("rb") as file:
        assert file.read() == b"content of b/c"
    assert not (opened / "nothing").exists()
    assert (opened / "a").read_bytes() == b"content of a"
    assert opened.list_names("b/") == ["b/c", "b/d.txt"]
    assert traffic.requests == before


def test_what_is_in_an_opened_folder_is_listed_without_a_request(folder: ObjectPath):
    opened, before = folder.opened(), traffic.requests + 1
    listed = [[str(place) for place in look] for look in (opened.iterdir(), (opened / "b").glob("*.txt"))]
    assert traffic.requests == before - 1
    assert listed == [[str(place) for place in look] for look in (folder.iterdir(), (folder / "b").glob("*.txt"))]


def test_to_find_the_region_of_a_bucket_keeps_no_other_bucket_waiting(
    folder: ObjectPath, monkeypatch: pytest.MonkeyPatch
):
    asked, answered = threading.Event(), threading.Event()

    def find(bucket: str) -> None:
        asked.set()
        assert answered.wait(10)

    monkeypatch.setattr(connections, "find_region", find)
    monkeypatch.setattr(connections, "_connections", {})
    monkeypatch.delenv("AWS_REGION")
    with ThreadPoolExecutor(1) as threads:
        far = threads.submit(connections.connect, parse_address("s3://distant/x"), Storage())  # type: ignore[arg-type]
        assert asked.wait(10)
        assert (folder / "a").read_bytes() == b"content of a"
        assert not far.done()
        answered.set()
        assert far.result() is connections.connect(parse_address("s3://distant/y"), Storage())  # type: ignore[arg-type]


def test_no_more_requests_are_in_flight_than_is_said(folder: ObjectPath, monkeypatch: pytest.MonkeyPatch):
    import obstore

    get, lock, running, most = obstore.get, threading.Lock(), 0, 0

    def watched(*arguments: Any, **options: Any):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return get(*arguments, **options)

    monkeypatch.setattr(obstore, "get", watched)
    with ThreadPoolExecutor(60) as threads:
        assert set(threads.map(lambda _: (folder / "a").read_bytes(), range(60))) == {b"content of a"}
    assert 1 < most <= connections.MOST_REQUESTS


def test_an_object_that_changed_since_its_folder_was_opened_is_noticed(folder: ObjectPath):
    opened = folder.opened()
    (folder / "a").write_bytes(b"another a...")
    with pytest.raises(StorageError, match=r"s3://atlases/\d+/folder/a was replaced or changed"):
        (opened / "a").read_bytes()
    assert (folder.opened() / "a").read_bytes() == b"another a..."


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        (lambda url, storage: to_place("s3://no-such-bucket/x", storage).read_bytes(), "there is no such bucket"),  # type: ignore[union-attr]
        (lambda url, storage: to_place("s3://atlases").read_bytes(), "names a bucket and no object"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(bucket: Bucket, look: Callable, sentence: str):
    with pytest.raises(SourceError, match=sentence):
        look(bucket.url, Storage(endpoint=bucket.endpoint))


def test_wrong_credentials_are_one_sentence_without_them(folder: ObjectPath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr(connections, "_connections", {})
    with pytest.raises(StorageError, match="no permission to read it") as error:
        (folder / "a").read_bytes()
    assert "hunter2" not in str(error.value)


def test_without_credentials_an_open_bucket_is_read_and_another_is_not(bucket: Bucket, folder: ObjectPath, tmp_path):
    (tmp_path / "file").write_bytes(b"for all")
    open_to_all = Bucket("s3://open", bucket.endpoint).put(tmp_path / "file", "file")
    anonymous = Storage(endpoint=bucket.endpoint, anonymous="yes")
    assert to_place(open_to_all, anonymous).read_bytes() == b"for all"
    with pytest.raises(StorageError, match="no permission to read it"):
        (to_place(str(folder), anonymous) / "a").read_bytes()


def test_a_profile_is_used(folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    (tmp_path / "keys").write_text("[lab]\naws_access_key_id=testing-key\naws_secret_access_key=testing-secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage = Storage(endpoint=folder.storage.endpoint, profile="lab")
    assert (to_place(str(folder), storage) / "a").read_bytes() == b"content of a"


def test_without_obstore_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.setattr(connections, "_connections", {})
    with pytest.raises(MissingDependencyError, match=r"pip install 'atlasvi\[bucket\]'"):
        to_place("s3://atlases/lung", Storage(region="us-east-1")).read_bytes()


def test_local_paths_and_file_addresses_are_paths(tmp_path: Path):
    assert to_place(tmp_path) == tmp_path == open_folder(f"file://{tmp_path}")
