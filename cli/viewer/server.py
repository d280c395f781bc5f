"""The server of the viewer: this machine only, one secret token, a handful of addresses."""

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
from cli.viewer.images import draw_legend
from features.errors import MilError

__all__ = ["ViewServer"]

Answer = tuple[str, bytes]
"""Media type and content."""

_HTML, _CSS, _SCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript"
_STATIC = {
    "": ("index.html", _HTML),
    "viewer.css": ("viewer.css", _CSS),
    "viewer.js": ("viewer.js", _SCRIPT),
    "openseadragon.js": ("openseadragon/openseadragon.min.js", _SCRIPT),
}
_NUMBER = r"([0-9]{1,9})"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_IDLE_S = 60


class ViewServer(ThreadingHTTPServer):
    """Serves a run to browsers of this machine that know the token.

    It listens on 127.0.0.1 only. The token is new each time and the first part of every address;
    the ``Host`` that a browser names must be this machine, so that no foreign name that was made to
    point here (DNS rebinding) reads anything. Addresses hold numbers and fixed names, never paths.

    Parameters
    ----------
    viewed
        What is shown.
    port
        Where to listen; 0 takes any free one.

    Raises
    ------
    OSError
        If the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, viewed: ViewerState, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = secrets.token_urlsafe(24)
        """Secret that every address begins with."""
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        """What a browser may call this machine."""
        self._routes: list[tuple[re.Pattern[str], Callable[..., Answer]]] = [
            (re.compile(pattern), answer) for pattern, answer in _routes(viewed).items()
        ]

    @property
    def url(self) -> str:
        """Address of the page, with the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def answer(self, address: str) -> Answer:
        """What lies at an address behind the token.

        Raises
        ------
        KeyError
            If nothing does.
        """
        if address in _STATIC:
            name, kind = _STATIC[address]
            return kind, _static(name)
        for pattern, answer in self._routes:
            if found := pattern.fullmatch(address):
                return answer(*map(int, found.groups()))
        raise KeyError(address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that went away in the middle; everything else is a bug."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mil-view", ""
    disable_nagle_algorithm = True  # or each answer waits for the browser's delayed "received"
    wbufsize = -1
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer."""
        try:
            self._send(HTTPStatus.OK, *self.server.answer(self._address()))
        except PermissionError:
            self._refuse(HTTPStatus.FORBIDDEN)
        except KeyError:
            self._refuse(HTTPStatus.NOT_FOUND)
        except MilError as error:
            told = json.dumps({"error": str(error)}).encode()
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", told)

    do_HEAD = do_GET  # noqa: N815 - the name that the library looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the terminal quiet; the token would stand in every line."""

    def _address(self) -> str:
        """What stands behind the token in the address asked for.

        Raises
        ------
        PermissionError
            If the token or the host is not right.
        """
        token, _, address = self.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if not known or self.headers.get("Host") not in self.server.hosts:
            raise PermissionError
        return address

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        picture = status == HTTPStatus.OK and kind.startswith("image/")
        for name, value in {
            **_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)),
            "Cache-Control": "private, max-age=3600" if picture else "no-store",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _routes(viewed: ViewerState) -> dict[str, Callable[..., Answer]]:
    """Answers by the pattern of their address."""
    window = f"{_NUMBER}/{_NUMBER}_{_NUMBER}"
    return {
        r"patients\.json": lambda: _as_json(viewed.patients()),
        rf"patients/{_NUMBER}\.json": lambda number: _as_json(viewed.patient(number)),
        rf"slides/{_NUMBER}/{window}\.jpg": lambda *a: ("image/jpeg", viewed.slide_window(*a)),
        rf"slides/{_NUMBER}/colours/{window}\.png": (
            lambda *a: ("image/png", viewed.colour_window(*a))
        ),
        rf"slides/{_NUMBER}/tiles/{_NUMBER}\.png": lambda *a: ("image/png", viewed.tile(*a)),
        r"legend\.png": lambda: ("image/png", draw_legend()),
    }


def _as_json(content: dict[str, object]) -> Answer:
    return "application/json", json.dumps(content).encode()


@cache
def _static(name: str) -> bytes:
    return (files("cli.viewer") / "static" / name).read_bytes()
