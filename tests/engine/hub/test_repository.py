import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.api.scvi import SCVI
from atlasvi.engine.hub.hub_files import ConnectionLostError, HubError
from atlasvi.engine.hub.repository import Repository
from atlasvi.engine.hub.transfer import pull, push
from atlasvi.loaders.errors import MissingDependencyError, OutputError, SourceError
from tests.engine.hub.hub_folders import FILES
from tests.engine.hub.local_hub import LocalHub, commit_id, serving

NAME = "lab/model"


def test_without_huggingface_hub_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'atlasvi\[hub\]'"):
        Repository(NAME).list_files()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the other storage of the hub, which ours has not
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    hub = LocalHub()
    with serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def copy(folder: Path, to: Path) -> Path:
    """A copy of a hub folder that may be changed."""
    push(folder, to)
    return to


def test_a_model_is_pushed_as_one_commit_and_pulled_again(server: LocalHub, made: Path, tmp_path: Path):
    sent = push(made, f"hf://{NAME}", token="secret", create="private")
    assert sorted(sent.sent) == sorted(FILES)
    assert NAME in server.private
    assert len(server.commits[NAME]) == 2  # with the one that made it
    assert {name: server.files(NAME)[name] for name in FILES} == {name: (made / name).read_bytes() for name in FILES}
    assert server.files(NAME)["atlasvi.json"] == (made / "atlasvi.json").read_bytes()
    pulled = pull(f"hf://{NAME}", tmp_path / "out", token="secret")
    assert sorted(pulled.sent) == sorted(FILES)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*FILES, "atlasvi.json"])
    ours, theirs = (SCVI.load(place, accelerator="cpu") for place in (made, tmp_path / "out"))
    assert np.array_equal(ours.get_latent_representation(), theirs.get_latent_representation())


def test_a_second_push_and_pull_send_only_what_differs(server: LocalHub, made: Path, tmp_path: Path):
    server.make(NAME)
    hub = copy(made, tmp_path / "hub")
    push(hub, f"hf://{NAME}", token="secret")
    pull(f"hf://{NAME}", tmp_path / "out")
    assert push(hub, f"hf://{NAME}", token="secret").sent == ()
    (hub / "README.md").write_text("---\nlicense: mit\n---\n# Better\n")
    server.requests.clear()
    assert push(hub, f"hf://{NAME}", token="secret").sent == ("README.md",)
    assert server.count("PUT", "/lfs/") == 0
    server.requests.clear()
    assert pull(f"hf://{NAME}", tmp_path / "out").sent == ("README.md",)
    assert server.count("GET", "/resolve/") == 1
    assert pull(f"hf://{NAME}@{commit_id(NAME, 1)}", tmp_path / "older").n_files == len(FILES)
    assert (tmp_path / "older" / "README.md").read_bytes() == (made / "README.md").read_bytes()


def test_a_download_that_breaks_off_goes_on(server: LocalHub, made: Path, tmp_path: Path):
    server.make(NAME, {name: (made / name).read_bytes() for name in FILES})
    server.cut_after = 700
    try:
        pull(f"hf://{NAME}", tmp_path / "out")
    except ConnectionLostError:
        assert not (tmp_path / "out").exists()
        pull(f"hf://{NAME}", tmp_path / "out")
    assert server.cut_after is None  # it did break off
    assert server.count("GET", "/resolve/") == len(FILES) + 1
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()
    assert os.listdir(tmp_path) == ["out"]


def test_what_the_hub_refuses_is_a_sentence(server: LocalHub, made: Path, tmp_path: Path):
    with pytest.raises(HubError, match=r"hf://lab/model: there is no such repository.*pass --create private"):
        push(made, f"hf://{NAME}", token="secret")
    with pytest.raises(HubError, match=r"hf://lab/model: there is no such repository, or it is private"):
        pull(f"hf://{NAME}", tmp_path / "out")
    server.make(NAME)
    with pytest.raises(HubError, match=r"needs a token: set HF_TOKEN.*hf auth login"):
        push(made, f"hf://{NAME}")
    with pytest.raises(HubError, match="the token is refused"):
        push(made, f"hf://{NAME}", token="wrong")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        pull(f"hf://{NAME}@v9", tmp_path / "out")
    with pytest.raises(SourceError, match=r"holds no model of scvi-tools: it has no model\.pt"):
        pull(f"hf://{NAME}", tmp_path / "out")
    with pytest.raises(HubError, match="can't be the name of a repository"):
        pull("hf://lab/--model--", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_repository_that_is_taken_is_not_touched(server: LocalHub, made: Path):
    server.make(NAME, {"pytorch_model.bin": b"other weights"})
    with pytest.raises(OutputError, match="holds other files than those of a model"):
        push(made, f"hf://{NAME}", token="secret")
    server.make(NAME, {"model.pt": b"another model", "adata.h5ad": b"its data", "metrics.json": b"{}"})
    with pytest.raises(OutputError, match=r"holds another model: .*--replace"):
        push(made, f"hf://{NAME}", token="secret")
    assert len(server.commits[NAME]) == 1


def test_the_data_of_a_replaced_model_does_not_stay(server: LocalHub, made: Path, tmp_path: Path):
    server.make(NAME, {"model.pt": b"another model", "adata.h5ad": b"its data"})
    hub = copy(made, tmp_path / "hub")
    for name in ("adata.h5ad", "atlasvi.json"):
        (hub / name).unlink()
    push(hub, f"hf://{NAME}", token="secret", replace=True)
    assert "adata.h5ad" not in server.files(NAME)


def test_no_network_is_a_sentence(server: LocalHub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConnectionLostError, match=r"http://127\.0\.0\.1:9 can't be reached .* check the network"):
        pull(f"hf://{NAME}", tmp_path / "out")
    assert os.listdir(tmp_path) == []
