"""What is tried again, for how long, and what an error of a server becomes."""

import pytest

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places import requests
from atlasvi.loaders.places.requests import ChangedError, CutShortError, Limits, request

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
        (answered(416, "InvalidRange"), "the server answered 416 InvalidRange"),
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
