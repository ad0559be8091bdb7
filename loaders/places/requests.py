"""Requests to object stores: repeated with growing pauses while there is hope, then explained in one sentence.

obstore repeats a request that fails before its answer begins; what fails in the middle of an answer it reports. So all
of it is repeated here: one rule, one limit in time, and one place that knows what an error of a server means.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from atlasvi.loaders.errors import AtlasviError, StorageError

Answer = TypeVar("Answer")
EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired")
BUCKETS = ("NoSuchBucket", "ContainerNotFound")
AGAIN = ("RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "ServerBusy", "OperationTimedOut")
AGAIN_STATUS = (408, 425, 429)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_KIND = re.compile(r"kind: (\w+)")
KINDS = {
    "Connect": "no connection",
    "Timeout": "no answer in time",
    "Decode": "the answer broke off",
    "Interrupted": "the connection broke off",
    "Request": "the connection broke off",
}


@dataclass
class Limits:
    """How long a request is waited for and repeated, in seconds.

    total    after this time no further attempt is made
    answer   for one attempt, until its last byte
    silence  without a byte
    connect  until there is a connection
    first_pause, longest_pause  before the second attempt (half of it at least), and before any
    """

    total: float = 180.0
    answer: float = 120.0
    silence: float = 30.0
    connect: float = 10.0
    first_pause: float = 0.2
    longest_pause: float = 15.0


LIMITS = Limits()


class NoPermissionError(StorageError):
    """The server refuses to give the object. Where a bucket may not be listed, that is said of missing objects too."""


class CutShortError(Exception):
    """An answer that is shorter or longer than what was asked for."""


class ChangedError(Exception):
    """An answer from another version of the object."""


def request(name: str, ask: Callable[[], Answer], act: str = "read") -> Answer:
    """What `ask` returns, which sends one request about the object or folder `name`, tried again if it fails.

    act  what is done: read or written; an object may be written again, since it is always written whole
    Raises FileNotFoundError if there is no such object, NoPermissionError, StorageError for all else.
    """
    begin, pause, attempts = time.monotonic(), LIMITS.first_pause, 0
    while True:
        attempts += 1
        try:
            return ask()
        except Exception as error:
            if isinstance(error, AtlasviError):
                raise
            reason = find_passing_reason(error)
            if reason is None:
                raise explain(name, error, act) from None  # what a server answers can hold parts of a secret
        elapsed, wait = time.monotonic() - begin, pause * random.uniform(0.5, 1)
        if elapsed + wait > LIMITS.total:
            tried = f"{attempts} attempts in {elapsed:.0f} s" if attempts > 1 else "1 attempt"
            raise StorageError(
                f"{name}: it can't be {act} ({tried}; the last: {reason}): check the network and the server, then give "
                "the same command again."
            )
        time.sleep(wait)
        pause = min(2 * pause, LIMITS.longest_pause)


def is_out_of_range(error: Exception) -> bool:
    """Whether the server says that an object has no byte of the range that was asked for."""
    return _find(_STATUS, str(error)) == "416"


def find_passing_reason(error: Exception) -> str | None:
    """A few words for an error that may not occur again; None for one that will."""
    if isinstance(error, CutShortError):
        return str(error)
    if isinstance(error, (FileNotFoundError, PermissionError, ChangedError)):
        return None
    kind, text = type(error).__name__, str(error)
    if kind in ("PreconditionError", "PermissionDeniedError", "UnauthenticatedError", "InvalidPathError"):
        return None
    status, code = _find(_STATUS, text), _find(_CODE, text)
    if code in EXPIRED or code in BUCKETS or _lacks_credentials(text):
        return None
    if status and int(status) < 500 and int(status) not in AGAIN_STATUS and code not in AGAIN:
        return None
    if status:
        return f"the server answered {status}{f' {code}' if code else ''}"
    if kind == "NotSupportedError" or "non-partial" in text:
        return "the server sent something else than the part that was asked for"
    if kind != "GenericError" and not isinstance(error, OSError):
        return None
    return KINDS.get(_find(_KIND, text) or "", "the connection failed")


def explain(name: str, error: Exception, act: str = "read") -> Exception:
    """An error that is final as a sentence; FileNotFoundError where there is no such object."""
    kind, text = type(error).__name__, str(error)
    status, code = _find(_STATUS, text), _find(_CODE, text)
    if isinstance(error, ChangedError) or kind == "PreconditionError":
        return changed(name)
    if code in BUCKETS:
        return StorageError(f"{name}: there is no such bucket: check the address, and the storage option endpoint.")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(2, "there is no such object", name)
    if code in EXPIRED:
        return StorageError(f"{name}: the credentials have expired: renew them, then give the same command again.")
    if "External AWS credential provider" in text:
        return StorageError(
            f"{name}: the profile gives no valid credentials: log in again, then give the same command again."
        )
    if _lacks_credentials(text):
        return StorageError(
            f"{name}: no credentials were found: set them in the environment or name a profile (--storage "
            "profile=NAME); for a public bucket: --storage anonymous=yes."
        )
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError") or status in ("401", "403")
    if refused and act == "written":
        return NoPermissionError(
            f"{name}: no permission to write it{f' ({code})' if code else ''}: check the name and the credentials."
        )
    if refused:
        return NoPermissionError(
            f"{name}: no permission to read it{f' ({code})' if code else ''}, or it is not there: check the name and "
            "the credentials; for a public bucket: --storage anonymous=yes."
        )
    said = f"the server answered {status}{f' {code}' if code else ''}" if status else type(error).__name__
    hint = ", and the region (--storage region=NAME)" if status and status.startswith("3") else ""
    if status == "400" and not code:  # answers to HEAD have no body that would say more
        hint = ", and whether the credentials have expired"
    return StorageError(f"{name}: it can't be {act} ({said}): check the address{hint}.")


def changed(name: str) -> StorageError:
    """The error for an object that is not the one that was opened."""
    return StorageError(
        f"{name} was replaced or changed while it was being read: open it again, and resume from the last checkpoint "
        "only if it holds the same cells."
    )


def _lacks_credentials(text: str) -> bool:
    """Whether an error says that the machine has no role: there obstore looks last."""
    return "169.254.169.254" in text or "metadata.google.internal" in text or "fd00:ec2::254" in text


def _find(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None
