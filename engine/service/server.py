"""The process that serves a store: a socket, uvicorn, and an end without a traceback at SIGINT or SIGTERM."""

import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from atlasvi.engine.distributed.signals import StopNow
from atlasvi.engine.service.limits import Limits
from atlasvi.loaders.errors import OutputError

CONNECTIONS = 1_000  # at once; more are told that the service is busy
GRACE_SECONDS = 3  # for answers that are being sent when the process is to end


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


def run_server(app: Starlette, listening: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http="h11",
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with suppress(KeyboardInterrupt, StopNow):  # uvicorn raises the signal again when it has ended
        uvicorn.Server(config).run(sockets=[listening])
