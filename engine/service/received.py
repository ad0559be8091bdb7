"""The body of a request: bounded in size, and in the time until it has come."""

import os
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from atlasvi.engine.service.answer_forms import JSON
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.refusals import Refused

COUNTS = "application/x-hdf5"
CLOSE = {"Connection": "close"}  # what is left of the body is not read
LEFT_BYTES, LEFT_SECONDS = 2**24, 2.0  # of a body that is too large, read and not kept


def _name_kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_counts(request: Request) -> bool:
    """Whether the body is a file of new counts."""
    return _name_kind(request) == COUNTS


async def read_json(request: Request, limits: Limits) -> bytes:
    """The body of a question. Raises Refused if it is not said to be JSON, is too large, or comes too slowly.

    Another site's page can send a form or plain text to this machine without asking, and JSON only if we allowed it.
    """
    if _name_kind(request) != JSON:
        raise Refused(415, f"The body of a question is JSON (Content-Type: {JSON}).")
    body, until = bytearray(), anyio.current_time() + limits.body_seconds
    async for part in _read_parts(request, limits.body_bytes, limits.body_seconds):
        body += part
        if anyio.current_time() > until:
            raise Refused(408, "The body came too slowly.", CLOSE)
    return bytes(body)


async def receive_counts(request: Request, limits: Limits) -> str:
    """The path of a temporary file that holds the body, new counts. Raises Refused as `read_json` does."""
    handle, path = tempfile.mkstemp(".h5ad", "atlasvi-")
    try:
        with open(handle, "wb") as file:
            async for part in _read_parts(request, limits.upload_mb * 10**6, limits.body_seconds):
                await run_in_threadpool(file.write, part)
    except BaseException:
        os.unlink(path)
        raise
    return path


def list_parameters(request: Request) -> dict[str, Any]:
    """The query parameters by name; one that is repeated is a list."""
    several = {name: request.query_params.getlist(name) for name in request.query_params}
    return {name: values if len(values) > 1 else values[0] for name, values in several.items()}


async def _read_parts(request: Request, most: int, seconds: float) -> AsyncIterator[bytes]:
    """The parts of a body of at most so many bytes, which come within so many seconds each."""
    too_large = Refused(413, f"The body is larger than {most:,} bytes.", CLOSE)
    said = request.headers.get("content-length", "0")
    parts, n_bytes = request.stream(), 0
    if said.isdecimal() and int(said[:20]) > most:
        await _leave(parts)
        raise too_large
    while True:
        try:
            with anyio.fail_after(seconds):
                part = await anext(parts, b"")
        except TimeoutError:
            raise Refused(408, "The body came too slowly.", CLOSE) from None
        if not part:
            return
        n_bytes += len(part)
        if n_bytes > most:
            await _leave(parts)
            raise too_large
        yield part


async def _leave(parts: AsyncIterator[bytes]) -> None:
    """Read on for a moment: a connection that is closed while bytes still come takes the answer with it."""
    n_bytes = 0
    with anyio.move_on_after(LEFT_SECONDS):
        async for part in parts:
            n_bytes += len(part)
            if n_bytes > LEFT_BYTES:
                return
