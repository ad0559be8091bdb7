"""Damage, drawn from a seed: to bytes and files of any kind, and to what is written in files whose structure is known.

`damage` changes one input in place and says what it did. Of our own formats `seal` then makes sizes and checksums right
again, so that what lies behind them is reached too; arrays that are changed through zarr have theirs right anyway.
The file is long because each format has its own ways to be damaged; it holds nothing else.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr

from atlasvi.loaders.manifest import MANIFEST, read_json, write_json, write_manifest

NUMBERS = (0, -1, 1, 2**31, 2**40, 2**63, -(2**63), 1e30, 0.5, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    "",
    "x",
    "\x1b[31m/../é",
    [],
    [1, "a"],
    {},
    {"a": 1},
    [[0]],
    "1" * 5_000,
)
TEXTS = (
    "",
    "-1",
    "0",
    "1",
    "1.5",
    "nan",
    "99999999999",
    "1e30",
    '"',
    "\ufeffx",
    "a\tb\tc\td",
    ",,",
    "\x00",
    "%",
    "é" * 300,
)


def mutate(path: Path, draw: random.Random) -> str:
    """Change one thing, now and then three, in a file or folder; what was done, in words."""
    return "; ".join(_mutate_once(path, draw) for _ in range(draw.choice((1, 1, 1, 3))))


def _mutate_once(path: Path, draw: random.Random) -> str:
    """One change: of all that can be done to what is there, in random order, until one finds something to change."""
    chosen = list(STRUCTURES) if draw.random() < 0.65 else []
    draw.shuffle(chosen)
    for change in [*chosen, _change_bytes, _change_files]:
        if change is _change_bytes and draw.random() < 0.4:
            continue
        try:
            if said := change(path, draw):
                return f"{change.__name__.strip('_')}: {said}"
        except Exception as error:  # an earlier change has left what this one can't read
            said = str(error)
    return f"nothing ({said})"


def list_files(path: Path) -> list[Path]:
    """All files of an input, in an order that does not depend on the disk."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _change_bytes(path: Path, draw: random.Random) -> str:
    files = [file for file in list_files(path) if file.stat().st_size]
    if not files:
        return ""
    file = draw.choice(files)
    packed = file.suffix == ".gz" and draw.random() < 0.5
    content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    at, length = draw.randrange(len(content)), draw.choice((1, 2, 8, 64, 512))
    kind = draw.choice(("flip", "flip", "fill", "noise", "cut", "grow", "drop", "swap"))
    if kind == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif kind in ("fill", "noise"):
        new = bytes([draw.choice((0, 255))]) * length if kind == "fill" else draw.randbytes(length)
        content[at : at + length] = new[: len(content) - at]
    elif kind == "cut":
        del content[at:]
    elif kind == "grow":
        content += draw.randbytes(length)
    elif kind == "drop":
        del content[at : at + length]
    else:
        other = draw.randrange(len(content))
        content[at : at + length], content[other : other + length] = (
            content[other : other + length],
            content[at : at + length],
        )
    file.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return f"{kind} {file.name} at {at}, {length} bytes{' unpacked' * packed}"


def _change_files(path: Path, draw: random.Random) -> str:
    files = list_files(path)
    file, other = draw.choice(files), draw.choice(files)
    kind = draw.choice(
        ("delete", "empty", "folder", "link nowhere", "link to itself", "link", "swap", "copy over", "parent")
    )
    if kind == "swap":
        first, second = file.read_bytes(), other.read_bytes()
        file.write_bytes(second)
        other.write_bytes(first)
    elif kind == "copy over":
        file.write_bytes(other.read_bytes())
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "parent" and file.parent != path.parent and file.parent != path:
        shutil.rmtree(file.parent)
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind.startswith("link"):
            file.symlink_to({"link nowhere": "nowhere", "link": "/etc/passwd"}.get(kind, file.name))
    return f"{kind} {file.relative_to(path.parent)} ({other.relative_to(path.parent)})"


def _change_json(path: Path, draw: random.Random) -> str:
    files = [file for file in list_files(path) if file.suffix in (".json", ".jsonl") or file.name.startswith(".z")]
    if not files:
        return ""
    file = draw.choice(files)
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = draw.randrange(len(lines))
    content = json.loads(lines[number])
    said = _change_values(content, draw)
    lines[number] = json.dumps(content)
    file.write_text("\n".join(lines))
    return f"{file.relative_to(path.parent)} {said}"


def _change_values(content: Any, draw: random.Random) -> str:
    """Change one entry, at any depth, of dictionaries and lists."""
    place, way = content, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return ""
        key = draw.choice(keys)
        way += f"/{str(key)[:40]}"
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.15:
            break
        place = place[key]
    kind = draw.choice(("set", "set", "set", "delete", "add", "swap"))
    if kind == "delete":
        del place[key]
    elif kind == "swap":
        other = draw.choice(keys)
        place[key], place[other] = place[other], place[key]
    elif kind == "add" and isinstance(place, dict):
        place["added"] = draw.choice(VALUES)
    else:
        old = place[key]
        place[key] = change_array(old, draw) if isinstance(old, np.ndarray | torch.Tensor) else draw.choice(VALUES)
    return f"{kind} {way} {str(place.get(key) if isinstance(place, dict) else '')[:40]!r}"


def change_array(old: Any, draw: random.Random) -> Any:
    """An array, or tensor, with another value, type, order or shape."""
    values = np.array(old.detach().numpy() if isinstance(old, torch.Tensor) else old)
    kind = draw.choice(("value", "value", "value", "dtype", "cut", "grow", "reverse", "shape", "constant", "scalar"))
    flat = values.reshape(-1)
    if kind == "value" and flat.size:
        flat[draw.randrange(flat.size)] = _fit(draw, values.dtype)
    elif kind == "constant":
        flat[...] = _fit(draw, values.dtype)
    elif kind == "dtype":
        values = values.astype(draw.choice(("f8", "f4", "i1", "u1", "i8", "u8", "?", "c8", "S3")))
    elif kind == "cut":
        values = values[: draw.randrange(len(values) + 1)] if values.ndim else values
    elif kind == "grow":
        values = np.concatenate([values, values[: draw.randrange(1, 9)]]) if values.ndim else values
    elif kind == "reverse":
        values = values[::-1].copy() if values.ndim else values
    elif kind == "shape":
        values = values[..., None] if draw.random() < 0.5 else values.reshape(-1)
    else:
        values = flat[:1].reshape(()) if flat.size else values
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(old, torch.Tensor) else values


def _fit(draw: random.Random, dtype: np.dtype) -> Any:
    """A value that an array of the dtype can hold."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return draw.choice((limits.min, limits.max, 0, 1, 3, 17, min(2**40, limits.max)))
    if dtype.kind in "fc":
        return draw.choice((np.nan, np.inf, -1.0, 0.0, 0.5, 3.0, 1e30, 2.0**24 + 2))
    return draw.random() < 0.5 if dtype.kind == "b" else draw.choice(TEXTS).replace("\x00", "") or "x"


def _change_hdf5(path: Path, draw: random.Random) -> str:
    files = [file for file in list_files(path) if h5py.is_hdf5(file)]
    if not files:
        return ""
    with h5py.File(draw.choice(files), "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name, other = draw.choice(names), draw.choice(names)
        kind = draw.choice(("array", "array", "array", "array", "attribute", "attribute", "delete", "swap", "replace"))
        node = file[name]
        if kind == "array" and isinstance(node, h5py.Dataset):
            _replace_dataset(file, name, draw)
        elif kind == "attribute" and len(node.attrs):
            key = draw.choice(sorted(node.attrs))
            if draw.random() < 0.3:
                del node.attrs[key]
            else:
                value = draw.choice(
                    ("x", "csc_matrix", "array", "categorical", 0, -1, 2**40, [1, 2**40], [-3, 2], 1.5, [b"batch"])
                )
                node.attrs[key] = value
            kind = f"attribute {key} {dict(node.attrs).get(key)!r}"
        elif kind == "swap" and not (other.startswith(name) or name.startswith(other)):
            file.move(name, "kept_aside")
            file.move(other, name)
            file.move("kept_aside", other)
        elif kind == "replace":
            del file[name]
            link = draw.choice(
                (None, h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("/etc/passwd", "/x"))
            )
            if link is None:
                file.create_dataset(name, data=draw.choice((1, b"x", [1.5, 2.5], [[1, 2]])))
            else:
                file[name] = link
            kind = f"replace by {link}"
        else:
            del file[name]
            kind = "delete"
        return f"{kind} {name} {other}"


def _replace_dataset(file: h5py.File, name: str, draw: random.Random) -> None:
    """Write a dataset anew, changed, with its attributes; or declare far more than is written."""
    node = file[name]
    attributes, values = dict(node.attrs), node[()]
    text = h5py.check_string_dtype(node.dtype)
    del file[name]
    if draw.random() < 0.1:
        shape = draw.choice(((2**40,), (2**62,), (2**33, 2**20), (0,)))
        new = file.create_dataset(name, shape, text or node.dtype, chunks=True, maxshape=(None,) * len(shape))
    elif text:
        texts = np.atleast_1d(np.asarray(values, object)).copy()
        texts[draw.randrange(len(texts))] = draw.choice(TEXTS).replace("\x00", "")
        new = file.create_dataset(name, data=texts if draw.random() < 0.7 else texts[:-1], dtype=h5py.string_dtype())
    else:
        new = file.create_dataset(name, data=change_array(values, draw))
    for key, value in attributes.items():
        new.attrs[key] = value


def _change_zarr(path: Path, draw: random.Random) -> str:
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return ""
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    arrays = sorted(name for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array))
    name, other = draw.choice(arrays), draw.choice(arrays)
    array = root[name]
    kind = draw.choice(("value", "value", "value", "value", "resize", "delete", "swap", "anew"))
    if kind == "delete":
        del root[name]
    elif kind == "swap":
        for place in (path / name, path / other):
            place.rename(place.with_name("aside") if place == path / name else path / name)
        (path / name).with_name("aside").rename(path / other)
    elif kind == "resize":
        array.resize((draw.choice((0, 1, 3, array.shape[0] + 1, 2**20, 2**50)), *array.shape[1:]))
    elif kind == "anew":
        values, attributes = change_array(array[...], draw), dict(array.attrs)
        del root[name]
        new = root.create_array(name, data=values if values.dtype.kind != "O" else values.astype(str))
        new.attrs.update(attributes)
    else:
        values = change_array(array[...], draw)
        array[...] = values if values.shape == array.shape else values.reshape(-1)[:1].reshape((1,) * array.ndim)
    return f"{kind} {name} {other}"


def _change_text(path: Path, draw: random.Random) -> str:
    files = [
        file
        for file in list_files(path)
        if set(file.suffixes) & {".tsv", ".csv", ".txt", ".mtx", ".toml"} or file.name == "settings"
    ]
    if not files:
        return ""
    file = draw.choice(files)
    packed = file.suffix == ".gz"
    text = (gzip.decompress(file.read_bytes()) if packed else file.read_bytes()).decode()
    lines = text.split("\n")
    at, other = draw.randrange(len(lines)), draw.randrange(min(len(lines), 4))
    kind = draw.choice(("word", "word", "word", "delete", "double", "swap", "line ends", "mark", "cut line"))
    if kind == "word":
        at = draw.choice((at, other))
        separator = next((mark for mark in ("\t", ",", " ") if mark in lines[at]), " ")
        words = lines[at].split(separator)
        words[draw.randrange(len(words))] = draw.choice(TEXTS)
        lines[at] = separator.join(words)
    elif kind == "delete":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "line ends":
        lines = [f"{line}\r" for line in lines]
    elif kind == "mark":
        lines[0] = f"\ufeff{lines[0]}"
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    content = "\n".join(lines).encode()
    file.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return f"{kind} {file.name} line {at} ({other}) {lines[min(at, len(lines) - 1)][:60]!r}"


def _change_torch(path: Path, draw: random.Random) -> str:
    """Another value in what a file of torch holds; of one that names types of other programs, another byte."""
    files = [file for file in list_files(path) if file.suffix == ".pt"]
    if not files:
        return ""
    file = draw.choice(files)
    try:
        content = torch.load(file, weights_only=True)
        said, buffer = _change_values(content, draw), io.BytesIO()
        torch.save(content, buffer)
        file.write_bytes(buffer.getvalue())
    except Exception:
        with zipfile.ZipFile(file) as archive:
            members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
        name = draw.choice(
            [name for name in members if members[name]] + [name for name in members if name.endswith(".pkl")] * 3
        )
        at = draw.randrange(len(members[name]))
        members[name][at] = draw.randrange(256)
        with zipfile.ZipFile(file, "w") as archive:
            for member, changed in members.items():
                archive.writestr(member, bytes(changed))
        said = f"byte {at} of {name}"
    return f"{file.name} {said}"


STRUCTURES: tuple[Callable[[Path, random.Random], str], ...] = (
    _change_json,
    _change_hdf5,
    _change_zarr,
    _change_text,
    _change_torch,
)


def seal(path: Path) -> None:
    """Make sizes and checksums of one of our folders right again, as far as it can still be read."""
    for file in list_files(path):
        if (
            file.suffix == ".json"
            and "crc32c" in file.read_text(errors="replace")
            and file.name not in ("zarr.json", MANIFEST)
        ):
            content = json.loads(file.read_bytes())
            content.pop("crc32c", None)
            write_json(file, content)
        if file.parent.name == "checkpoints":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            file.rename(file.with_name(f"{file.name[:14]}-{digest}.pt"))
    if (path / MANIFEST).is_file():
        names = (
            None
            if (path / "zarr.json").is_file()
            else [name for name in read_json(path / MANIFEST)["files"] if (path / name).is_file()]
        )
        write_manifest(path, names)


def damage(path: Path, seed: int, sealed: bool) -> str:
    """Mutate an input as a seed says; what was done, in words."""
    warnings.filterwarnings("ignore")
    said = mutate(path, random.Random(seed))
    if sealed:
        try:
            seal(path)
            said += "; checksums made right"
        except Exception as error:
            said += f"; checksums could not be made right ({str(error)[:60]})"
    return said


def list_tree(path: Path) -> list[tuple[str, int]]:
    """Names and sizes below a folder, to see what a command left there."""
    return sorted(
        (os.path.relpath(file, path), file.lstat().st_size if file.is_file() else 0) for file in path.rglob("*")
    )
