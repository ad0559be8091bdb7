"""Who may ask: looked at before anything of a request is."""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlasvi.loaders.errors import AtlasviError

COOKIE = "atlasvi_token"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class AccessError(AtlasviError, ValueError):
    """A service that anybody could ask."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets a request through if it has the token and does not come from a page of another site.

    token  what each request must bring: `Authorization: Bearer TOKEN`, or the cookie that opening `/?token=TOKEN` in a
           browser sets. None: no token is needed; then the Host header must name this machine, because a web page can
           give its own name the address 127.0.0.1 and read the answers as its own (DNS rebinding)
    hosts  other names by which this machine may be called
    send_seconds  after which a client that takes nothing of its answer is left
    """

    def __init__(
        self, app: ASGIApp, token: str | None = None, hosts: Sequence[str] = (), send_seconds: float = 60.0
    ) -> None:
        self._app, self._token, self._hosts = app, token, {*LOCAL_NAMES, *hosts}
        self._send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return

        async def send_plainly(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        await self._app(scope, receive, send_plainly)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._token is None:
            if _without_port(host) not in self._hosts:
                return refuse(421, f"This service does not answer to the name {host!r:.100}: use localhost.")
        elif not self._has_token(headers):
            query = parse_qs(scope["query_string"].decode("latin-1"))
            if scope["method"] == "GET" and scope["path"] == "/" and self._matches(query.get("token", [""])[0]):
                response = RedirectResponse("/", 303)
                response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
                return response
            return refuse(
                401, "A token is needed: send the header Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return refuse(403, "Pages of other sites may not ask this service.")
        return None

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._matches(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._matches(cookie.value)

    def _matches(self, given: str) -> bool:
        """Whether a token is ours, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(given.encode(errors="replace"), str(self._token).encode())


def _without_port(host: str) -> str:
    """The name in a Host header; empty if it holds anything but a name and a port."""
    parts = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", host.lower())
    return parts[1] if parts else ""


def refuse(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A response that says in a sentence why there is no answer."""
    return JSONResponse({"error": sentence}, status, headers)


def check_access(host: str, token: str | None) -> None:
    """Raise AccessError unless nobody but this machine, or who has the token, can ask."""
    if token is None and not is_loopback(host):
        raise AccessError(
            f"At {host} other machines can reach the service, so it needs a token: --token TOKEN, or the variable "
            "ATLASVI_TOKEN."
        )
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token or len(token) < 8):
        raise AccessError("The token is too simple: it is at least 8 printable ASCII characters without spaces.")
