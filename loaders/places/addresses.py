"""Addresses of objects: s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, https://HOST/KEY.

An address is shown in errors and kept in runs and models, so it must not hold a secret: a password in it, or a
signature in its query, is refused without being repeated.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from atlasvi.loaders.errors import SourceError

CLOUDS = ("s3", "gs", "az")
SERVERS = ("https", "http")
KNOWN = "s3://BUCKET/NAME, gs://BUCKET/NAME, az://CONTAINER/NAME, https://HOST/NAME or file:///PATH"
_SCHEME = re.compile(rf"({'|'.join((*CLOUDS, *SERVERS))})://", re.IGNORECASE)
_BUCKET = re.compile(r"[^@:]*"), re.compile(r"[^@:]*(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?")  # a cloud's; a server's host
_COLLAPSED = re.compile(rf"({'|'.join((*CLOUDS, *SERVERS, 'file'))}):/(?!/)", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where an object is, or a folder of objects.

    scheme  's3', 'gs', 'az', 'https' or 'http'
    bucket  bucket or container; for a web server its host, and port
    key     the object's name in the bucket, or the part that the names of a folder's objects begin with; '' is the top
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"

    @property
    def is_listable(self) -> bool:
        """Whether the objects of a folder can be listed: a web server has no such request."""
        return self.scheme in CLOUDS

    def join(self, name: str) -> "Address":
        """The address of an object, or a folder, in this folder."""
        return replace(self, key="/".join(part for part in (self.key, name.strip("/")) if part))


def restore_address(path: object) -> str:
    """A path as text: an address, or a local path without `file://`.

    A `Path` that was made of an address, and so lost one of its slashes, gets it back.
    """
    text = str(path)
    if isinstance(path, Path) and _COLLAPSED.match(text) and not path.exists():
        text = _COLLAPSED.sub(lambda found: f"{found[1]}://", text, count=1)
    return str(parse_address(text)) if text.lower().startswith("file://") else text


def parse_address(text: str) -> Address | Path:
    """The address that a text holds; a local path for `file:///PATH` and for any text that is no address.

    Raises SourceError for an address without a bucket, or with a password or a query.
    """
    if text.lower().startswith("file://"):
        return Path(unquote(re.sub(r"^file://(localhost)?", "", text, flags=re.IGNORECASE)))
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), text[found.end() :]
    bucket, _, key = rest.partition("/")
    if not _BUCKET[scheme in SERVERS].fullmatch(bucket):  # the rest of a secret with a slash would be in the key
        raise SourceError(
            f"{scheme}://...: the address holds a user name or a password, or a bucket's name of other characters than "
            "there are in one; leave them out and give credentials in the environment or in a profile."
        )
    key = unquote(key) if scheme in SERVERS else key
    if scheme in SERVERS and "?" in rest:
        raise SourceError(
            f"{scheme}://{rest.partition('?')[0]}: the address goes on with a query (after '?'), which may hold a "
            "secret and is not kept: give the address without it, or copy the file to this machine first."
        )
    if not bucket:
        raise SourceError(f"{text}: the address names no bucket; addresses are {KNOWN}.")
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise SourceError(f"{text}: the address holds '..'; give it without.")
    return Address(scheme, bucket, "/".join(parts))
