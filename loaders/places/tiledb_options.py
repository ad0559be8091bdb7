"""The options of a bucket as TileDB names them: it reads buckets by its own means, with our options and credentials."""

from urllib.parse import urlsplit

from atlasvi.loaders.places.connections import configure_s3
from atlasvi.loaders.places.credentials import choose_profile, make_provider
from atlasvi.loaders.places.object_path import ObjectPath, Place


def name_for_tiledb(place: Place) -> str:
    """A path or an address as TileDB writes it.

    Paths are absolute: TileDB takes others from the folder in which the process was when TileDB first needed one.
    """
    if not isinstance(place, ObjectPath):
        return str(place.absolute())
    return f"azure{str(place).removeprefix('az')}" if place.address.scheme == "az" else str(place)


def find_tiledb_options(place: Place) -> dict[str, str]:
    """TileDB's configuration for a place; empty for a local path. It may hold secrets: it is passed on, not kept.

    Raises StorageError if there is no such profile.
    """
    if not isinstance(place, ObjectPath):
        return {}
    storage, scheme = place.storage, place.address.scheme
    if scheme == "gs":
        return {"vfs.gcs.endpoint": storage.endpoint} if storage.endpoint else {}
    if scheme == "az":
        return {"vfs.azure.blob_endpoint": storage.endpoint} if storage.endpoint else {}
    found = {}
    config = configure_s3(place.address, storage)
    found["vfs.s3.region"] = config["region"]
    if endpoint := config.get("endpoint"):
        parts = urlsplit(endpoint)
        found |= {
            "vfs.s3.endpoint_override": parts.netloc,
            "vfs.s3.scheme": parts.scheme,
            "vfs.s3.use_virtual_addressing": "false",
        }
    if storage.is_anonymous:
        found["vfs.s3.no_sign_request"] = "true"
    elif profile := choose_profile(storage.profile):
        keys = make_provider(profile)()
        found |= {
            "vfs.s3.aws_access_key_id": keys["access_key_id"],
            "vfs.s3.aws_secret_access_key": keys["secret_access_key"],
            "vfs.s3.aws_session_token": keys["token"] or "",
        }
    return found
