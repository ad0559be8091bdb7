"""Read files that torch.save wrote, without running code that their pickle names.

Such a file is a zip archive: a pickle, and beside it the raw bytes of the tensors that the pickle refers to. Our
unpickler allows the few types that a model of scvi-tools needs and refuses every other type, which its message names;
it builds dictionaries, lists, text, numbers and arrays.
"""

import codecs
import collections
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.places.object_path import Place, to_place

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# types in the tables of a training history: replaced by objects that hold nothing and do nothing
IGNORED = {
    ("builtins", "bytearray"),
    ("builtins", "slice"),
    ("functools", "partial"),
    ("pandas", "DataFrame"),  # the names since pandas 3
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas", "Series"),
    ("pandas", "StringDtype"),
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.arrays", "ArrowStringArray"),
    ("pandas.arrays", "StringArray"),
    ("pandas.core.arrays.string_", "StringArray"),
    ("pandas.core.arrays.string_", "StringDtype"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.numeric", "Float64Index"),
    ("pandas.core.indexes.numeric", "Int64Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.blocks", "new_block"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.managers", "SingleBlockManager"),
    ("pandas.core.series", "Series"),
    ("pyarrow.lib", "_restore_array"),
    ("pyarrow.lib", "py_buffer"),
    ("pyarrow.lib", "type_for_alias"),
}


NOTES = ("byteorder", "version")
"""Entries of the archive beside the pickle and the numbers; files of older versions lack the first."""


def read_torch_file(path: str | Place) -> Any:
    """The content of a file that torch.save wrote; tensors become numpy arrays.

    Raises SourceError if the file does not exist or is damaged, or if its pickle names a type that is not allowed.
    """
    try:
        place = to_place(path)
        with zipfile.ZipFile(place if isinstance(place, Path) else place.open("rb")) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise SourceError(f"{path}: this is not a file that torch.save wrote (it holds no data.pkl).")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise SourceError(f"{path}: the file is compressed, which torch never does: save the model again.")
            root, content = pickles[0].removesuffix("data.pkl"), archive.read(pickles[0])
            _check_opcodes(content)
            notes = {name: archive.read(f"{root}{name}") for name in NOTES if f"{root}{name}" in archive.namelist()}
            if notes.get("byteorder", b"little") != b"little":
                raise ValueError("its numbers are not little-endian")
            int(notes.get("version", b"3"))
            return _TensorUnpickler(io.BytesIO(content), archive, root, str(path)).load()
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file.") from None
    except AtlasviError:  # our own errors, such as an interruption by a signal
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise SourceError(
            f"{path}: the file is damaged, cut short or not written by torch ({error}): copy it again."
        ) from error


def load_tensors(path: str | Place, content: bytes | None = None) -> Any:
    """The content of a file that we wrote with torch.save: tensors on the CPU, plain values, dictionaries, lists.

    content  bytes of the file, if they were read already
    Raises SourceError if the file does not exist or is damaged: torch does not check the checksums of the archive, so
    they are checked here. Anything but tensors and plain values is refused, and no code in the file is run.
    """
    try:
        content = to_place(path).read_bytes() if content is None else content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise SourceError(f"{path}: the file is compressed, which torch never does: copy it again.")
                archive.read(entry)  # zipfile checks the CRC-32
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file.") from None
    except AtlasviError:  # our own errors, such as an interruption by a signal
        raise
    except pickle.UnpicklingError as error:  # torch's own message suggests a setting that runs the file's code
        raise SourceError(
            f"{path}: it holds something besides tensors and plain values, or is damaged; it was not read, and nothing "
            "in it was run: copy it again from where it came from."
        ) from error
    except Exception as error:  # a damaged file can raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{path}: it is damaged or cut short ({reason[:200]}): copy it again.") from error


def _check_opcodes(content: bytes) -> None:
    """Raises UnpicklingError for opcodes that make the unpickler use far more memory than the pickle's length."""
    for opcode, argument, _ in pickletools.genops(content):
        too_far = opcode.name == "LONG_BINPUT" and int(argument or 0) > len(
            content
        )  # the unpickler's memo gets this length
        if too_far or opcode.name in ("BYTEARRAY8", "NEXT_BUFFER"):
            raise pickle.UnpicklingError(f"unexpected {opcode.name} {argument!r}")


class _Storage:
    """A torch storage in the pickle, of which only the dtype is used."""

    def __init__(self, dtype: type) -> None:
        self.dtype = np.dtype(dtype)


class _TensorUnpickler(pickle.Unpickler):
    """Builds plain values and arrays; refuses a global that is not on its list, and names it."""

    def __init__(self, content: io.BytesIO, archive: zipfile.ZipFile, root: str, path: str) -> None:
        super().__init__(content)
        self._archive, self._root, self._path = archive, root, path

    def find_class(self, module: str, name: str) -> Any:
        """The object for a global that the pickle names, if it is allowed."""
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): _plain_defaultdict,
            ("_codecs", "encode"): _encode_latin1,
            ("numpy", "dtype"): _PickledDtype,
            ("numpy", "ndarray"): "numpy.ndarray",  # only a name, because the file never needs to call it
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "scalar"): _scalar,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("builtins", "dict"): dict,
            ("builtins", "bytes"): _no_bytes,
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.nn.modules.activation", "Softplus"): PickledSoftplus,
        }
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in pickles of protocol 2
        if (module, name) in allowed:
            return allowed[module, name]
        if (module, name) in IGNORED:
            return _Ignored
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        raise SourceError(
            f"{self._path}: its pickle names {module}.{name}, which a model of scvi-tools does not need; the file was "
            "not read, and nothing in it was run."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The raw values of a tensor, from the archive."""
        kind, storage, key, _, n_values = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        values = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage.dtype.newbyteorder("<"))
        if len(values) < n_values:
            raise pickle.UnpicklingError(f"storage {key} holds {len(values)} of {n_values} values")
        return values


class PickledSoftplus:
    """The two parameters of a torch.nn.Softplus in a pickle."""

    beta: Any = None
    threshold: Any = None

    def __setstate__(self, state: Any) -> None:
        self.beta, self.threshold = state.get("beta"), state.get("threshold")

    def __repr__(self) -> str:
        return f"Softplus(beta={self.beta!r}, threshold={self.threshold!r})"


class _Ignored:
    """Accepts whatever the pickle passes, and keeps none of it."""

    def __new__(cls, *arguments: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *rest: Any) -> np.ndarray:
    numbers = (offset, *size, *stride)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    beyond = (all(size) and reach >= len(storage)) or math.prod(size) > len(storage)
    if any(type(number) is not int or number < 0 for number in numbers) or beyond:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _plain_defaultdict(*arguments: Any) -> dict:
    """A plain dictionary: the default factory that the file names is never called."""
    return {}


def _no_bytes() -> bytes:
    """Empty bytes, as pickles of protocol 2 write them; the builtin, called with a large number, would fill memory."""
    return b""


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return codecs.encode(text, "latin1")


class _PickledDtype:
    """A numpy dtype as pickles describe it: a code such as 'f4', then a state of which only the byte order is used.

    numpy's own __setstate__ would accept flags that make it read bytes as pointers.
    """

    def __init__(self, code: str, *flags: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.hasobject and self.dtype != object:
            raise pickle.UnpicklingError(f"unexpected dtype {code!r}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray(np.ndarray):
    """A numpy array that checks the content that a pickle sets: numpy reads beyond the end of a list that is short."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _PickledDtype) or self.size:
            raise pickle.UnpicklingError("an array is described twice, or without a type")
        holds_objects = kind.dtype == object
        if type(content) is not (list if holds_objects else bytes):
            raise pickle.UnpicklingError(f"an array of {kind.dtype} holds {type(content).__name__}")
        if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            raise pickle.UnpicklingError(f"an array has the shape {shape!r}")
        if len(content) != math.prod(shape) * (1 if holds_objects else kind.dtype.itemsize):
            raise pickle.UnpicklingError(f"an array of the shape {shape!r} holds {len(content)} values or bytes")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), content))  # type: ignore[arg-type]


def _scalar(kind: "_PickledDtype", content: bytes) -> Any:
    """A numpy number, as a Python number."""
    if kind.dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"unexpected number of type {kind.dtype}")
    return np.frombuffer(content, kind.dtype, 1)[0].item()


def _empty_array(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    return _PickledArray((0,), "b")
