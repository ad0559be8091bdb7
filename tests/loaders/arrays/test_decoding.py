import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from atlasvi.loaders.arrays import decoding
from atlasvi.loaders.arrays.decoding import decode_chunks, undo_gaps

dtypes = st.sampled_from(["u1", "u2", "u4", "i4", "i8"])


@settings(deadline=None)  # the first call compiles
@given(values=st.lists(st.integers(-(2**40), 2**40), max_size=200), dtype=dtypes)
def test_undoing_gaps_is_a_running_sum_that_wraps_around(values, dtype):
    gaps = np.array(values, np.int64).astype(dtype)
    expected = np.cumsum(gaps, dtype=dtype)
    undo_gaps(gaps)
    assert np.array_equal(gaps, expected)


@pytest.mark.parametrize("compiled", [True, False])
@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    dtype=dtypes,
    chunk=st.integers(1, 3_000),
    largest=st.sampled_from([1, 3, 300, 10**9]),
    compressor=st.sampled_from(["lz4", "lz4hc", "zstd", "blosclz"]),
    shuffle=st.sampled_from([blosc.NOSHUFFLE, blosc.SHUFFLE, blosc.BITSHUFFLE]),
    whole=st.booleans(),
    delta=st.booleans(),
)
def test_any_frame_of_blosc_is_decoded(compiled, seed, dtype, chunk, largest, compressor, shuffle, whole, delta):
    values = np.random.default_rng(seed).integers(0, largest, (3, chunk)).astype(dtype)
    size = values.itemsize
    frames = [blosc.compress(part, compressor.encode(), 5, shuffle, chunk * size * whole, size) for part in values]
    begins = np.cumsum([0, *map(len, frames[:-1])])
    out = np.empty(3 * chunk, dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:  # where numcodecs does not show its functions
            patch.setattr(decoding, "BLOSC_DECOMPRESS", 0)
        ends = begins + np.array([*map(len, frames)])
        span = sorted(np.random.default_rng(seed).integers(0, len(out) + 1, 2).tolist())
        descents = decode_chunks(np.frombuffer(b"".join(frames), np.uint8), begins, ends, out, delta, *span)
        assert np.array_equal(out, (np.cumsum(values, axis=1, dtype=dtype) if delta else values).ravel())
        part = out[slice(*span)]
        assert descents == np.count_nonzero(part[1:] <= part[:-1])


def test_numcodecs_shows_the_functions_that_are_called_here():
    assert decoding.BLOSC_DECOMPRESS
    assert decoding.LZ4_DECOMPRESS


@pytest.mark.parametrize("compiled", [True, False])
def test_a_frame_that_holds_something_else_is_refused(compiled: bool, monkeypatch):
    if not compiled:
        monkeypatch.setattr(decoding, "BLOSC_DECOMPRESS", 0)
    values = np.random.default_rng(0).integers(0, 3, 1_000).astype("u2")
    frame = np.frombuffer(blosc.compress(values, b"lz4", 5, blosc.SHUFFLE, 2_000, 2), np.uint8).copy()
    frame[30:] = 255
    with pytest.raises(ValueError, match=r"decompress|not a Blosc frame"):
        decode_chunks(frame, np.zeros(1, np.int64), np.array([len(frame)]), np.empty(1_000, "u2"), False)


@pytest.mark.parametrize("at", [4, 8, 12, 20, 24])
def test_a_frame_whose_header_says_that_it_is_longer_is_refused_before_it_is_decoded(at: int):
    values = np.arange(0, 7_000, 7, dtype="u2")
    frame = np.frombuffer(blosc.compress(values, b"lz4", 5, blosc.SHUFFLE, 2_000, 2), np.uint8).copy()
    if at == 24:  # the length of the second stream, after the first
        at += int(frame[20:24].view("<u4")[0])
    frame[at : at + 4].view("<u4")[0] = 2**31 - 1
    with pytest.raises(ValueError, match=r"chunk 0 of 1"):
        decode_chunks(frame, np.zeros(1, np.int64), np.array([len(frame)]), np.empty(1_000, "u2"), True)
