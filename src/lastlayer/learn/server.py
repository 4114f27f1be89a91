"""The server of the page: two JSON endpoints and the files under static/, for this machine only.

A page of another site can make a browser send requests to 127.0.0.1, by any name that resolves to it. So a request
whose Host or Origin is not this server's is refused, bodies are bounded, nothing is ever written, and a strict policy
keeps the page from loading anything from elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lastlayer.learn import api
from lastlayer.learn.lesson import Mistake

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MAX_BODY = 64 * 1024
NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def application(port: int) -> ASGIApp:
    """Return the ASGI application that answers on this port.

    Example:
        >>> type(application(8000)).__name__
        'Guard'
    """
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}

    async def file(request: Request) -> Response:
        path = files.get(request.path_params.get("name", "index.html"))
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type=TYPES[path.suffix])

    routes = [
        Route("/", file),
        Route("/static/{name}", file),
        Route("/api/lessons", _lessons),
        Route("/api/lessons/{slug}", _answer, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _refused}), port)


class Guard:
    """Refuses what does not come from this server's own page, and adds the headers that keep the page to itself."""

    def __init__(self, inner: ASGIApp, port: int) -> None:
        self.inner = inner
        self.hosts = {f"{name}:{port}" for name in NAMES} | ({*NAMES} if port == 80 else set())
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.inner)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        """Return what to answer instead, or None."""
        host, origins = request.headers.get("host", ""), request.headers.getlist("origin")
        if len(request.headers.getlist("host")) != 1 or host.lower() not in self.hosts:
            return _error(403, f"this server answers to {' and '.join(sorted(self.hosts))} only, not to {host!r:.60}")
        if any(origin.lower() not in self.origins for origin in origins):
            return _error(403, f"a request from {origins[0]!r:.60} is not one of this page")
        return None


async def _lessons(request: Request) -> Response:
    return JSONResponse(api.lessons())


async def _answer(request: Request) -> Response:
    """Answer a state with what follows from it; 400 and one clear line if nothing does."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return _error(415, "expected content of type application/json")
    body = await _body(request)
    if body is None:
        return _error(413, f"the request is larger than {MAX_BODY} bytes")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return _error(400, "expected JSON")
    if not isinstance(given, dict):
        return _error(400, f"expected an object of fields and values, got {type(given).__name__}")
    try:
        return JSONResponse(await run_in_threadpool(api.answer, request.path_params["slug"], given))
    except KeyError:
        return _error(404, f"there is no lesson {request.path_params['slug']!r:.60}")
    except Mistake as mistake:
        return _error(400, str(mistake), field=mistake.field, index=list(mistake.index))


async def _body(request: Request) -> bytes | None:
    """Return the body, or None as soon as it is known to be too large, whatever its header claims."""
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdigit() or int(claimed) > MAX_BODY:
        return None
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > MAX_BODY:
            return None
    return bytes(parts)


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is nothing here", 405: "this address does not take that method"}
    return _error(status, words.get(status, "the server could not compute this; its terminal says why"))


def _error(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": message, **more}, status)
