"""Options of object stores: the server, the region, the profile of credentials, or no credentials at all.

None of them is a secret, so that runs and models can keep them. Secrets come from the environment and from profiles.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from atlasvi.loaders.errors import SourceError

VARIABLE = "ATLASVI_STORAGE"
_SECRET = re.compile(r"key|secret|token|password|credential|sas", re.IGNORECASE)
_TRUE, _FALSE = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True)
class Storage:
    """How a bucket is reached; None: as the environment or the cloud's own default says.

    endpoint   address of the server of an object store that is not the cloud's own: https://minio.lab.org:9000
    region     region of an S3 bucket
    profile    profile in ~/.aws/credentials and ~/.aws/config
    anonymous  'yes': send no credentials, for public buckets
    Raises SourceError for a value that can't be used, or an endpoint with a password.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: str | None = None

    def __post_init__(self) -> None:
        if self.anonymous not in (None, *_TRUE, *_FALSE):
            raise SourceError(f"The storage option anonymous is {self.anonymous!r}; it can be yes or no.")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/@?\s]+(/[^@?\s]*)?", self.endpoint):
            shown = "" if "@" in self.endpoint or "?" in self.endpoint else f" ({self.endpoint!r})"
            raise SourceError(
                f"The storage option endpoint{shown} is not an address such as https://minio.lab.org:9000; it must "
                "hold no password."
            )

    @property
    def is_anonymous(self) -> bool:
        """Whether no credentials are sent."""
        return self.anonymous in _TRUE

    @property
    def options(self) -> dict[str, str]:
        """The options that were given, by name."""
        return {name: value for name in STORAGE_OPTIONS if (value := getattr(self, name)) is not None}


STORAGE_OPTIONS = tuple(field.name for field in fields(Storage))


def parse_storage(options: Iterable[str]) -> Storage:
    """Storage options from texts KEY=VALUE. Raises SourceError for any other key; a secret is not repeated."""
    given: dict[str, str] = {}
    for option in options:
        name, mark, value = (part.strip() for part in option.partition("="))
        if not mark:
            raise SourceError("A storage option is written KEY=VALUE, such as --storage region=us-west-2.")
        given[name.lower().replace("-", "_")] = value
    return make_storage(given)


def make_storage(options: Mapping[str, str | None]) -> Storage:
    """Storage options by name. Raises SourceError for an unknown one; a secret is not repeated."""
    for name in options:
        if name not in STORAGE_OPTIONS:
            hint = (
                ". Secrets are not options: set them in the environment (AWS_SECRET_ACCESS_KEY, "
                "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or name a profile"
                if _SECRET.search(name)
                else ""
            )
            raise SourceError(f"There is no storage option {name!r}; there are: {', '.join(STORAGE_OPTIONS)}{hint}.")
    return Storage(**options)


def use_storage(storage: Storage) -> None:
    """Use these options for every address that does not say otherwise, in this process and those that it starts."""
    os.environ[VARIABLE] = ",".join(f"{name}={value}" for name, value in storage.options.items())


def usual_storage() -> Storage:
    """The options of `use_storage`, or those of the environment variable ATLASVI_STORAGE: KEY=VALUE,KEY=VALUE."""
    text = os.environ.get(VARIABLE)
    return parse_storage(text.split(",")) if text else Storage()


def complete_storage(given: Mapping[str, str | None]) -> Storage:
    """The given options, and for those that are None the usual ones."""
    return replace(usual_storage(), **{name: value for name, value in given.items() if value is not None})
