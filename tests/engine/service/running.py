"""A service that listens, in a thread of this process, and a client of it."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from atlasvi.engine.cli.serve_command import list_served
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.service.app import make_app
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.server import make_server, open_socket


@contextmanager
def serving(mini: Any, limits: Limits | None = None, port: int = 0, **options: Any) -> Iterator[httpx.Client]:
    """A client of a service of minified data, at this port (0: a free one), which ends with the block."""
    limits = limits or Limits()
    store = open_minified(mini) if isinstance(mini, str | Path) else mini
    server = make_server(make_app(store, list_served(), limits, **options), limits)
    listening = open_socket("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=600) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def run_atlasvi(*words: str) -> None:
    """`atlasvi WORDS...`, for a process of its own."""
    from atlasvi.engine.cli.commands import main

    sys.argv = ["atlasvi", *words]
    main()


def ask(client: httpx.Client, question: str, accept: str = "application/json", **options: Any) -> httpx.Response:
    """The response to a question."""
    return client.post(f"/api/{question}", json=options, headers={"Accept": accept})


def ask_table(client: httpx.Client, question: str, **options: Any) -> dict[str, list[Any]]:
    """The columns of the answer to a question, from JSON."""
    response = ask(client, question, **options)
    assert response.status_code == 200, response.text
    return response.json()["columns"]


def refusal(response: httpx.Response, status: int) -> str:
    """The sentence with which a question was refused."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]
