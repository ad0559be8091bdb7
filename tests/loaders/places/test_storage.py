import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.storage import VARIABLE, Storage, complete_storage, parse_storage, use_storage


def test_options_are_read_and_used_where_an_address_does_not_say_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")
    storage = parse_storage(["endpoint=https://minio.lab.org:9000", "anonymous = yes"])
    assert storage == Storage(endpoint="https://minio.lab.org:9000", anonymous="yes")
    assert storage.is_anonymous
    use_storage(storage)
    assert complete_storage({"region": "us-west-2", "anonymous": "no"}) == Storage(
        endpoint="https://minio.lab.org:9000", region="us-west-2", anonymous="no"
    )
    assert not complete_storage({"anonymous": "no"}).is_anonymous


@pytest.mark.parametrize("option", ["secret_access_key=hunter2", "token=hunter2", "account-key=hunter2"])
def test_a_secret_is_no_option_and_is_not_repeated(option: str):
    with pytest.raises(SourceError, match="set them in the environment") as error:
        parse_storage([option])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("regoin=x", "no storage option 'regoin'; there are: endpoint, region, profile, anonymous"),
        ("anonymous=maybe", "it can be yes or no"),
        ("endpoint=minio:9000", "is not an address such as"),
        ("anonymous", "written KEY=VALUE"),
    ],
)
def test_a_wrong_option_is_one_sentence(option: str, sentence: str):
    with pytest.raises(SourceError, match=sentence):
        parse_storage([option])


def test_an_endpoint_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(SourceError, match="no password") as error:
        Storage(endpoint="https://anna:hunter2@minio")
    assert "hunter2" not in str(error.value)
