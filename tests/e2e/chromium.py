"""Headless Chromium, driven over a pipe by the Chrome DevTools Protocol: no package but the browser itself.

https://chromedevtools.github.io/devtools-protocol/ ; with `--remote-debugging-pipe` messages are JSON, each ended
by a zero byte, on the browser's file descriptors 3 and 4.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which needs a user namespace or setuid; what is opened here is our own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no name leads anywhere; addresses do
    "--no-first-run",
    "--no-proxy-server",
)
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "Delete": 46,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    " ": 32,
}
_ANSWERS_S = 60.0


def chromium_path() -> str:
    """Return Chromium; without one, skip the test, or fail where toolchains are required."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    reason = "Chromium is not installed (Debian: apt-get install chromium)"
    if os.environ.get("POCKETLENS_REQUIRE_TOOLCHAINS"):
        pytest.fail(reason)
    pytest.skip(reason)


class Chromium:
    """A running browser with an empty profile. Use it as a context manager."""

    def __init__(self, profile: Path) -> None:
        to_read, self._to_write = _high_pipe()
        self._to_read, to_write = _high_pipe()
        # The two ends get the numbers that the browser expects, in a process that then becomes the browser.
        launch = f"import os, sys; os.dup2({to_read}, 3); os.dup2({to_write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", launch, chromium_path()]
        environment = {k: v for k, v in os.environ.items() if k not in {"DBUS_SESSION_BUS_ADDRESS", "DISPLAY"}}
        self._process = subprocess.Popen(
            [*command, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment, "HOME": str(profile)},
        )
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._ended = False
        self._news = threading.Condition()
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._to_write)
        self._process.terminate()
        self._process.wait(_ANSWERS_S)
        self._reader.join(_ANSWERS_S)
        os.close(self._to_read)

    def send(self, method: str, *, session: str | None = None, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        with self._news:
            self._number += 1
            number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_write, json.dumps(message).encode() + b"\0")
        with self._news:
            self._news.wait_for(lambda: number in self._answers or self._ended, _ANSWERS_S)
            answer = self._answers.pop(number, None)
        assert answer is not None, f"Chromium ended, or {method} took too long"
        if "error" in answer:
            told = f"{method}: {answer['error']['message']}"
            raise (_Navigated if "navigated" in told else AssertionError)(told)
        return answer["result"]

    def wait_for_news(self, seconds: float) -> None:
        """Wait until the browser says something, or for so long."""
        with self._news:
            self._news.wait(seconds)

    def page(self, address: str = "about:blank", *, width: int = 1200, height: int = 900) -> "Page":
        """Open a page."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, address, width, height)

    def _read(self) -> None:
        held = b""
        while data := os.read(self._to_read, 1 << 16):
            *messages, held = (held + data).split(b"\0")
            with self._news:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append(message)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class _Navigated(AssertionError):
    """The page went on to another one before it answered."""


class Page:
    """One page of the browser."""

    def __init__(self, browser: Chromium, session: str, address: str, width: int, height: int) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        if address != "about:blank":
            self.open(address)

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol on this page."""
        return self._browser.send(method, session=self._session, **parameters)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of this page's events of one kind, oldest first."""
        found = [e for e in list(self._browser.events) if e["method"] == method and e.get("sessionId") == self._session]
        return [event["params"] for event in found]

    def open(self, address: str) -> None:
        """Go to `address`."""
        self.send("Page.navigate", url=address)

    def resize(self, width: int, height: int) -> None:
        """Make the viewport this large, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, **features: str) -> None:
        """Pretend that somebody prefers `features`, such as `prefers_color_scheme="dark"`."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=wanted)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited; what it throws fails the test."""
        result = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> Any:
        """Return the first true value of a JavaScript expression, looked at again whenever something happens."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # `null`, or no answer, while the page goes on to another one.
            with suppress(_Navigated):
                found = self.evaluate(f"(() => {{ try {{ return {condition}; }} catch {{ return null; }} }})()")
                if found:
                    return found
            self._browser.wait_for_news(0.02)
        pytest.fail(f"not seen in {seconds} s: {condition}; the page says {self.evaluate('document.body.innerText')}")

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys one after the other."""
        for key in keys:
            code = KEYS.get(key, 0)
            text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
            held = {"modifiers": 8 if shift else 0, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **held)
            self.send("Input.dispatchKeyEvent", type="keyUp", **held)

    def type(self, text: str) -> None:
        """Type `text` where the focus is."""
        self.send("Input.insertText", text=text)

    def choose_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def controls(self) -> list[tuple[str, str]]:
        """Return role and accessible name, as screen readers get them, of all that can be operated."""
        roles = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "dialog", "image", "meter"}
        roles |= {"progressbar", "DisclosureTriangle", "Date", "listbox"}
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
        return [(role, name) for role, name in found if role in roles]

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


def _high_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, both with numbers that 3 and 4 cannot hit."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 30) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
