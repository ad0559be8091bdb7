"""What is tried again, for how long, and what an error of a server becomes."""

from collections.abc import Iterator

import numpy as np
import pytest

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places import connections, requests
from atlasvi.loaders.places.byte_files import RemoteFile, open_file
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.requests import ChangedError, CutShortError, Limits, request
from atlasvi.loaders.places.storage import Storage
from tests.faulty_proxy import FaultyProxy, run_proxy
from tests.s3_server import Bucket

obstore = pytest.importorskip("obstore")
NAME = "s3://atlases/lung"


def answered(status: int, code: str = "") -> Exception:
    """An error as obstore raises it for an answer of an S3 server."""
    return obstore.exceptions.GenericError(
        f"Generic S3 error: Server returned non-2xx status code: {status} : <Error><Code>{code}</Code></Error>"
    )


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests, "LIMITS", Limits(total=0.2, first_pause=0.01, longest_pause=0.02))


@pytest.mark.parametrize(
    "error",
    [
        answered(500, "InternalError"),
        answered(503, "SlowDown"),
        answered(429),
        answered(400, "RequestTimeout"),
        obstore.exceptions.GenericError("Generic S3 error: HTTP error: error sending request\nkind: Connect,"),
        obstore.exceptions.NotSupportedError("Received non-partial response when range requested"),
        CutShortError("3 of 10 bytes came"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception):
    answers = [error, error, "yes"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert request(NAME, ask) == "yes"


def test_after_the_limit_a_sentence_says_how_often_it_was_tried_and_what_happened():
    with pytest.raises(StorageError, match=rf"^{NAME}: it can't be read \(\d+ attempts .*503 SlowDown\): check the"):
        request(NAME, raising(answered(503, "SlowDown")))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (answered(400, "ExpiredToken"), "the credentials have expired: renew them"),
        (answered(404, "NoSuchBucket"), "there is no such bucket"),
        (answered(301, "PermanentRedirect"), "the region"),
        (answered(403, "AccessDenied"), r"no permission .*AccessDenied"),  # of a list
        (answered(416, "InvalidRange"), "the server answered 416 InvalidRange"),
        (obstore.exceptions.GenericError("status code: 400"), "check the address, and whether the credentials have"),
        (obstore.exceptions.PermissionDeniedError("403 <Code>AccessDenied</Code>"), r"no permission .*AccessDenied"),
        (obstore.exceptions.GenericError("PUT http://169.254.169.254/latest/api/token"), "no credentials were found"),
        (obstore.exceptions.PreconditionError("412"), "was replaced or changed while it was being read"),
        (ChangedError(), "was replaced or changed while it was being read"),
    ],
)
def test_what_will_not_pass_is_one_sentence_at_once(error: Exception, sentence: str):
    calls = []
    with pytest.raises(StorageError, match=sentence) as found:
        request(NAME, raising(error, calls))
    assert str(found.value).startswith(NAME)
    assert len(calls) == 1


def test_an_answer_with_a_secret_is_not_repeated():
    denied = obstore.exceptions.PermissionDeniedError("<StringToSign>hunter2</StringToSign><Code>AccessDenied</Code>")
    with pytest.raises(StorageError) as found:
        request(NAME, raising(denied))
    assert "hunter2" not in str(found.value)
    assert found.value.__suppress_context__


def test_an_object_that_is_not_there_is_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=NAME):
        request(NAME, raising(FileNotFoundError("<Code>NoSuchKey</Code>")))


def raising(error: Exception, calls: list | None = None):
    """A request that fails."""

    def ask() -> None:
        if calls is not None:
            calls.append(1)
        raise error

    return ask


# what obstore makes of a real server behind a bad network


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for module in (requests, connections):
        monkeypatch.setattr(module, "LIMITS", Limits(total=60, first_pause=0.01, longest_pause=0.02, silence=0.5))
    with run_proxy(bucket.endpoint) as running:
        yield running


def store_through(proxy: FaultyProxy, bucket: Bucket, content: bytes) -> RemoteFile:
    """An object, opened through the proxy."""
    (to_place(f"{bucket.url}/a")).write_bytes(content)  # type: ignore[union-attr]
    file = open_file(to_place(f"{bucket.url}/a", Storage(endpoint=proxy.endpoint)))
    assert isinstance(file, RemoteFile)
    return file


@pytest.mark.parametrize("fault", ["500", "503", "refused", "reset", "broken off", "stalled", "shorter", "whole"])
def test_after_a_passing_fault_the_bytes_are_those_of_the_object(fault: str, proxy: FaultyProxy, bucket: Bucket):
    content = bytes(range(256)) * 40
    file = store_through(proxy, bucket, content)
    proxy.faults, proxy.requests = [fault, fault], 0
    out = np.zeros(10_000, np.uint8)
    assert file.read_into(100, out)
    assert out.tobytes() == content[100:10_100]
    assert proxy.requests >= 3, "a busy machine may answer later than in half a second once more"


@pytest.mark.parametrize("content", [b"", b"a" * 5000])
def test_a_whole_object_of_unknown_length_is_read_whole_after_a_passing_fault(
    content: bytes, proxy: FaultyProxy, bucket: Bucket
):
    place = to_place(f"{bucket.url}/a", Storage(endpoint=proxy.endpoint))
    place.write_bytes(content)  # type: ignore[arg-type]
    for fault in ("shorter", "whole", "broken off", "500"):
        proxy.faults = [fault, fault]
        assert place.read_bytes() == content, fault


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("503", "attempts in .*the server answered 503 SlowDown"),
        ("reset", "attempts in .*(broke off|connection failed)"),
        ("stalled", "attempts in .*(no answer in time|broke off|connection failed)"),
        ("whole", "attempts in .*something else than the part that was asked for"),
        ("expired", "the credentials have expired"),
        ("denied", "no permission to read it"),
    ],
)
def test_a_fault_that_stays_is_one_sentence(
    fault: str, sentence: str, proxy: FaultyProxy, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    file = store_through(proxy, bucket, bytes(1000))
    requests.LIMITS.total = 1.0
    proxy.faults = [fault] * 1000
    with pytest.raises(StorageError, match=rf"^{bucket.url}/a: .*{sentence}") as error:
        file.read_into(0, np.zeros(500, np.uint8))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_a_server_that_is_gone_is_one_sentence(bucket: Bucket):
    place = to_place(f"{bucket.url}/a", Storage(endpoint="http://127.0.0.1:9"))
    with pytest.raises(StorageError, match=r"it can't be read \(.*the last: no connection\): check the network"):
        place.read_bytes()
