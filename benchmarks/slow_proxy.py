"""A proxy in front of a server that holds each request back for a time, as a distant bucket would.

It answers as many requests at a time as it is asked, and passes bytes on as they are.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


class SlowProxy:
    """A proxy that runs in a thread.

    endpoint  its address
    delay     seconds that each request is held back
    requests  how many came
    """

    def __init__(self, endpoint: str, delay: float) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._server, self.delay, self.requests = (host, int(port)), delay, 0
        ready = threading.Event()

        async def listen() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            opened = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
            self.endpoint = f"http://127.0.0.1:{opened.sockets[0].getsockname()[1]}"
            ready.set()
            await self._stop.wait()

        self._thread = threading.Thread(target=asyncio.run, args=(listen(),), daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Stop, in the middle of what is being answered."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _pass_on(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(*self._server, limit=2**20)

        async def ask() -> None:
            while part := await client.read(2**18):
                if part.startswith(METHODS):  # a client sends no request before it has the answer to the last one
                    self.requests += 1
                    await asyncio.sleep(self.delay)
                requests.write(part)
                await requests.drain()
            requests.close()

        async def answer() -> None:
            while part := await server.read(2**18):
                answers.write(part)
                await answers.drain()
            answers.close()

        with suppress(OSError):
            await asyncio.gather(ask(), answer())


@contextmanager
def run_slow_proxy(endpoint: str, delay: float) -> Iterator[SlowProxy]:
    """A running proxy."""
    proxy = SlowProxy(endpoint, delay)
    try:
        yield proxy
    finally:
        proxy.close()
