"""The server of the viewer: local only, with a secret token and a few fixed addresses."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from cli.viewer.content import ViewerState
from features.errors import MilError
from features.utils.html import page_style

__all__ = ["ViewServer"]

Response = tuple[str, bytes]
"""Media type and content."""

_HTML, _CSS, _SCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript"
_STATIC = {
    "": ("index.html", _HTML),
    "viewer.css": ("viewer.css", _CSS),
    "list.js": ("list.js", _SCRIPT),
    "pane.js": ("pane.js", _SCRIPT),
    "viewer.js": ("viewer.js", _SCRIPT),
    "openseadragon.js": ("openseadragon/openseadragon.min.js", _SCRIPT),
}
_NUMBER = r"([0-9]{1,9})"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_IDLE_S = 60


class ViewServer(ThreadingHTTPServer):
    """HTTP server that shows a run to browsers on this machine that know the token.

    It listens on 127.0.0.1 only. The token is new for each server and the first part of every
    address. The ``Host`` header must name this machine, which prevents DNS rebinding. Addresses
    consist of numbers and fixed names, never paths. Port 0 chooses any free one. Idle connections
    are closed after 60 seconds. Raises ``OSError`` if the port is in use.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, state: ViewerState, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self._routes: list[tuple[re.Pattern[str], Callable[..., Response]]] = [
            (re.compile(pattern), handler) for pattern, handler in _routes(state).items()
        ]

    @property
    def url(self) -> str:
        """Address of the page, including the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def respond(self, address: str) -> Response:
        """Return the content at an address without its token, or raise ``KeyError``."""
        if address == "style.css":
            return _CSS, page_style().encode()
        if address in _STATIC:
            name, kind = _STATIC[address]
            return kind, _static(name)
        for pattern, handler in self._routes:
            if match := pattern.fullmatch(address):
                return handler(*map(int, match.groups()))
        raise KeyError(address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that closed the connection; report all other errors as bugs."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Handler of GET and HEAD requests."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mil-view", ""
    disable_nagle_algorithm = True  # it would wait for the browser's delayed acknowledgement
    wbufsize = -1
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Send the content of the requested address."""
        try:
            self._send(HTTPStatus.OK, *self.server.respond(self._address()))
        except PermissionError:
            self._refuse(HTTPStatus.FORBIDDEN)
        except KeyError:
            self._refuse(HTTPStatus.NOT_FOUND)
        except MilError as error:
            content = json.dumps({"error": str(error)}).encode()
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", content)

    do_HEAD = do_GET  # noqa: N815 - the base class requires this name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing, as every line would contain the token."""

    def _address(self) -> str:
        """Return the requested address without its token; ``PermissionError`` if that is wrong."""
        token, _, address = self.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if not known or self.headers.get("Host") not in self.server.hosts:
            raise PermissionError
        return address

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        is_image = status == HTTPStatus.OK and kind.startswith("image/")
        for name, value in {
            **_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)),
            "Cache-Control": "private, max-age=3600" if is_image else "no-store",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _routes(state: ViewerState) -> dict[str, Callable[..., Response]]:
    """Return the handlers by the pattern of their address."""
    region = f"{_NUMBER}/{_NUMBER}_{_NUMBER}"
    return {
        r"patients\.json": lambda: _as_json(state.patients()),
        rf"patients/{_NUMBER}\.json": lambda number: _as_json(state.patient(number)),
        rf"slides/{_NUMBER}/{region}\.jpg": lambda *a: ("image/jpeg", state.slide_region(*a)),
        rf"slides/{_NUMBER}/overlays/{_NUMBER}/{region}\.png": (
            lambda *a: ("image/png", state.overlay_region(*a))
        ),
        rf"slides/{_NUMBER}/tiles/{_NUMBER}\.png": lambda *a: ("image/png", state.tile(*a)),
        rf"legends/{_NUMBER}\.png": lambda number: ("image/png", state.legend(number)),
    }


def _as_json(content: dict[str, object]) -> Response:
    return "application/json", json.dumps(content).encode()


@cache
def _static(name: str) -> bytes:
    return (files("cli.viewer") / "static" / name).read_bytes()
