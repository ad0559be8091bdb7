import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.api.scvi import SCVI
from atlasvi.engine.hub import receiving
from atlasvi.engine.hub.hub_files import ConnectionLostError, HubError, ListedFile, list_folder
from atlasvi.engine.hub.receiving import receive
from atlasvi.engine.hub.transfer import pull, push
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import read_manifest
from tests.engine.hub.hub_folders import FILES
from tests.engine.scvi_tools.test_model_directories import write_torch_file


@pytest.fixture
def hub(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "hub")
    return tmp_path / "hub"


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_push_to_a_folder_sends_only_what_differs(hub: Path, tmp_path: Path):
    first = push(hub, tmp_path / "shared" / "model")
    assert sorted(first.sent) == sorted(FILES)
    assert content(tmp_path / "shared" / "model") == content(hub)
    assert push(hub, tmp_path / "shared" / "model").sent == ()
    text = "---\nlicense: mit\n---\n# A better text\n"
    (hub / "README.md").write_text(text)
    (tmp_path / "shared" / "model" / "metrics.json").unlink()
    assert sorted(push(hub, tmp_path / "shared" / "model").sent) == ["README.md", "metrics.json"]
    assert read_manifest(tmp_path / "shared" / "model", "atlasvi.json")["README.md"][0] == len(
        "---\nlicense: mit\n---\n# A better text\n"
    )
    assert pull(tmp_path / "shared" / "model", hub).sent == ()
    assert sorted(os.listdir(tmp_path)) == ["hub", "shared"]


def test_an_interrupted_pull_leaves_no_folder_and_goes_on_where_it_stopped(hub: Path, tmp_path: Path):
    files, fetched = list_folder(hub), list[str]()

    def fetch(name: str, folder: Path) -> None:
        if name == stop_at:
            (folder / name).write_bytes(b"the first bytes of it")
            raise ConnectionLostError("the network is gone")
        fetched.append(name)
        shutil.copyfile(hub / name, folder / name)

    stop_at, out = sorted(files)[3], tmp_path / "out"
    with pytest.raises(ConnectionLostError):
        receive(out, "there", files, fetch)
    assert not out.exists()
    before, stop_at = list(fetched), ""
    assert receive(out, "there", files, fetch) == [name for name in files if name not in before]
    assert sorted(fetched) == sorted(files)
    assert content(out) == content(hub)
    assert sorted(os.listdir(tmp_path)) == ["hub", "out"]


def test_a_folder_that_exists_changes_when_all_has_arrived_and_not_before(hub: Path, tmp_path: Path, monkeypatch):
    push(hub, tmp_path / "out")
    before = content(tmp_path / "out")
    for name in ("README.md", "card.html"):
        (hub / name).write_text(f"a new {name}")
    copied = list[str]()

    def copy(source: Path, target: Path) -> None:
        if copied:
            raise OSError(28, "No space left on device")
        copied.append(str(source))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("atlasvi.engine.hub.transfer.shutil.copyfile", copy)
    with pytest.raises(OutputError, match="the disk is full"):
        push(hub, tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["hub", "out"]


def test_another_model_is_replaced_only_if_that_is_said_and_none_of_its_data_stays(hub: Path, tmp_path: Path):
    push(hub, tmp_path / "out")
    (hub / "adata.h5ad").unlink()
    (hub / "atlasvi.json").unlink()
    with open(hub / "model.pt", "ab") as file:
        file.write(b"another")
    with pytest.raises(OutputError, match=r"out holds another model: .*--replace"):
        push(hub, tmp_path / "out")
    push(hub, tmp_path / "out", replace=True)
    assert not (tmp_path / "out" / "adata.h5ad").exists()
    assert "adata.h5ad" not in read_manifest(tmp_path / "out", "atlasvi.json")


def test_a_place_that_is_taken_is_not_touched(hub: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, reason in (("mine", "holds other files"), ("file", "is not a folder"), ("hub", "that is to be copied")):
        with pytest.raises(OutputError, match=reason):
            push(hub, tmp_path / place)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_what_is_no_hub_folder_or_is_damaged_is_not_sent(hub: Path, tmp_path: Path):
    with pytest.raises(SourceError, match=r"is not a hub folder: it has no model\.pt"):
        push(tmp_path, tmp_path / "out")
    with pytest.raises(SourceError, match=r"holds no model of scvi-tools"):
        pull(tmp_path, tmp_path / "out")
    with open(hub / "adata.h5ad", "r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    with pytest.raises(SourceError, match=r"adata\.h5ad is damaged or was changed: it does not match atlasvi\.json"):
        push(hub, tmp_path / "out")
    assert os.listdir(tmp_path) == ["hub"]


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "..\\evil.py"])
def test_a_list_cannot_write_outside_the_folder(tmp_path: Path, name: str):
    with pytest.raises(SourceError, match="would lead out of the folder"):
        receive(tmp_path / "out", "there", {name: ListedFile(1, "crc32:00000000")}, lambda name, folder: None)
    assert os.listdir(tmp_path) == []


def test_a_file_that_arrives_damaged_is_refused(hub: Path, tmp_path: Path):
    with pytest.raises(SourceError, match=r"there: .* arrived damaged"):
        receive(tmp_path / "out", "there", list_folder(hub), lambda name, folder: (folder / name).write_text("x"))
    assert os.listdir(tmp_path) == ["hub"]


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place),)


def test_a_hostile_model_is_pulled_and_refused_without_being_run(hub: Path, tmp_path: Path):
    (hub / "atlasvi.json").unlink()
    write_torch_file(hub / "model.pt", pickle.dumps({"model_state_dict": Hostile(tmp_path / "run")}, 2))
    pull(hub, tmp_path / "out")
    with pytest.raises(SourceError, match=r"model\.pt.*mkdir"):
        SCVI.load(tmp_path / "out", accelerator="cpu")
    assert not (tmp_path / "run").exists()


def test_a_pulled_model_answers_as_the_one_that_was_pushed(hub: Path, tmp_path: Path):
    push(hub, tmp_path / "there")
    pull(str(tmp_path / "there"), tmp_path / "here")
    pushed, pulled = (SCVI.load(place, accelerator="cpu") for place in (hub, tmp_path / "here"))
    assert np.array_equal(pushed.get_latent_representation(), pulled.get_latent_representation())


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3://bucket/model", "object stores are neither read nor written yet"),
        ("gs://bucket/model", "object stores are neither read nor written yet"),
        ("https://huggingface.co/lab/model", "as hf://OWNER/NAME"),
        ("hf://model", "write it as hf://OWNER/NAME"),
        ("hf://a/b/c", "write it as hf://OWNER/NAME"),
    ],
)
def test_other_places_are_refused_in_a_sentence(hub: Path, tmp_path: Path, place: str, reason: str):
    with pytest.raises(HubError, match=reason):
        push(hub, place)
    with pytest.raises(HubError, match=reason):
        pull(place, tmp_path / "out")


def test_two_processes_do_not_write_one_folder(hub: Path, tmp_path: Path):
    push(hub, tmp_path / "out")
    (hub / "README.md").write_text("new")
    scratch = tmp_path / ".out.unfinished"
    scratch.mkdir()
    with (
        receiving.lock_folder(scratch, "here"),
        pytest.raises(OutputError, match=r"another process is writing .*out: wait for it"),
    ):
        push(hub, tmp_path / "out")
