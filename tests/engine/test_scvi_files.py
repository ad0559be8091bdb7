import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

from atlasvi.engine.model import kl_of_normals
from atlasvi.engine.scvi_files import load_scvi_tools, read_torch_file
from atlasvi.loaders.batch import Batch
from atlasvi.loaders.errors import SourceError


def write_torch_file(path: Path, content: Any, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save lays it out, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        for key, values in (storages or {}).items():
            archive.writestr(f"model/data/{key}", values)
    return path


def test_weights_of_scvi_tools_give_the_numbers_of_scvi_tools(shared: Path):
    folder = shared / "scvi_models" / "onek1k_seed"
    run = load_scvi_tools(folder)
    with np.load(folder / "expected.npz") as file:
        expected = {name: torch.from_numpy(file[name]) for name in file}
    cells = anndata.read_h5ad(shared / "data" / "onek1k.h5ad")[expected["rows"].numpy(), run.genes]
    counts = sparse.csr_matrix(cells.X)
    codes = [run.batch_categories.index(name) for name in cells.obs[run.batch_key]]
    batch = Batch(
        indptr=torch.from_numpy(counts.indptr),
        indices=torch.from_numpy(counts.indices),
        counts=torch.from_numpy(counts.data),
        library=torch.from_numpy(np.asarray(counts.sum(1), np.float32).ravel()),
        rows=expected["rows"],
        n_genes=len(run.genes),
        codes={"batch": torch.tensor(codes)},
    )
    with torch.no_grad():
        qzm, qzv = run.model.encode(batch)
        got = {
            "qzm": qzm,
            "qzv": qzv,
            "px_rate_at_qzm": run.model.decode(qzm, batch.codes["batch"]) * batch.library[:, None],
            "nll_at_qzm": run.model.reconstruction(batch, qzm),
            "kl": kl_of_normals(qzm, qzv).sum(1),
            "library": batch.library,
        }
    for name, values in got.items():
        difference = (values - expected[name]).abs()
        assert (difference <= 1e-4 * expected[name].abs() + 1e-6).all(), name
        assert difference.norm() <= 1e-5 * expected[name].norm(), name


def test_names_of_genes_batches_and_labels_come_along(shared: Path):
    run = load_scvi_tools(shared / "scvi_models" / "onek1k_seed" / "model.pt")
    assert (run.batch_key, run.labels_key) == ("indiv", "cell_type")
    assert len(run.genes) == 1000
    assert len(run.batch_categories) == 40
    assert run.labels_categories == ["monoc", "mononc", "bmem", "cd4nc"]
    assert not run.model.training


def test_a_model_with_other_settings_is_refused_by_the_setting(shared: Path):
    with pytest.raises(SourceError, match="gene_likelihood = 'zinb'"):
        load_scvi_tools(shared / "scvi_models" / "onek1k_zinb")


class RunsCommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


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


def test_a_file_cut_anywhere_is_called_damaged(shared: Path, tmp_path: Path):
    content = (shared / "scvi_models" / "onek1k_seed" / "model.pt").read_bytes()
    for share in (0.0, 0.3, 0.9, 0.9999):
        cut = tmp_path / "model.pt"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(SourceError, match="damaged or cut short"):
            load_scvi_tools(cut)


def test_what_is_not_there_or_no_model_is_said(tmp_path: Path):
    with pytest.raises(SourceError, match="there is no such file"):
        load_scvi_tools(tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(SourceError, match="not a model of scvi-tools"):
        load_scvi_tools(tmp_path)
