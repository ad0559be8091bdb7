"""Files of lines that others read while they grow."""

from pathlib import Path

import pytest

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places import requests
from atlasvi.loaders.places.line_files import open_lines
from atlasvi.loaders.places.object_path import to_place
from tests.faulty_proxy import run_proxy
from tests.s3_server import Bucket


def test_lines_are_appended_to_what_is_there(bucket: Bucket, tmp_path: Path):
    for place in (tmp_path / "lines", to_place(f"{bucket.url}/lines")):
        for words in ("one two three", "four"):
            file = open_lines(place)
            for word in words.split():
                file.write(f"{word}\n")
            file.close()
        assert place.read_text() == "one\ntwo\nthree\nfour\n"


def test_a_bucket_that_takes_no_lines_is_noticed_when_the_next_are_written(bucket: Bucket, monkeypatch):
    monkeypatch.setattr(requests, "LIMITS", requests.Limits(total=0.05, first_pause=0.01, longest_pause=0.01))
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        file = open_lines(to_place(f"{bucket.url}/lines"))
        proxy.faults = ["500"] * 1000
        with pytest.raises(StorageError, match=f"{bucket.url}/lines: it can't be written"):
            for _ in range(100_000):
                file.write("line\n")
        with pytest.raises(StorageError, match=f"{bucket.url}/lines: it can't be written"):
            file.close()
