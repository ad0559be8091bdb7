"""Minibatches on their way to a device, in one piece of memory and in several."""

import numpy as np
import pytest
import torch

from atlasvi.loaders.batches.batch import Batch, lay_out


def make_batch(lengths: list[int], n_codes: int, in_one_piece: bool) -> Batch:
    """A minibatch whose values are all different, as the loader lays it out."""
    n_cells, n_counts = len(lengths), sum(lengths)
    wanted = {
        "indptr": ((n_cells + 1,), np.dtype(np.int32)),
        "library": ((n_cells,), np.dtype(np.float32)),
        "rows": ((n_cells,), np.dtype(np.int64)),
        "codes/batch": ((n_cells,), np.dtype(np.int64)),
        "codes/numbers": ((n_cells, n_codes), np.dtype(np.float32)),
        "indices": ((n_counts,), np.dtype(np.uint16)),
        "counts": ((n_counts,), np.dtype(np.uint8)),
    }
    memory, arrays = lay_out(wanted, lambda n_bytes: np.zeros(n_bytes, np.uint8))
    for k, array in enumerate(arrays.values()):
        array.reshape(-1)[:] = np.arange(array.size) % 50 + k
    arrays["indptr"][:] = np.cumsum([0, *lengths])
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    codes = {name: tensors.pop(f"codes/{name}") for name in ("batch", "numbers")}
    return Batch(**tensors, n_genes=60, codes=codes, memory=torch.from_numpy(memory) if in_one_piece else None)


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("in_one_piece", [True, False])
@pytest.mark.parametrize("lengths", [[3, 0, 5], [0, 0], [], [7] * 100])
@pytest.mark.parametrize("n_codes", [2, 0])
def test_on_a_device_each_tensor_is_what_it_was(device: str, in_one_piece: bool, lengths: list[int], n_codes: int):
    batch = make_batch(lengths, n_codes, in_one_piece)
    moved = batch.to(device)
    assert list(moved.codes) == list(batch.codes)
    for there, here in zip(moved.tensors, batch.tensors, strict=True):
        assert (there.device.type, there.dtype, there.shape) == (device, here.dtype, here.shape)
        assert device == "meta" or torch.equal(there.cpu(), here)
    assert (moved.memory is None) == (not in_one_piece)
