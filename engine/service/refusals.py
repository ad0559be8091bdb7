"""Why a question has no answer: a status and a sentence, which tells nothing of the server but the store's name."""

import logging
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.neighbours.index_file import name_index
from atlasvi.engine.service.answer_forms import TooLarge
from atlasvi.engine.service.jobs import Closing, TooLate
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.tiles import Tiles
from atlasvi.loaders.errors import AtlasviError, MissingDependencyError, SourceError

log = logging.getLogger(__name__)


class Refused(Exception):
    """A question that is not answered."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


@dataclass(frozen=True)
class Mask:
    """Says what the files of a question are called, without saying where they are.

    store    path of the store
    folders  where these files are on this machine, or in a bucket, longest first
    upload   path of the file of new counts that a client sent; None: it sent none
    """

    store: str
    folders: tuple[str, ...] = ()
    upload: str | None = None

    @classmethod
    def of(cls, store: KeptPosterior, run: TrainedRun, tiles: Tiles | None = None) -> Self:
        """The mask of a store, its index of neighbours, the tiles of its page, its model, and where that comes from."""
        places = [store.path, name_index(store.path), f"{tempfile.gettempdir()}/file", run.path, tiles and tiles.folder]
        origins = [run.data and run.data.path, run.mapped_from and run.mapped_from.path]
        folders = {folder for place in filter(None, [*places, *origins]) for folder in _list_folders(str(place))}
        return cls(store.path, tuple(sorted(folders, key=len, reverse=True)))

    def with_upload(self, path: str | None) -> Self:
        """The same for a question with new counts."""
        return replace(self, upload=path)

    def __call__(self, sentence: str) -> str:
        """A sentence without paths of this machine."""
        if self.upload is not None:
            sentence = sentence.replace(self.upload, "the new counts")
        for folder in self.folders:
            sentence = re.sub(rf"(?<![\w/.-]){re.escape(folder)}/", "", sentence)
        return sentence.replace(self.store, Path(self.store).name)


def _list_folders(place: str) -> set[str]:
    """The folder of a file, as a sentence may call it; none of a file at the root."""
    if "://" in place:
        return {place.rstrip("/").rpartition("/")[0]}
    return {str(path.parent) for path in (Path(place).absolute(), Path(place).resolve())} - {"/"}


def explain(error: BaseException, mask: Mask, limits: Limits) -> Refused:
    """Why the work of a question ended with an error."""
    if isinstance(error, Refused):
        return error
    sentence = mask(str(error))
    if isinstance(error, TooLarge):
        return Refused(413, sentence)
    if isinstance(error, TooLate):
        return Refused(
            503,
            f"The answer takes longer than {limits.seconds:g} seconds: choose fewer cells, genes or draws.",
            {"Retry-After": "30"},
        )
    if isinstance(error, Closing):
        return Refused(503, "The service ends.", {"Retry-After": "30"})
    if isinstance(error, MissingDependencyError):
        return Refused(501, sentence)
    is_damage = isinstance(error, SourceError) and mask.upload is None and Path(mask.store).name in sentence
    if isinstance(error, AtlasviError) and not is_damage:
        return Refused(400, sentence)
    log.error("a question failed", exc_info=error)
    if is_damage:
        return Refused(500, sentence)
    if isinstance(error, MemoryError):
        return Refused(503, "There is not enough memory for this: choose fewer cells or genes.", {"Retry-After": "30"})
    return Refused(500, "The service failed to answer: its log says why.")
