"""Before a request is looked at: who may ask, from which page, how many at once; what browsers may do."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "unseen_token"
AT_ONCE = 64
"""Uploads in memory; more are asked to come again."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer that says in one sentence why there is no other."""
    return JSONResponse({"error": sentence}, status)


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        hosts: that a request may name; any if None. On loopback this stops a web site that lets its own
            name point here (DNS rebinding).
        token: that a request must bring, if any: as a bearer, or in the cookie that `/?token=` sets.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, token: str | None) -> None:
        self.app = app
        self.hosts = hosts
        self.token = token
        # Browsers keep cookies by host whatever the port: two servers of one host need two names.
        self.cookie = f"{COOKIE}_{hashlib.sha256((token or '').encode()).hexdigest()[:16]}"
        self.uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        answer = self._refused(request.headers) or self._token_refused(request) or self._busy(request)
        if answer is not None:
            return await answer(scope, receive, with_headers)
        is_upload = request.method == "POST"
        self.uploads += is_upload
        try:
            await self.app(scope, receive, with_headers)
        finally:
            self.uploads -= is_upload

    def _refused(self, headers: Headers) -> Response | None:
        names = headers.getlist("host")
        if self.hosts is not None and (len(names) != 1 or _without_port(names[0]) not in self.hosts):
            return refusal(421, f"This server answers to {' and '.join(self.hosts)} alone.")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != (names[0] if names else "").lower():
            return refusal(403, "Another web site may not use this server.")
        return None

    def _token_refused(self, request: Request) -> Response | None:
        if self.token is None:
            return None
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None and self._is_token(given):
            entry = RedirectResponse("./", 303)
            # Lax: a link in a message must work, and a form of another site brings no cookie.
            entry.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", path="/")
            return entry
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        if self._is_token(request.cookies.get(self.cookie, "")):
            return None
        answer = refusal(401, "A token is needed: open the address that the server printed when it started.")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), str(self.token).encode())

    def _busy(self, request: Request) -> Response | None:
        if request.method != "POST" or self.uploads < AT_ONCE:
            return None
        answer = refusal(503, f"{AT_ONCE} images are being looked at already; try again in a second.")
        answer.headers["Retry-After"] = "1"
        return answer


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
