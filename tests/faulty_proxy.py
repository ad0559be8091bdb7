"""A proxy in front of an S3 server that answers as bad networks and busy servers do, once for each fault in a list."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "expired": ("400 Bad Request", "ExpiredToken"),
    "denied": ("403 Forbidden", "AccessDenied"),
}


class FaultyProxy:
    """Requests are passed on, and the answers back, but for those for which there is a fault.

    endpoint  address of the proxy
    faults    for each of the next requests its fault, or None: '500', '503', 'expired' and 'denied' are answers;
              'refused' closes the connection without an answer; 'reset' and 'broken off' end it in the middle of one;
              'stalled' is silent there for `silence` seconds; 'shorter' gives half of the bytes as if they were all;
              'whole' calls the part that was asked for the whole object
    delay     seconds that each answer is late
    hides     whether lists, and objects that are not there, are refused: as buckets do that may be read and not listed
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._server, self._listener = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: list[str | None] = []
        self.delay, self.silence, self.requests = 0.0, 3.0, 0
        self.hides = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (part := client.recv(2**16)):
                    return
                head += part
            head += receive_body(client, head)
            with self._lock:
                fault = self.faults.pop(0) if self.faults else None
                self.requests += 1
            if not head.startswith(b"GET ") and fault in ("shorter", "whole"):
                fault = "refused"  # there is nothing to shorten
            time.sleep(self.delay)
            if self.hides and (b"list-type=" in head.partition(b"\r\n")[0] or b" 404 " in self._ask(head)[0][:20]):
                fault = "denied"
            if fault == "refused":
                return
            if fault in ANSWERS:
                status, code = ANSWERS[fault]
                body = f"<Error><Code>{code}</Code></Error>".encode()
                client.sendall(
                    f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                )
                client.sendall(body)
                return
            answer, body = self._ask(head)
            if fault == "whole":
                lines = [line for line in answer.split(b"\r\n") if not line.lower().startswith(b"content-range")]
                answer = b"\r\n".join([b"HTTP/1.1 200 OK", *lines[1:]])
            half = body[: len(body) // 2] if fault is not None and fault != "whole" else body
            if fault == "shorter":
                lines = [line for line in answer.split(b"\r\n") if not line.lower().startswith(b"content-length")]
                answer = b"\r\n".join([lines[0], b"Content-Length: %d" % len(half), *lines[1:]])
            client.sendall(answer + b"\r\n\r\n" + half)
            if fault == "stalled":
                time.sleep(self.silence)
            if fault == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _ask(self, head: bytes) -> tuple[bytes, bytes]:
        """(status and headers, body) of the server's answer to a request."""
        request, _, rest = head.partition(b"\r\n\r\n")
        lines = [line for line in request.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        with socket.create_connection(self._server) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + rest)
            answer = b""
            while part := server.recv(2**20):
                answer += part
        answer, _, body = answer.partition(b"\r\n\r\n")
        return answer, body


def receive_body(client: socket.socket, head: bytes) -> bytes:
    """What is still missing of a request's body: what is written comes with its length."""
    request, _, body = head.partition(b"\r\n\r\n")
    lines = (line.partition(b":") for line in request.lower().split(b"\r\n"))
    left = next((int(value) for name, _, value in lines if name == b"content-length"), 0) - len(body)
    pieces = []
    while left > 0 and (piece := client.recv(min(left, 2**20))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


@contextmanager
def run_proxy(endpoint: str) -> Iterator[FaultyProxy]:
    """A running proxy."""
    proxy = FaultyProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
