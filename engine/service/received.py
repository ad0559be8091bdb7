"""The body of a request: bounded in size, alone and with all others, and in the time until it has come."""

import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from threading import Lock
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from atlasvi.engine.service.answer_forms import JSON
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.refusals import Refused

COUNTS = "application/x-hdf5"
CLOSE = {"Connection": "close"}  # what is left of the body is not read
LATER = {"Retry-After": "30", **CLOSE}
LEFT_BYTES, LEFT_SECONDS = 2**24, 2.0  # of a body that is too large, read and not kept
log = logging.getLogger(__name__)


def _name_kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_counts(request: Request) -> bool:
    """Whether the body is a file of new counts."""
    return _name_kind(request) == COUNTS


class Room:
    """How many bytes the bodies of all clients may take together, each until its question is answered."""

    def __init__(self, most: int) -> None:
        self.most, self._taken, self._lock = most, 0, Lock()

    def take(self, n_bytes: int) -> None:
        """Take so many bytes more, or, if negative, give them back. Raises Refused if there is no room for them."""
        with self._lock:
            if n_bytes > 0 and self._taken + n_bytes > self.most:
                raise Refused(503, "Too much is being sent to the service: ask again later.", LATER)
            self._taken += n_bytes


class Share:
    """What one body takes of a room, until it is closed."""

    def __init__(self, room: Room) -> None:
        self.room, self._taken = room, 0

    def grow(self, n_bytes: int) -> None:
        """Take so many bytes in all, if these are more than are taken already. Raises Refused if there is no room."""
        if n_bytes > self._taken:
            self.room.take(n_bytes - self._taken)
            self._taken = n_bytes

    def close(self) -> None:
        """Give back what was taken."""
        self.room.take(-self._taken)
        self._taken = 0


async def read_json(request: Request, limits: Limits, room: Room, received: ExitStack) -> bytes:
    """The body of a question. Raises Refused if it is not said to be JSON, is too large, or comes too slowly.

    Another site's page can send a form or plain text to this machine without asking, and JSON only if we allowed it.
    received  is closed when the question is answered: until then its body takes of the room
    """
    if _name_kind(request) != JSON:
        raise Refused(415, f"The body of a question is JSON (Content-Type: {JSON}).")
    body, until = bytearray(), anyio.current_time() + limits.body_seconds
    share = received.enter_context(closing(Share(room)))
    async for part in _read_parts(request, share, limits.body_bytes, limits):
        body += part
        if anyio.current_time() > until:
            raise Refused(408, "The body came too slowly.", CLOSE)
    return bytes(body)


async def receive_counts(request: Request, limits: Limits, room: Room, received: ExitStack) -> str:
    """The path of a temporary file that holds the body, new counts, until `received` is closed.

    Raises Refused as `read_json` does, and if the disk is full.
    """
    most, share = min(limits.upload_mb * 10**6, room.most), received.enter_context(closing(Share(room)))
    try:
        handle, path = tempfile.mkstemp(".h5ad", "atlasvi-")
        received.callback(os.unlink, path)
        with open(handle, "wb") as file:
            async for part in _read_parts(request, share, most, limits):
                await run_in_threadpool(file.write, part)
    except OSError as error:
        log.error("new counts can't be kept", exc_info=error)
        raise Refused(503, "The service can't keep new counts at the moment: its log says why.", LATER) from None
    return path


def list_parameters(request: Request) -> dict[str, Any]:
    """The query parameters by name; one that is repeated is a list."""
    several = {name: request.query_params.getlist(name) for name in request.query_params}
    return {name: values if len(values) > 1 else values[0] for name, values in several.items()}


async def _read_parts(request: Request, share: Share, most: int, limits: Limits) -> AsyncIterator[bytes]:
    """The parts of a body of at most so many bytes, which neither stop for long nor come too slowly as a whole."""
    too_large = Refused(413, f"The body is larger than {most:,} bytes.", CLOSE)
    too_slow = Refused(408, "The body came too slowly.", CLOSE)
    said = request.headers.get("content-length", "0")
    parts, n_bytes, begun = request.stream(), 0, anyio.current_time()
    if said.isdecimal():
        if int(said[:20]) > most:
            await _leave(parts)
            raise too_large
        share.grow(int(said))
    while True:
        try:
            with anyio.fail_after(limits.body_seconds):
                part = await anext(parts, b"")
        except TimeoutError:
            raise too_slow from None
        if not part:
            return
        n_bytes += len(part)
        if n_bytes > most:
            await _leave(parts)
            raise too_large
        if anyio.current_time() - begun > limits.body_seconds + n_bytes / limits.slowest_bytes:
            raise too_slow
        share.grow(n_bytes)
        yield part


async def _leave(parts: AsyncIterator[bytes]) -> None:
    """Read on for a moment: a connection that is closed while bytes still come takes the answer with it."""
    n_bytes = 0
    with anyio.move_on_after(LEFT_SECONDS):
        async for part in parts:
            n_bytes += len(part)
            if n_bytes > LEFT_BYTES:
                return
