"""Runs of Blosc chunks decoded, and gaps undone, in one call that holds no lock.

Chunk by chunk, Python would take a third of the time: so compiled code calls C-Blosc itself, at its address in memory.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numcodecs import blosc

VECTOR_BYTES = 64  # of the running sum; the compiler makes of it what the processor has


def _find_functions() -> tuple[int, int]:
    """Addresses of C-Blosc's `blosc_decompress_ctx` and `LZ4_decompress_safe` in numcodecs; 0 if not shown."""
    try:
        library = ctypes.CDLL(blosc.__file__)
        functions = library.blosc_decompress_ctx, library.LZ4_decompress_safe
    except (OSError, AttributeError):
        return 0, 0
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    return addresses[0], addresses[1]


BLOSC_DECOMPRESS, LZ4_DECOMPRESS = _find_functions()


def decode_chunks(coded: np.ndarray, begins: np.ndarray, out: np.ndarray, delta: bool) -> None:
    """Decompress chunk after chunk of equal size into `out`, and undo the gaps within each if `delta`.

    coded   uint8: Blosc frames, the k-th beginning at begins[k]; int64 [chunks]
    out     unsigned or signed integers [chunks * elements of a chunk]
    Raises ValueError if a frame does not hold what it should.
    """
    if BLOSC_DECOMPRESS:
        if (bad := _decode_chunks(BLOSC_DECOMPRESS, LZ4_DECOMPRESS, coded, begins, out, delta)) >= 0:
            raise ValueError(f"chunk {bad} of {len(begins)} can't be decompressed")
        return
    for begin, part in zip(begins.tolist(), np.split(out, len(begins))):
        try:
            blosc.decompress(coded[begin:], part)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if delta:
            undo_gaps(part)


def _build_sum(typing_context: Any, address: Any, carry: Any) -> Any:
    """Running sum of VECTOR_BYTES of integers at an address, in place, `carry` added to each; returns the last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(carry.bitwidth), VECTOR_BYTES * 8 // carry.bitwidth)
        where = builder.inttoptr(arguments[0], vector.as_pointer())
        gaps = builder.load(where, align=carry.bitwidth // 8)
        return _store_sums(builder, gaps, arguments[1], where)

    return carry(types.int64, carry), generate


def _build_pair_sum(typing_context: Any, low: Any, high: Any, target: Any, carry: Any) -> Any:
    """The same of 2-byte integers whose low and high bytes are at two addresses; the sums go to `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = VECTOR_BYTES // 2
        wide, narrow = ir.VectorType(ir.IntType(16), lanes), ir.VectorType(ir.IntType(8), lanes)
        lows, highs = (
            builder.zext(builder.load(builder.inttoptr(place, narrow.as_pointer()), align=1), wide)
            for place in arguments[:2]
        )
        gaps = builder.or_(lows, builder.shl(highs, ir.Constant(wide, [8] * lanes)))
        return _store_sums(builder, gaps, arguments[3], builder.inttoptr(arguments[2], wide.as_pointer()))

    return carry(types.int64, types.int64, types.int64, carry), generate


def _store_sums(builder: Any, gaps: Any, carry: Any, target: Any) -> Any:
    """Store the running sum of a vector plus `carry`; returns its last element.

    In log2(lanes) steps, each adding the vector to itself shifted by 1, 2, 4, ... lanes (Hillis and Steele 1986): a
    third of the time of a loop, in which each addition waits for the one before.
    """
    lanes, position, sums, shift = gaps.type.count, ir.IntType(32), gaps, 1
    none, nothing = ir.Constant(gaps.type, [0] * lanes), ir.Constant(gaps.type, ir.Undefined)
    while shift < lanes:
        # of the two vectors, lanes are numbered one after the other: zeros come in from the first
        chosen = [lanes + k - shift if k >= shift else k for k in range(lanes)]
        mask = ir.Constant(ir.VectorType(position, lanes), chosen)
        sums, shift = builder.add(sums, builder.shuffle_vector(none, sums, mask)), shift * 2
    first = builder.insert_element(nothing, carry, position(0))
    carried = builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(position, lanes), [0] * lanes))
    # the next vector waits for this sum alone, not for the vector's addition
    last = builder.add(builder.extract_element(sums, position(lanes - 1)), carry)
    builder.store(builder.add(sums, carried), target, align=gaps.type.element.width // 8)
    return last


_sum_vector: Any = intrinsic(_build_sum)
_sum_pairs: Any = intrinsic(_build_pair_sum)


@njit(nogil=True, cache=True)
def undo_gaps(values: np.ndarray) -> None:
    """Running sum in place, wrapping around: gaps to indices."""
    cast, step = values.dtype.type, VECTOR_BYTES // values.itemsize
    carry, whole = cast(0), len(values) // step * step
    for k in range(0, whole, step):
        carry = _sum_vector(np.int64(values[k:].ctypes.data), carry)
    for k in range(whole, len(values)):
        carry = cast(carry + values[k])
        values[k] = carry


def _build_call(typing_context: Any, address: Any, source: Any, target: Any, third: Any, fourth: Any) -> Any:
    """int function(const void *, void *, third, fourth) at an address; third and fourth of the widths given."""
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
    blosc_decompress: int, lz4_decompress: int, coded: np.ndarray, begins: np.ndarray, out: np.ndarray, delta: bool
) -> int:
    """As `decode_chunks`; the number of the first chunk that fails, or -1."""
    chunk = len(out) // len(begins)
    planes = np.empty(2 * chunk if out.itemsize == 2 else 0, np.uint8)
    for k in range(len(begins)):
        part, frame = out[k * chunk : (k + 1) * chunk], coded[begins[k] :]
        if _decode_pairs(lz4_decompress, frame, planes, part, delta):
            continue
        source, target = np.int64(frame.ctypes.data), np.int64(part.ctypes.data)
        if _call(np.int64(blosc_decompress), source, target, np.int64(part.nbytes), np.int32(1)) != part.nbytes:
            return k
        if delta:
            undo_gaps(part)
    return -1


@njit(nogil=True, cache=True)
def _decode_pairs(lz4_decompress: int, frame: np.ndarray, planes: np.ndarray, out: np.ndarray, delta: bool) -> bool:
    """Decode a frame of 2-byte integers if it is one block of two LZ4 streams, of low and of high bytes; else False.

    numcodecs' C-Blosc is built for any x86: to interleave the bytes takes it a fifth of a block's time, vector code of
    this machine's own much less. Frame: github.com/Blosc/c-blosc, README_CHUNK_FORMAT.rst.
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
    for k in range(0, whole, step):
        carry = _sum_pairs(low_place + k, high_place + k, place + 2 * k, carry)
    for k in range(whole, n):
        carry = np.uint16(carry + (low[k] | np.uint16(high[k]) << np.uint16(8)))
        out[k] = carry
    return True


@njit(nogil=True, cache=True)
def _decode_stream(lz4_decompress: int, stream: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The bytes of a stream, those of one that could not be compressed where they are; none if it is damaged."""
    if len(stream) == len(target):
        return stream
    source, place = np.int64(stream.ctypes.data), np.int64(target.ctypes.data)
    n = _call(np.int64(lz4_decompress), source, place, np.int32(len(stream)), np.int32(len(target)))
    return target[: max(n, 0)]
