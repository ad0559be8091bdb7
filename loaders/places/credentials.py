"""Credentials and regions of S3 where obstore does not look for them: profiles, and buckets of other regions.

obstore itself reads the environment (AWS_ACCESS_KEY_ID and its like, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*),
web identities, containers and the machine's own role, and gcloud's file. It reads no profiles.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from atlasvi.loaders.errors import StorageError

REREAD = timedelta(minutes=10)  # a profile's file is read again after this time: other programs renew its tokens
REGION_SECONDS = 10.0
OF_THE_MACHINE = (  # set where a container or a pod gives credentials
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def choose_profile(given: str | None) -> str | None:
    """The profile to use, in the order of the clouds' own tools; None: other credentials come first, or are all.

    The given profile; keys in the environment; AWS_PROFILE; what a container or a pod gives; the profile `default`.
    """
    if given is not None or "AWS_ACCESS_KEY_ID" in os.environ:
        return given
    if profile := os.environ.get("AWS_PROFILE"):
        return profile
    if any(name in os.environ for name in OF_THE_MACHINE):
        return None
    return "default" if "aws_access_key_id" in read_profile("default") else None


def read_profile(name: str) -> dict[str, str]:
    """The entries of a profile in ~/.aws/config and ~/.aws/credentials, the second before the first."""
    import configparser

    found: dict[str, str] = {}
    places = (
        ("AWS_CONFIG_FILE", "config", (name if name == "default" else f"profile {name}")),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    )
    for variable, file, section in places:
        parser = configparser.RawConfigParser()
        path = Path(os.environ.get(variable) or f"~/.aws/{file}").expanduser()
        try:
            parser.read(path)
        except (OSError, ValueError, configparser.Error):
            # a parser's message may repeat the line that it does not understand, which may hold a secret
            raise StorageError(f"{path}: it can't be read as a file of profiles: correct it.") from None
        if parser.has_section(section):
            found.update(parser.items(section))
    return found


def make_provider(profile: str) -> Callable[[], Any]:
    """A function that returns the keys of a profile as obstore wants them.

    A profile that asks for a login or another role is read by boto3, if it is installed.
    Raises StorageError if there is no such profile, or boto3 is needed and not installed.
    """

    def provide() -> dict[str, Any]:
        entries = read_profile(profile)
        if "aws_access_key_id" not in entries:
            raise StorageError(f"The profile {profile!r} has no keys any more: log in again.")
        return {
            "access_key_id": entries["aws_access_key_id"],
            "secret_access_key": entries.get("aws_secret_access_key", ""),
            "token": entries.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + REREAD,
        }

    entries = read_profile(profile)
    if not entries:
        raise StorageError(f"There is no profile {profile!r} in ~/.aws/config or ~/.aws/credentials: check its name.")
    if "aws_access_key_id" in entries and "role_arn" not in entries:
        return provide
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise StorageError(
            f"The profile {profile!r} holds no keys but a login or a role: pip install boto3, or put keys into the "
            "environment: eval $(aws configure export-credentials --format env)."
        ) from None
    return Boto3CredentialProvider(boto3.Session(profile_name=profile))


def find_region(bucket: str) -> str | None:
    """The region of a bucket of AWS, as its server says it to anybody; None if it does not."""
    import urllib.error  # imports much that local files do not need
    import urllib.request

    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    with suppress(OSError, ValueError):
        try:
            with urllib.request.urlopen(request, timeout=REGION_SECONDS) as answer:
                return answer.headers.get("x-amz-bucket-region")
        except urllib.error.HTTPError as error:  # 301 for another region, 403 for a private bucket
            return error.headers.get("x-amz-bucket-region")
    return None
