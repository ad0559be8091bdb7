"""Connections to buckets and web servers, one for each bucket and set of options, shared by all threads."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from atlasvi.loaders.errors import MissingDependencyError, SourceError, StorageError
from atlasvi.loaders.places.addresses import Address
from atlasvi.loaders.places.credentials import choose_profile, find_region, make_provider, read_profile
from atlasvi.loaders.places.requests import LIMITS
from atlasvi.loaders.places.storage import Storage

MOST_REQUESTS = 32  # in flight in one process, each of at most PIECE_BYTES (see byte_files.py)
MOST_READERS = 16

_lock = threading.Lock()
_connections: dict[tuple[str, str, Storage], Any] = {}
_opening: dict[tuple[str, str, Storage], threading.Lock] = {}
_threads: dict[str, ThreadPoolExecutor] = {}
in_flight = threading.BoundedSemaphore(MOST_REQUESTS)  # held by each request for bytes while it is answered


def connect(address: Address, storage: Storage) -> Any:
    """The obstore store of an address's bucket.

    Raises MissingDependencyError without obstore, StorageError if the options do not fit.
    """
    key = address.scheme, address.bucket, storage
    with _lock:
        if (opened := _connections.get(key)) is not None:
            return opened
        one_of_them = _opening.setdefault(key, threading.Lock())
    with one_of_them:  # others of the same bucket wait: to find its region can take seconds; those of others need not
        if key not in _connections:
            opened = _open(address, storage)
            with _lock:
                _connections[key] = opened
        return _connections[key]


def import_obstore(address: Address) -> Any:
    """The package obstore. Raises MissingDependencyError where it is not installed."""
    try:
        import obstore.store
    except ImportError:
        raise MissingDependencyError(
            f"{address}: to read what is not on local disk install obstore: pip install 'atlasvi[bucket]'."
        ) from None
    return obstore


def share_threads() -> ThreadPoolExecutor:
    """The threads that wait for answers. A task in them must not wait for another task in them."""
    return _share("requests", MOST_REQUESTS)


def share_readers() -> ThreadPoolExecutor:
    """Threads for tasks that wait for those of `share_threads`, and not for each other."""
    return _share("readers", MOST_READERS)


def _share(name: str, most: int) -> ThreadPoolExecutor:
    with _lock:
        if name not in _threads:
            _threads[name] = ThreadPoolExecutor(most, thread_name_prefix=f"atlasvi-{name}")
        return _threads[name]


def _open(address: Address, storage: Storage) -> Any:
    stores = import_obstore(address).store
    client = {
        "timeout": timedelta(seconds=LIMITS.answer),
        "read_timeout": timedelta(seconds=LIMITS.silence),
        "connect_timeout": timedelta(seconds=LIMITS.connect),
    }
    common: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}}  # requests.py repeats
    try:
        if address.scheme == "s3":
            config = configure_s3(address, storage)
            profile = None if storage.is_anonymous else choose_profile(storage.profile)
            provider = make_provider(profile) if profile else None
            client["allow_http"] = (config.get("endpoint") or "").startswith("http://")  # type: ignore[assignment]
            return stores.S3Store(address.bucket, config=config, credential_provider=provider, **common)
        config = {"skip_signature": True} if storage.is_anonymous else {}
        client["allow_http"] = address.scheme == "http" or (storage.endpoint or "").startswith("http://")  # type: ignore[assignment]
        if address.scheme == "gs":
            config |= {"base_url": storage.endpoint} if storage.endpoint else {}
            return stores.GCSStore(address.bucket, config=config, **common)
        if address.scheme == "az":
            config |= {"endpoint": storage.endpoint} if storage.endpoint else {}
            return stores.AzureStore(address.bucket, config=config, **common)
        return stores.HTTPStore(f"{address.scheme}://{address.bucket}", **common)
    except SourceError:
        raise
    except Exception as error:  # a mistake in an environment variable, an account that is not named, a broken key file
        words = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise StorageError(
            f"{address}: the options and the environment do not fit each other ({words[:120]}): correct them."
        ) from None


def find_endpoint(address: Address, storage: Storage) -> str | None:
    """The address of the server that has a bucket; None: the cloud's own, or what obstore finds for other than S3."""
    if storage.endpoint or address.scheme != "s3":
        return storage.endpoint
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return given or _read_entries(storage).get("endpoint_url")


def _read_entries(storage: Storage) -> dict[str, str]:
    """The entries of the profile that is used, if any."""
    profile = None if storage.is_anonymous else choose_profile(storage.profile)
    return read_profile(profile) if profile else {}


def configure_s3(address: Address, storage: Storage) -> dict[str, Any]:
    """The configuration of an S3 bucket, without credentials: region, and endpoint and skip_signature if need be."""
    entries = _read_entries(storage)
    environment = os.environ
    endpoint = find_endpoint(address, storage)
    region = (
        storage.region
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or entries.get("region")
        or (None if endpoint else find_region(address.bucket))
    )
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    if storage.is_anonymous:
        config["skip_signature"] = True
    return config
