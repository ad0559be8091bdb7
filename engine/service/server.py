"""The process that serves a store: a socket, uvicorn, and an end without a traceback at SIGINT or SIGTERM."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from atlasvi.engine.distributed.signals import StopNow
from atlasvi.engine.service.limits import Limits
from atlasvi.loaders.errors import OutputError

CONNECTIONS = 1_000  # at once; more are told that the service is busy
GRACE_SECONDS = 3  # for answers that are being sent when the process is to end


def make_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, for connections whose next request must come within so many seconds once it has begun.

    uvicorn waits for the head of a request as long as the client likes.
    """

    class PromptProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._set_timer(True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._set_timer(self._waits())

        def connection_lost(self, exc: Exception | None) -> None:
            self._set_timer(False)
            super().connection_lost(exc)

        def _waits(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _set_timer(self, on: bool) -> None:
            if not on and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif on and self._timer is None:
                self._timer = self.loop.call_later(seconds, self._close_slow)

        def _close_slow(self) -> None:
            self._timer = None
            if self._waits():
                self.transport.close()

    return PromptProtocol


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any free one. Raises OutputError, with a sentence."""
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host.strip("[]"), port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"The service can't listen at {host} port {port} ({reason}): choose another (--host, --port)."
        ) from None


def make_server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """uvicorn for a service."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=make_protocol(limits.header_seconds),
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def run_server(app: Starlette, listening: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM."""
    with suppress(KeyboardInterrupt, StopNow):  # uvicorn raises the signal again when it has ended
        make_server(app, limits).run(sockets=[listening])
