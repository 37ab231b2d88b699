"""A real Chromium without a window, driven through a pair of pipes."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: WebGL in software, no window, no telephoning home.
_FLAGS = [
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--ignore-gpu-blocklist", "--hide-scrollbars", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
]
_ANSWER_S = 60.0


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One page of a browser of its own, with a profile that is thrown away.

    The DevTools protocol through pipes (``--remote-debugging-pipe``): messages end with a NUL on
    the descriptors 3 and 4 of the browser, and no port is opened.
    """

    def __init__(self, executable: str, profile: Path, size: tuple[int, int]) -> None:
        to_browser, self._to_browser = os.pipe()
        self._from_browser, from_browser = os.pipe()
        self._numbers = itertools.count(1)
        self._received = b""
        self._n_loaded = 0
        #: What pages wrote to their consoles, and errors they did not catch: for failing tests.
        self.log: list[str] = []
        # Only a shell gives a process descriptors with numbers of one's choice.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        window = f"--window-size={size[0]},{size[1]}"
        self._process = subprocess.Popen(
            ["bash", "-c", script, executable, *_FLAGS, f"--user-data-dir={profile}", window],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._call(method, parameters, self._session)

    def open(self, url: str) -> None:
        n_loaded = self._n_loaded
        answer = self.call("Page.navigate", {"url": url})
        assert "errorText" not in answer, answer
        # Until then there is, for a moment, no page to take a picture of.
        while self._n_loaded == n_loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        return answer["result"].get("value")

    def screenshot(self) -> np.ndarray:
        """Return red, green, blue of every pixel of the page."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))

    def wait_for_picture(
        self, is_there: Callable[[np.ndarray], bool], timeout_s: float = 60.0
    ) -> np.ndarray:
        """Take screenshots until one is as wanted, or the time is over; return the last."""
        deadline = time.monotonic() + timeout_s
        while True:
            picture = self.screenshot()
            if is_there(picture) or time.monotonic() > deadline:
                return picture

    def close(self) -> None:
        os.close(self._to_browser)
        os.close(self._from_browser)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)

    def _call(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _ANSWER_S
        while b"\0" not in self._received:
            ready, _, _ = select.select(
                [self._from_browser], [], [], max(deadline - time.monotonic(), 0)
            )
            data = os.read(self._from_browser, 1 << 20) if ready else b""
            assert data, "the browser does not answer, or has ended"
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        match answer.get("method"):
            case "Page.loadEventFired":
                self._n_loaded += 1
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.log.append(json.dumps(answer["params"])[:500])
        return answer
