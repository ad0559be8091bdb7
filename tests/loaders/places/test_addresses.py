from pathlib import Path

import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import Address, parse_address, restore_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://atlases/human/lung", Address("s3", "atlases", "human/lung")),
        ("S3://atlases//human/./lung/", Address("s3", "atlases", "human/lung")),
        ("gs://atlases", Address("gs", "atlases", "")),
        ("https://host:8443/a.h5ad", Address("https", "host:8443", "a.h5ad")),
        ("file:///data/a%20b.h5ad", Path("/data/a b.h5ad")),
        ("file://localhost/data", Path("/data")),
        ("data/a.h5ad", Path("data/a.h5ad")),
        ("hf://owner/name", Path("hf://owner/name")),
    ],
)
def test_an_address_names_a_bucket_and_an_object_and_all_else_is_a_path(text: str, expected: Address | Path):
    assert parse_address(text) == expected


def test_an_address_that_became_a_path_gets_its_slash_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert restore_address(Path("s3://atlases/lung")) == "s3://atlases/lung"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "atlases").mkdir(parents=True)
    assert restore_address(Path("s3:/atlases")) == "s3:/atlases", "a folder of this name is there"


@pytest.mark.parametrize(
    "text",
    [
        "https://anna:hunter2@host/a.h5ad",
        "https://anna:hunter2/x@host/a.h5ad",
        "s3://AKIA:hunter2@atlases/a",
        "s3://AKIA:hunter2/x@atlases/a",
        "https://host/a.h5ad?X-Amz-Signature=hunter2",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str):
    with pytest.raises(SourceError, match="the address") as error:
        parse_address(text)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["s3://", "s3:///lung", "s3://atlases/../other"])
def test_an_address_must_name_a_bucket_and_stay_in_it(text: str):
    with pytest.raises(SourceError, match="the address"):
        parse_address(text)


def test_a_server_has_a_port_and_names_as_browsers_write_them():
    assert parse_address("https://[::1]:80/my%20atlas.h5ad") == Address("https", "[::1]:80", "my atlas.h5ad")
    assert parse_address("s3://atlases/a%20b") == Address("s3", "atlases", "a%20b"), "in a bucket it is a name"


def test_a_file_address_is_a_local_path_wherever_it_is_kept():
    assert restore_address("file:///data/my%20atlas") == "/data/my atlas"


def test_names_are_joined_below_an_address():
    address = Address("s3", "atlases", "")
    assert str(address.join("lung").join("obs/n")) == "s3://atlases/lung/obs/n"
    assert str(address) == "s3://atlases"
