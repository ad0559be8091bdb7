from pathlib import Path

import pytest

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places.credentials import OF_THE_MACHINE, choose_profile, make_provider, read_profile


@pytest.fixture(autouse=True)
def _profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in (*OF_THE_MACHINE, "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(
        "[default]\nregion = us-west-2\n[profile lab]\nregion = eu-west-1\n[profile sso]\nsso_session = x\n"
    )
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B\n"
        "[lab]\naws_access_key_id = C\naws_secret_access_key = D\naws_session_token = E\n"
    )  # fmt: skip
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def test_a_profile_is_read_from_both_files():
    assert read_profile("lab")["region"] == "eu-west-1"
    keys = make_provider("lab")()
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == ("C", "D", "E")


def test_profiles_and_the_environment_come_in_the_order_of_the_clouds_own_tools(monkeypatch: pytest.MonkeyPatch):
    assert choose_profile(None) == "default"
    monkeypatch.setenv(OF_THE_MACHINE[0], "/token")
    assert choose_profile(None) is None
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert choose_profile(None) == "lab"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "F")
    assert choose_profile(None) is None
    assert choose_profile("other") == "other"


def test_a_profile_that_is_not_there_is_one_sentence():
    with pytest.raises(StorageError, match="no profile 'nobody'"):
        make_provider("nobody")


def test_a_profile_with_a_login_needs_boto3(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(StorageError, match="pip install boto3"):
        make_provider("sso")


def test_a_file_of_profiles_that_cannot_be_read_is_named_and_not_quoted(tmp_path: Path):
    (tmp_path / "credentials").write_text("aws_secret_access_key hunter2\n")
    with pytest.raises(StorageError, match="can't be read as a file of profiles") as error:
        read_profile("default")
    assert "hunter2" not in str(error.value)
