import contextlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from atlasvi.engine.model.covariates import Setup, SetupKeys
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import kl_of_normals
from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools, save_scvi_tools
from atlasvi.engine.torch_files import read_torch_file
from atlasvi.loaders.batches.batch import Batch, to_tensor
from atlasvi.loaders.errors import OutputError, SourceError
from tests.golden.cases import make_cells

MODELS = Path(__file__).parents[2] / "golden" / "models"


def make_data() -> anndata.AnnData:
    """The cells that the golden models were trained on."""
    cells = make_cells()
    columns = ("batch", "labels", "donor", "same", "sex", "age", "score", "factor")
    obs = pd.DataFrame({name: cells[name] for name in columns}, index=[f"c{k}" for k in range(len(cells["counts"]))])
    return anndata.AnnData(cells["counts"], obs, pd.DataFrame(index=[f"g{k}" for k in range(30)]))


def write_torch_file(path: Path, content: Any, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save lays it out, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        for key, values in (storages or {}).items():
            archive.writestr(f"model/data/{key}", values)
    return path


def batch_of(run: TrainedRun, data: anndata.AnnData) -> Batch:
    """Cells of an AnnData in memory as the loader hands them out."""
    counts = sparse.csr_matrix(data.X)
    codes = run.setup.read_codes(Columns(data), labels=True)
    return Batch(
        indptr=torch.from_numpy(counts.indptr),
        indices=torch.from_numpy(counts.indices),
        counts=torch.from_numpy(counts.data),
        library=torch.from_numpy(np.asarray(counts.sum(1), np.float32).ravel()),
        rows=torch.arange(data.n_obs),
        n_genes=data.n_vars,
        codes={name: to_tensor(values) for name, values in codes.items()},
    )


class Columns:
    """obs of an AnnData in memory."""

    path = "memory"

    def __init__(self, data: anndata.AnnData) -> None:
        self.data, self.n_cells = data, data.n_obs

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        return self.data.obs[name].iloc[start:stop]


def compute(run: TrainedRun, batch: Batch) -> dict[str, Tensor]:
    """What the golden files hold, at the posterior mean."""
    with torch.no_grad():
        qzm, qzv = run.model.encode(batch)
        library = batch.library
        if run.model.settings.has_latent_library:
            library = run.model.encode_library(batch)[0].exp()
        z = run.model.to_latent(qzm)
        nll, mean = run.model.reconstruction(batch, z, library), run.model.decode(z, batch.codes, library).mean
    return {"qzm": qzm, "qzv": qzv, "nll": nll, "mean": mean, "kl": kl_of_normals(qzm, qzv).sum(1)}


@pytest.mark.parametrize("name", ["onek1k_seed", "onek1k_zinb"])
def test_weights_of_scvi_tools_give_the_numbers_of_scvi_tools(shared: Path, tmp_path: Path, name: str):
    folder = shared / "scvi_models" / name
    save_scvi_tools(load_scvi_tools(folder), tmp_path / "again")
    with np.load(folder / "expected.npz") as file:
        expected = {key: torch.from_numpy(file[key]) for key in file}
    cells = anndata.read_h5ad(shared / "data" / "onek1k.h5ad")[expected["rows"].numpy()]
    for place in (folder, tmp_path / "again"):
        run = load_scvi_tools(place)
        batch = batch_of(run, cells[:, run.genes])
        got = compute(run, batch)
        got.update(px_rate_at_qzm=got["mean"], nll_at_qzm=got["nll"], library=batch.library, rows=expected["rows"])
        for key, values in expected.items():
            difference = (got[key] - values).abs().double()
            assert (difference <= 1e-4 * values.abs() + 1e-6).all(), key
            assert difference.norm() <= 1e-5 * values.double().norm(), key


@pytest.mark.parametrize("folder", sorted(MODELS.iterdir()), ids=lambda folder: folder.name)
def test_any_model_of_any_version_gives_its_numbers_also_when_written_again(folder: Path, tmp_path: Path):
    """Models of scvi-tools 1.0 to 1.5, with a training history in them, over options, covariates and layers."""
    save_scvi_tools(load_scvi_tools(folder), tmp_path / "again")
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    for place in (folder, tmp_path / "again"):
        run = load_scvi_tools(place)
        got = compute(run, batch_of(run, make_data()))
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_columns_and_categories_come_along_and_go_back_in_their_types(tmp_path: Path):
    run = load_scvi_tools(MODELS / "latent")
    assert run.setup == Setup(
        keys=SetupKeys(
            batch_key="batch",
            labels_key="labels",
            categorical_covariate_keys=("donor", "same", "sex"),
            continuous_covariate_keys=("age", "score"),
        ),
        categories={
            "batch": {"batch": ["b0", "b1", "b2"]},
            "labels": {"labels": ["B", "T"]},
            "categories": {"donor": ["d0", "d1", "d2", "d3"], "same": ["x"], "sex": [0, 1]},
        },
        category_dtypes={"sex": "int64"},
        n_cells=20,
    )
    save_scvi_tools(run, tmp_path / "again")
    assert load_scvi_tools(tmp_path / "again").setup == run.setup
    first, again = (
        read_torch_file(folder / "model.pt")["attr_dict"] for folder in (MODELS / "latent", tmp_path / "again")
    )
    assert first["init_params_"] == again["init_params_"]
    theirs, ours = first["registry_"]["field_registries"], again["registry_"]["field_registries"]
    for name in ("batch", "labels", "extra_categorical_covs", "extra_continuous_covs", "size_factor"):
        np.testing.assert_equal(ours[name], theirs[name])
    assert first["registry_"]["setup_args"] == again["registry_"]["setup_args"]


def test_the_layer_and_the_size_factor_come_along():
    run = load_scvi_tools(MODELS / "factor")
    assert (run.setup.layer, run.setup.keys.size_factor_key, run.setup.batch_categories) == ("counts", "factor", [0, 1])
    assert run.model.settings.use_size_factor


def change_model(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model directory with something about it changed."""
    content = torch.load(folder / "model.pt", weights_only=False)
    change(content)
    out.mkdir()
    torch.save(content, out / "model.pt")
    return out


def test_what_we_do_not_have_is_refused_by_name(tmp_path: Path):
    def set_argument(content: dict[str, Any]) -> None:
        content["attr_dict"]["init_params_"]["kwargs"]["kwargs"]["extra_decoder_kwargs"] = {"bias": False}

    def set_name(content: dict[str, Any]) -> None:
        content["attr_dict"]["registry_"]["model_name"] = "TOTALVI"

    for number, (change, message) in enumerate(
        [(set_argument, r"made with extra_decoder_kwargs = \{'bias': False\}"), (set_name, "a TOTALVI model")]
    ):
        with pytest.raises(SourceError, match=message):
            load_scvi_tools(change_model(MODELS / "plain", tmp_path / str(number), change))


def test_weights_that_do_not_fit_the_settings_are_refused(tmp_path: Path):
    def drop(content: dict[str, Any]) -> None:
        del content["model_state_dict"]["px_r"]

    def widen(content: dict[str, Any]) -> None:
        name = "decoder.px_decoder.fc_layers.Layer 0.0.weight"
        content["model_state_dict"][name] = np.zeros((8, 40), np.float32)

    for number, (change, message) in enumerate(
        [(drop, "px_r"), (widen, "has 40 inputs, but with these settings it has 15")]
    ):
        with pytest.raises(SourceError, match=message):
            load_scvi_tools(change_model(MODELS / "latent", tmp_path / str(number), change))


def test_a_directory_is_written_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        save_scvi_tools(load_scvi_tools(MODELS / "plain"), tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


class RunsCommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_training_history_of_pandas_3_is_passed_over(tmp_path: Path):
    """The file holds {"n_genes": 7, "history_": tables}, pickled by pandas 3.1.1 (protocol 2); one table has text."""
    content = (MODELS.parent / "history-pandas-3.pkl").read_bytes()
    found = read_torch_file(write_torch_file(tmp_path / "model.pt", content))
    assert found["n_genes"] == 7
    assert set(found["history_"]) == {"elbo_train", "note", "last"}
    assert not any(isinstance(table, (pd.DataFrame, pd.Series)) for table in found["history_"].values())


def test_a_pickle_that_would_run_a_command_is_refused_by_name_and_nothing_runs(tmp_path: Path):
    path = write_torch_file(tmp_path / "model.pt", RunsCommand(f"touch {tmp_path / 'ran'}"))
    with pytest.raises(SourceError, match=r"names (posix|nt)\.system"):
        load_scvi_tools(tmp_path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "torch load", "numpy load", "numpy.lib x"])
def test_other_globals_are_refused_by_name(tmp_path: Path, name: str):
    module, attribute = name.split()
    path = write_torch_file(tmp_path / "model.pt", f"\x80\x02c{module}\n{attribute}\n.".encode("latin1"))
    with pytest.raises(SourceError, match=f"names {module}.{attribute}"):
        read_torch_file(path)


def tensor_pickle(offset: int, size: tuple, stride: tuple) -> bytes:
    """The pickle of a tensor over storage '0' of four floats, described as given."""
    described = b"".join(
        pickle.dumps(part, 2)[2:-1]  # without the protocol's frame
        for part in (offset, size, stride)
    )
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + described + b"tR."


STORAGE = {"0": np.arange(4, dtype=np.float32).tobytes()}


def test_a_tensor_is_a_view_of_its_storage(tmp_path: Path):
    path = write_torch_file(tmp_path / "model.pt", tensor_pickle(1, (2,), (2,)), STORAGE)
    assert read_torch_file(path).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, (5,), (1,)), (3, (2,), (1,)), (-2, (2,), (1,)), (3, (9,), (-1,)), (4, (), ())]
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path, offset: int, size: tuple, stride: tuple):
    path = write_torch_file(tmp_path / "model.pt", tensor_pickle(offset, size, stride), STORAGE)
    with pytest.raises(SourceError, match="beyond its storage"):
        read_torch_file(path)


@pytest.mark.parametrize("array", [np.array(["a", None], object), np.arange(6.0).reshape(2, 3), np.array(["x", "yz"])])
def test_arrays_come_back_as_they_were(tmp_path: Path, array: np.ndarray):
    for ordered in (array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))):
        got = read_torch_file(write_torch_file(tmp_path / "model.pt", {"values": ordered}))["values"]
        assert np.array_equal(got, array)
        assert got.dtype == array.dtype


class ArrayOfPointers:
    """Says that it holds objects, and gives their addresses as bytes: numpy's own dtype would be talked into it."""

    def __reduce__(self) -> tuple:
        _, arguments, (version, shape, _, fortran, _) = np.array([None], object).__reduce__()
        return np.zeros(0).__reduce__()[0], arguments, (version, shape, ForgedObjects(), fortran, b"\x00" * 8)


class ForgedObjects:
    def __reduce__(self) -> tuple:
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)  # flags that deny the objects


def test_bytes_are_never_read_as_pointers(tmp_path: Path):
    path = write_torch_file(tmp_path / "model.pt", ArrayOfPointers())
    with pytest.raises(SourceError, match="an array of object holds bytes"):
        read_torch_file(path)


class ForgedArray:
    """An array whose pickle has another shape than its content."""

    def __init__(self, array: np.ndarray, *shape: object) -> None:
        self.array, self.shape = array, shape

    def __reduce__(self) -> tuple:
        function, arguments, (version, _, *rest) = self.array.__reduce__()
        return function, arguments, (version, self.shape, *rest)


@pytest.mark.parametrize("array", [np.array(["a", None], object), np.arange(2.0)])
@pytest.mark.parametrize("shape", [(2000,), (1,), (2, 2), (-1, -2), (2, True), ("2",), (1 << 62, 4, 2)])
def test_an_array_of_another_size_than_its_content_is_refused(tmp_path: Path, array: np.ndarray, shape: tuple):
    path = write_torch_file(tmp_path / "model.pt", ForgedArray(array, *shape))
    with pytest.raises(SourceError, match=r"an array (has|of) the shape"):
        read_torch_file(path)


def test_a_file_cut_anywhere_is_called_damaged(shared: Path, tmp_path: Path):
    content = (shared / "scvi_models" / "onek1k_seed" / "model.pt").read_bytes()
    for share in (0.0, 0.3, 0.9, 0.9999):
        cut = tmp_path / "model.pt"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(SourceError, match="damaged, cut short or not written by torch"):
            load_scvi_tools(cut)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_pickle_with_other_bytes_in_it_is_read_or_refused_and_runs_nothing(changes: list[tuple[float, int]]):
    with zipfile.ZipFile(MODELS / "plain" / "model.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    content = bytearray(entries[name])
    for place, byte in changes:
        content[int(place * len(content))] = byte
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(folder) / "model.pt", "w") as archive:
            for each, values in {**entries, name: bytes(content)}.items():
                archive.writestr(each, values)
        with contextlib.suppress(SourceError):
            assert isinstance(load_scvi_tools(folder), TrainedRun)


def test_settings_that_no_weights_back_are_not_built(tmp_path: Path):
    def deepen(content: dict[str, Any]) -> None:
        content["attr_dict"]["init_params_"]["non_kwargs"]["n_layers"] = 10**9

    def widen(content: dict[str, Any]) -> None:
        content["attr_dict"]["init_params_"]["non_kwargs"]["n_hidden"] = 10**7

    for number, (change, message) in enumerate([(deepen, "fewer than 1000000000 layers"), (widen, "not fit these")]):
        with pytest.raises(SourceError, match=message):
            load_scvi_tools(change_model(MODELS / "plain", tmp_path / str(number), change))


def test_a_small_file_does_not_fill_memory(tmp_path: Path):
    path = write_torch_file(tmp_path / "model.pt", tensor_pickle(0, (10**12,), (0,)), STORAGE)
    with pytest.raises(SourceError, match="beyond its storage"):
        read_torch_file(path)
    far = b"\x80\x02]r\xff\xff\xff\x7f."
    with pytest.raises(SourceError, match="unexpected LONG_BINPUT"):
        read_torch_file(write_torch_file(tmp_path / "far.pt", far))
    filled = b"\x80\x02c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR."
    with pytest.raises(SourceError, match="damaged"):
        read_torch_file(write_torch_file(tmp_path / "other.pt", filled))


def test_what_is_not_there_or_no_model_is_said(tmp_path: Path):
    with pytest.raises(SourceError, match="there is no such file"):
        load_scvi_tools(tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(SourceError, match=r"not a model that scvi-tools 1\.x saved"):
        load_scvi_tools(tmp_path)


@pytest.mark.parametrize(
    ("entry", "content"), [("byteorder", b"big"), ("byteorder", b"lit\x8ble"), ("version", b"\xb3\n")]
)
def test_an_archive_whose_notes_are_not_those_of_torch_is_refused(tmp_path: Path, entry: str, content: bytes):
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pt")
    assert read_torch_file(tmp_path / "model.pt")["weight"].tolist() == [1, 1, 1]
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "changed.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(f"/{entry}") else old.read(name))
    with pytest.raises(SourceError, match="damaged, cut short or not written by torch"):
        read_torch_file(tmp_path / "changed.pt")
