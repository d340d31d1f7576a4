"""A real browser, driven by its DevTools protocol over a pipe (--remote-debugging-pipe): no package and no port."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from PIL import Image

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]

PLACES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes Chromium, which takes its commands from descriptor 3 and answers on 4."""


def chromium() -> str:
    """Where it is; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine to look at a page with")
    return found


class Browser:
    """One page of a Chromium of its own."""

    def __init__(self, folder: Path) -> None:
        (here_in, there_out), (there_in, here_out) = os.pipe(), os.pipe()
        options = [*QUIET, f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLACES, str(there_in), str(there_out), chromium(), *options],
            pass_fds=(there_in, there_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there_in)
        os.close(there_out)
        self._in, self._out, self._rest, self._number = here_in, here_out, b"", 0
        self._session: dict[str, str] = {}
        self.log: list[str] = []
        """What the page has complained of on its console: errors of its script, what its policy has blocked."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 20)
                if not part:
                    raise EOFError("Chromium has gone")
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                found: dict[str, Any] = answer["result"]
                return found
            if answer.get("method") == "Log.entryAdded":
                self.log.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.log.append(json.dumps(answer["params"]["exceptionDetails"]))

    def open(self, url: str, width: int = 1280, height: int = 800, scale: float = 1, dark: bool = False) -> None:
        """Open a page in a window of that many CSS pixels."""
        self.size(width, height, scale)
        self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        )
        self._go("about:blank")
        self.log.clear()  # of the page before, which may have complained until its end
        self._go(url)

    def _go(self, url: str) -> None:
        loader = self.call("Page.navigate", url=url)["loaderId"]
        until(lambda: self.call("Page.getFrameTree")["frameTree"]["frame"]["loaderId"] == loader)
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Another window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """The value of an expression of the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 15) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, (
                f"{script} did not become true; the page says: {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """With the mouse, in its middle."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        box = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({place})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, file: Path | None = None) -> np.ndarray:
        """What is on the screen: uint8 (H, W, 3) RGB."""
        png = b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if file:
            file.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def until(true: Callable[[], Any], seconds: float = 10) -> Any:
    """The value of a call once it is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
    return value
