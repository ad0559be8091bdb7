"""Runs of Blosc chunks decoded, and differences summed up to indices, in one call that releases the lock.

A loop over chunks in Python would take a third of the time, so compiled code calls C-Blosc at its address in memory.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numcodecs import blosc

MOST_TALLIED = 2**20  # elements of a chunk: so each lane's number of descents stays below 65,536
VECTOR_BYTES = 64  # of a running sum; the compiler splits it into vectors of the processor


def _find_functions() -> tuple[int, int]:
    """Addresses of C-Blosc's `blosc_decompress_ctx` and `LZ4_decompress_safe` in numcodecs; 0 if not exported."""
    try:
        library = ctypes.CDLL(blosc.__file__)
        functions = library.blosc_decompress_ctx, library.LZ4_decompress_safe
    except (OSError, AttributeError):
        return 0, 0
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    return addresses[0], addresses[1]


BLOSC_DECOMPRESS, LZ4_DECOMPRESS = _find_functions()


def decode_chunks(
    coded: np.ndarray, begins: np.ndarray, ends: np.ndarray, out: np.ndarray, delta: bool, low: int = 0, high: int = 0
) -> int:
    """Decompress chunks of equal size into `out`, and sum up the differences within each if `delta`.

    coded      uint8: Blosc frames; frame k is coded[begins[k] : ends[k]], int64 [chunks] each
    out        unsigned or signed integers [chunks * elements of a chunk]
    low, high  range of `out` whose descents are counted meanwhile (see `count_descents`)
    Returns the number of descents. Raises ValueError if a frame does not hold what it should.
    """
    if (bad := find_bad_frame(coded, begins, ends, out.nbytes // len(begins))) >= 0:
        raise ValueError(f"chunk {bad} of {len(begins)} is not a Blosc frame of its length")
    if BLOSC_DECOMPRESS:
        bad, descents = _decode_chunks(BLOSC_DECOMPRESS, LZ4_DECOMPRESS, coded, begins, out, delta, low, high)
        if bad >= 0:
            raise ValueError(f"chunk {bad} of {len(begins)} can't be decompressed")
        return descents
    for begin, part in zip(begins.tolist(), np.split(out, len(begins))):
        try:
            blosc.decompress(coded[begin:], part)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if delta:
            undo_gaps(part)
    return count_descents(out, low, high)


@njit(nogil=True, cache=True)
def count_descents(values: np.ndarray, low: int, high: int) -> int:
    """How many of values[low + 1 : high] are not larger than the one before them."""
    total = 0
    for start in range(low + 1, high, 2**15):
        # up to 32,768 descents fit 16 bits: four times as many lanes to a vector as with 64
        part, before = values[start : min(start + 2**15, high)], values[start - 1 :]
        n = np.uint16(0)
        for k in range(len(part)):
            n = np.uint16(n + np.uint16(part[k] <= before[k]))
        total += int(n)
    return total


@njit(nogil=True, cache=True)
def find_bad_frame(coded: np.ndarray, begins: np.ndarray, ends: np.ndarray, size: int) -> int:
    """Index of the first Blosc frame whose header does not give its true length and `size` decoded bytes; or -1.

    C-Blosc trusts the length in a frame's header, and `_decode_pairs` those of the two streams of 2-byte integers:
    if they are damaged, both would read past the end.
    """
    for k in range(len(begins)):
        frame = coded[begins[k] : ends[k]]
        if len(frame) < 16 or _read_uint32(frame, 4) != size or _read_uint32(frame, 12) != len(frame):
            return k
        in_pairs = frame[3] == 2 and frame[2] & 0b11110011 == 0b00100001 and _read_uint32(frame, 8) == size
        if in_pairs:
            low = _read_uint32(frame, 20) if len(frame) >= 28 else size
            if 28 + low > len(frame) or 28 + low + _read_uint32(frame, 24 + low) > len(frame):
                return k
    return -1


@njit(nogil=True, cache=True)
def _read_uint32(data: np.ndarray, at: int) -> int:
    number = 0
    for k in range(4):
        number |= int(data[at + k]) << 8 * k
    return number


def _build_sum(typing_context: Any, address: Any, carry: Any) -> Any:
    """Running sum of VECTOR_BYTES of integers at an address, in place, plus `carry`; returns the last element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(carry.bitwidth), VECTOR_BYTES * 8 // carry.bitwidth)
        where = builder.inttoptr(arguments[0], vector.as_pointer())
        gaps = builder.load(where, align=carry.bitwidth // 8)
        return _store_sums(builder, gaps, arguments[1], where)[0]

    return carry(types.int64, carry), generate


def _build_pair_sum(typing_context: Any, low: Any, high: Any, target: Any, tally: Any, carry: Any) -> Any:
    """The same for 2-byte integers whose low and high bytes are at two addresses; the sums go to `target`.

    Descents are counted in each lane of the vector at `tally`: with integers that wrap around, a sum is not above the
    one before it if the difference between them is zero or the sum is below the difference.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = VECTOR_BYTES // 2
        wide, narrow = ir.VectorType(ir.IntType(16), lanes), ir.VectorType(ir.IntType(8), lanes)
        lows, highs = (
            builder.zext(builder.load(builder.inttoptr(place, narrow.as_pointer()), align=1), wide)
            for place in arguments[:2]
        )
        gaps = builder.or_(lows, builder.shl(highs, ir.Constant(wide, [8] * lanes)))
        last, sums = _store_sums(builder, gaps, arguments[4], builder.inttoptr(arguments[2], wide.as_pointer()))
        is_descent = builder.icmp_unsigned("<=", sums, builder.sub(gaps, ir.Constant(wide, [1] * lanes)))
        count = builder.inttoptr(arguments[3], wide.as_pointer())
        counted = builder.add(builder.load(count, align=2), builder.zext(is_descent, wide))
        builder.store(counted, count, align=2)
        return last

    return carry(types.int64, types.int64, types.int64, types.int64, carry), generate


def _store_sums(builder: Any, gaps: Any, carry: Any, target: Any) -> tuple[Any, Any]:
    """Store the running sum of a vector plus `carry`; returns its last element, and the whole vector.

    It takes log2(lanes) steps, each adding the vector to itself shifted by 1, 2, 4, ... lanes (Hillis and Steele 1986):
    a third of the time of a loop, in which each addition waits for the one before.
    """
    lanes, position, sums, shift = gaps.type.count, ir.IntType(32), gaps, 1
    none, nothing = ir.Constant(gaps.type, [0] * lanes), ir.Constant(gaps.type, ir.Undefined)
    while shift < lanes:
        # lanes of the two vectors are numbered in sequence: zeros are shifted in from the first
        chosen = [lanes + k - shift if k >= shift else k for k in range(lanes)]
        mask = ir.Constant(ir.VectorType(position, lanes), chosen)
        sums, shift = builder.add(sums, builder.shuffle_vector(none, sums, mask)), shift * 2
    first = builder.insert_element(nothing, carry, position(0))
    carried = builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(position, lanes), [0] * lanes))
    # the next vector waits only for this sum, not for the addition to the whole vector
    last = builder.add(builder.extract_element(sums, position(lanes - 1)), carry)
    total = builder.add(sums, carried)
    builder.store(total, target, align=gaps.type.element.width // 8)
    return last, total


_sum_vector: Any = intrinsic(_build_sum)
_sum_pairs: Any = intrinsic(_build_pair_sum)


@njit(nogil=True, cache=True)
def undo_gaps(values: np.ndarray) -> None:
    """Running sum in place, wrapping around: turns differences into indices."""
    cast, step = values.dtype.type, VECTOR_BYTES // values.itemsize
    carry, whole = cast(0), len(values) // step * step
    for k in range(0, whole, step):
        carry = _sum_vector(np.int64(values[k:].ctypes.data), carry)
    for k in range(whole, len(values)):
        carry = cast(carry + values[k])
        values[k] = carry


def _build_call(typing_context: Any, address: Any, source: Any, target: Any, third: Any, fourth: Any) -> Any:
    """int function(const void *, void *, third, fourth) at an address; third and fourth have the given widths."""
    integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    numbers = [ir.IntType(third.bitwidth), ir.IntType(fourth.bitwidth)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where, source, target, *rest = arguments
        function = ir.FunctionType(integer, [pointer, pointer, *numbers]).as_pointer()
        pointers = [builder.inttoptr(place, pointer) for place in (source, target)]
        return builder.call(builder.inttoptr(where, function), [*pointers, *rest])

    return types.int32(types.int64, types.int64, types.int64, third, fourth), generate


_call: Any = intrinsic(_build_call)


@njit(nogil=True, cache=True)
def _read_int32(data: np.ndarray, at: int | np.int32) -> np.int32:
    return np.int32(data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24)


@njit(nogil=True, cache=True)
def _decode_chunks(
    blosc_decompress: int,
    lz4_decompress: int,
    coded: np.ndarray,
    begins: np.ndarray,
    out: np.ndarray,
    delta: bool,
    low: int,
    high: int,
) -> tuple[int, int]:
    """As `decode_chunks`; returns (index of the first chunk that fails, or -1, the number of descents)."""
    chunk, descents = len(out) // len(begins), 0
    planes, tally = np.empty(2 * chunk if out.itemsize == 2 else 0, np.uint8), np.zeros(VECTOR_BYTES // 2, np.uint16)
    for k in range(len(begins)):
        part, frame = out[k * chunk : (k + 1) * chunk], coded[begins[k] :]
        if _decode_pairs(lz4_decompress, frame, planes, part, delta, tally):
            if delta and low < k * chunk and (k + 1) * chunk <= high and chunk < MOST_TALLIED:
                # the first difference is to zero, not to the chunk before: compare the elements instead
                descents += int(tally.sum()) - (part[0] == 0) + (part[0] <= out[k * chunk - 1])
                continue
        else:
            source, target = np.int64(frame.ctypes.data), np.int64(part.ctypes.data)
            if _call(np.int64(blosc_decompress), source, target, np.int64(part.nbytes), np.int32(1)) != part.nbytes:
                return k, descents
            if delta:
                undo_gaps(part)
        # now, while the chunk is in the fastest caches; begins with the last element of the chunk before
        descents += count_descents(out, max(low, k * chunk - 1), min(high, (k + 1) * chunk))
    return -1, descents


@njit(nogil=True, cache=True)
def _decode_pairs(
    lz4_decompress: int, frame: np.ndarray, planes: np.ndarray, out: np.ndarray, delta: bool, tally: np.ndarray
) -> bool:
    """Decode a frame of 2-byte integers that is one block of two LZ4 streams, low and high bytes; else return False.

    With differences, `tally`, uint16 [lanes], becomes the descents in each lane (see `_build_pair_sum`).
    numcodecs' C-Blosc is built for any x86 and needs a fifth of a block's time to interleave the bytes; vector code for
    this processor needs much less. Frame: github.com/Blosc/c-blosc, README_CHUNK_FORMAT.rst.
    """
    n, flags = len(out), frame[2]
    one_block = _read_int32(frame, 4) == 2 * n and _read_int32(frame, 8) == 2 * n
    # flags: bytes shuffled, not merely copied, streams split, and in the top three bits LZ4
    if out.itemsize != 2 or frame[3] != 2 or not one_block or flags & 0b11110011 != 0b00100001:
        return False
    low_size = _read_int32(frame, 20)
    low = _decode_stream(lz4_decompress, frame[24 : 24 + low_size], planes[:n])
    high_size = _read_int32(frame, 24 + low_size)
    high = _decode_stream(lz4_decompress, frame[28 + low_size : 28 + low_size + high_size], planes[n:])
    if len(low) != n or len(high) != n:
        return False
    if not delta:
        for k in range(n):
            out[k] = low[k] | np.uint16(high[k]) << np.uint16(8)
        return True
    step, carry = VECTOR_BYTES // 2, np.uint16(0)
    whole = n // step * step
    low_place, high_place, place = np.int64(low.ctypes.data), np.int64(high.ctypes.data), np.int64(out.ctypes.data)
    tally[:] = 0
    tally_place = np.int64(tally.ctypes.data)
    for k in range(0, whole, step):
        carry = _sum_pairs(low_place + k, high_place + k, place + 2 * k, tally_place, carry)
    for k in range(whole, n):
        gap = low[k] | np.uint16(high[k]) << np.uint16(8)
        carry = np.uint16(carry + gap)
        out[k] = carry
        tally[0] += np.uint16(gap == 0 or carry < gap)
    return True


@njit(nogil=True, cache=True)
def _decode_stream(lz4_decompress: int, stream: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The decoded bytes of a stream (the stream itself if it is not compressed); empty if it is damaged."""
    if len(stream) == len(target):
        return stream
    source, place = np.int64(stream.ctypes.data), np.int64(target.ctypes.data)
    n = _call(np.int64(lz4_decompress), source, place, np.int32(len(stream)), np.int32(len(target)))
    return target[: max(n, 0)]
