"""A headless Chromium, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["BROWSER_MARKS", "Tab", "needs_browser", "open_tab"]

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BROWSER_MARKS = (
    pytest.mark.ci,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: it opens the pages"),
)
_TIMEOUT_S = 60


class Tab:
    """One page; messages of the DevTools protocol are JSON objects that end in a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._n_sent = 0
        self._session: str | None = None
        self.errors: list[str] = []
        """Errors of the console, exceptions and dialogs."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._n_sent += 1
        message: dict[str, Any] = {"id": self._n_sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._n_sent:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Return the first true value of an expression, evaluated again and again."""
        end = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < end:
            if value := self.evaluate(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.errors}")

    def open(self, url: str) -> None:
        """Load a page, and wait until all its pictures are decoded."""
        self.errors.clear()
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        # A page may write where it is behind the # before it is complete, and may put other
        # pictures in the place of those that are being loaded.
        self.wait_for(
            f"location.href.split('#')[0] === {json.dumps(url.partition('#')[0])}"
            " && document.readyState === 'complete'"
        )
        self.wait_for(
            "[...document.images].every((image) => {"
            " image.loading = 'eager'; return !image.src || image.complete; })"
        )
        self.evaluate("Promise.allSettled([...document.images].map((image) => image.decode()))")

    def resize(self, width_px: int, height_px: int) -> None:
        """Give the page a window of this size, which may be narrower than Chromium's smallest."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def press(self, key: str) -> None:
        """Press a key and release it."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def type(self, key: str) -> None:
        """Press a key that writes a character, or Backspace, into the field in focus."""
        text = key if len(key) == 1 else ""
        code = ord(key.upper()) if text else 8
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))  # fmt: skip

    def click(self, x: float, y: float) -> None:
        """Click at a position of the window, CSS px."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the button at one position of the window, CSS px, and release it at another."""
        for kind, (x, y) in (
            ("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)
        ):  # fmt: skip
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                      buttons=1, clickCount=1)  # fmt: skip

    def wait_for_frame(self) -> None:
        """Wait until the page has begun to draw what was changed, and that is on the screen."""
        self.evaluate(
            "new Promise((shown) => requestAnimationFrame(() => requestAnimationFrame(shown)))"
        )

    def screenshot(self) -> bytes:
        """Return a PNG of the window, as the page draws it next."""
        self.wait_for_frame()
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 16)
            assert part, "the browser went away"
            self._buffer += part
        content, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        self._collect_errors(message.get("method", ""), message.get("params", {}))
        return message

    def _collect_errors(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and params["type"] == "error"
        ):
            self.errors.append(json.dumps(params))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that opens a page in Chromium."""
    for mark in BROWSER_MARKS:
        test = mark(test)
    return test


@contextmanager
def open_tab(profile: Path, *, width_px: int = 1400, height_px: int = 900) -> Iterator[Tab]:
    """Start a browser with one tab, and kill it at the end."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # Chromium reads from 3 and writes to 4: a shell puts our ends there.
    wire = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
        ["bash", "-c", wire, "bash", str(CHROMIUM), "--headless", "--no-sandbox",
         "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run",
         f"--user-data-dir={profile}", f"--window-size={width_px},{height_px}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=(to_browser[0], from_browser[1]),
    )  # fmt: skip
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Tab(to_browser[1], from_browser[0])
    finally:
        process.kill()
        process.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])
