"""Why a question has no answer: a status and a sentence, which tells nothing of the server but the store's name."""

import logging
from dataclasses import dataclass
from pathlib import Path

from atlasvi.engine.service.answer_forms import TooLarge
from atlasvi.engine.service.jobs import Closing, TooLate
from atlasvi.engine.service.limits import Limits
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

    store   path of the store
    upload  path of the file of new counts that a client sent; None: it sent none
    """

    store: str
    upload: str | None = None

    def __call__(self, sentence: str) -> str:
        """A sentence without paths of this machine."""
        if self.upload is not None:
            sentence = sentence.replace(self.upload, "the new counts")
        place = Path(self.store)
        for folder in (place.resolve().parent, place.absolute().parent):
            sentence = sentence.replace(f"{folder}/", "")
        return sentence.replace(self.store, place.name)


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
