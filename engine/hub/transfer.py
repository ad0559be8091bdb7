"""Push a hub folder to a place and pull one from it; a place is a folder, or a repository of the Hugging Face Hub."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atlasvi.engine.hub.hub_files import LIST, METADATA, README, HubError, ListedFile, Listing, is_same, list_folder
from atlasvi.engine.hub.receiving import receive
from atlasvi.engine.hub.repository import Repository
from atlasvi.engine.model.run_files import CONFIG, MODEL
from atlasvi.loaders.errors import OutputError, SourceError

Visibility = Literal["private", "public"]


@dataclass(frozen=True)
class Transfer:
    """What a push or pull did.

    place    where the files are now
    sent     names of the files that were sent; the others were there already
    n_files  files of the model, with those that were there
    n_bytes  of the files that were sent
    """

    place: str
    sent: tuple[str, ...]
    n_files: int
    n_bytes: int


def push(
    folder: str | Path,
    dest: str | Path,
    *,
    token: str | None = None,
    create: Visibility | None = None,
    replace: bool = False,
) -> Transfer:
    """Send a hub folder to a place; only what is missing there or differs is sent.

    dest     a folder, or hf://OWNER/NAME, or hf://OWNER/NAME@REVISION (a branch)
    token    of the Hugging Face Hub; None: HF_TOKEN, or that of `hf auth login`
    create   make the repository if it does not exist
    replace  whether another model there may be replaced
    A folder appears, or changes, when all has arrived; a repository changes by one commit.
    Raises SourceError if `folder` is no hub folder or is damaged, OutputError if `dest` is taken or can't be written (a
    full disk), HubError if it can't be reached or the token is missing or refused.
    """
    source, place = Path(folder), _open_place(dest, token)
    for name in (MODEL, METADATA, README):
        if not (source / name).is_file():
            raise SourceError(
                f"{source} is not a hub folder: it has no {name}. Make one with: atlasvi card RUN DATA --out DIR."
            )
    files = list_folder(source)
    if isinstance(place, Path):
        return _copy(source, files, place, replace)
    there = place.list_files()
    if there is None and create is None:
        raise HubError(
            f"{place}: there is no such repository, or the token does not show it: pass --create private or --create "
            "public to make it, or check the name."
        )
    _check_taken(str(place), there or {}, source / MODEL, replace)
    changed = [name for name in files if not is_same(source / name, (there or {}).get(name))]
    place.upload(source, files, changed, create)
    return _report(str(place), files, changed)


def pull(source: str | Path, folder: str | Path, *, token: str | None = None, replace: bool = False) -> Transfer:
    """Fetch a model from a place into a folder; only what is missing there or differs is fetched. No file is executed.

    source   a folder, or hf://OWNER/NAME, or hf://OWNER/NAME@REVISION (a branch, tag or commit)
    token    of the Hugging Face Hub, for repositories that are not public; None: HF_TOKEN, or that of `hf auth login`
    replace  whether another model in `folder` may be replaced
    Raises SourceError if the source holds no model or a file arrives damaged, OutputError if `folder` is taken or can't
    be written (a full disk), HubError if the source can't be reached; then the same call continues.
    """
    place, out = _open_place(source, token), Path(folder)
    if isinstance(place, Path):
        if not (place / MODEL).is_file():
            raise SourceError(f"{place} holds no model of scvi-tools: it has no {MODEL}.")
        return _copy(place, list_folder(place), out, replace)
    files = place.list_files()
    if files is None:
        raise HubError(
            f"{place}: there is no such repository, or it is private and the token does not open it: check the name, "
            "or give a token (HF_TOKEN, or --token-from-env NAME)."
        )
    if MODEL not in files:
        raise SourceError(f"{place} holds no model of scvi-tools: it has no {MODEL}.")
    _check_folder(out, files[MODEL], replace)
    return _report(str(out), files, receive(out, str(place), files, place.fetch))


def _open_place(place: str | Path, token: str | None) -> "Path | Repository":
    """A folder or a repository. Raises HubError for anything else."""
    scheme, mark, name = str(place).partition("://")
    if not mark or isinstance(place, Path):
        return Path(place)
    if scheme in ("http", "https"):
        raise HubError(f"{place}: write a repository of the Hugging Face Hub as hf://OWNER/NAME.")
    if scheme != "hf":
        raise HubError(f"{place}: object stores are neither read nor written yet: use a folder, or hf://OWNER/NAME.")
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\S+))?", name)
    if match is None:
        raise HubError(f"{place}: write it as hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.")
    return Repository(match[1], match[2], token)


def _copy(source: Path, files: Listing, out: Path, replace: bool) -> Transfer:
    """Copy the files of one folder to another."""
    if out.exists() and source.samefile(out):
        raise OutputError(f"{out} is the folder that is to be copied: choose another place.")
    _check_folder(out, files[MODEL], replace)

    def fetch(name: str, folder: Path) -> None:
        shutil.copyfile(source / name, folder / name)

    return _report(str(out), files, receive(out, str(source), files, fetch))


def _check_folder(out: Path, model: ListedFile, replace: bool) -> None:
    """Raise OutputError if a folder holds something else than this model, or than one that may be replaced."""
    if os.path.lexists(out) and not out.is_dir():
        raise OutputError(f"{out} is there, and is not a folder: choose another place, or remove it.")
    if not out.exists() or not any(out.iterdir()) or is_same(out / MODEL, model):
        return
    if (out / CONFIG).exists() or not (out / MODEL).is_file() or not any((out / n).is_file() for n in (LIST, METADATA)):
        raise OutputError(f"{out} holds other files than those of a hub folder: choose another place.")
    if not replace:
        raise OutputError(f"{out} holds another model: choose another place, or pass --replace to replace it.")


def _check_taken(where: str, there: Listing, model: Path, replace: bool) -> None:
    """Raise OutputError if a repository holds another model, or no model but other files."""
    if is_same(model, there.get(MODEL)):
        return
    if MODEL in there and not replace:
        raise OutputError(f"{where} holds another model: choose another place, or pass --replace to replace it.")
    if MODEL not in there and any(name not in (README, "LICENSE") for name in there):
        raise OutputError(f"{where} holds other files than those of a model: choose another repository.")


def _report(place: str, files: Listing, sent: list[str]) -> Transfer:
    return Transfer(place, tuple(sent), len(files), sum(files[name].n_bytes for name in sent))
