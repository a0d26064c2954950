"""A page in headless Chromium, driven as a person would: typed into, clicked, looked at. Over the DevTools protocol."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from websockets.sync.client import ClientConnection, connect

from contract.surfaces.world import clean_environment

ANSWER_SECONDS = 60.0
FLAGS = (
    # --no-sandbox: its sandbox does not start for root, as in a container; the pages are ours.
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-port=0", "--no-proxy-server",
)  # fmt: skip


@dataclass
class Page:
    """One tab."""

    socket: ClientConnection
    said: list[str] = field(default_factory=list)
    _last: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self.socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while (message := self._receive()).get("id") != self._last:
            pass
        assert "error" not in message, message["error"]
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str) -> None:
        self.call("Page.enable")
        self.call("Log.enable")
        self.call("Page.navigate", url=url)
        self.arrive()

    def arrive(self) -> None:
        """Return once the next page is loaded, also one that a click leads to."""
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; of a promise, what it becomes."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        box = self.evaluate(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.call("Input.insertText", text=text)

    def wait_for(self, condition: str) -> None:
        """Return once a JavaScript condition on the page holds; it is looked at whenever the page changes."""
        self.evaluate(
            "new Promise((resolve, reject) => {"
            f" const look = () => {condition} && resolve(true);"
            " new MutationObserver(look).observe(document, {subtree: true, childList: true, characterData: true});"
            f" setTimeout(() => reject(document.body.innerText), {ANSWER_SECONDS * 1000}); look(); }})"
        )

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(ANSWER_SECONDS + 10))
        if message.get("method") == "Log.entryAdded":
            self.said.append(message["params"]["entry"]["text"])
        return message


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Page]:
    """Start a browser with one empty tab; `profile` is its own."""
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True) as scratch:
        # It leaves files behind, and makes a socket among them: a path of a test's own would be too long for one.
        yield from _browsing(command, clean_environment(TMPDIR=scratch))


def _browsing(command: list[str], environment: dict[str, str]) -> Iterator[Page]:
    browser = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert browser.stderr is not None
    try:
        said = ""
        while "DevTools listening on ws://" not in said:
            said = browser.stderr.readline()
            assert said, f"the browser ended with {browser.wait()}"
        address = said.split("ws://", 1)[1].split("/", 1)[0]
        tabs = httpx2.get(f"http://{address}/json/list", trust_env=False).json()
        tab = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(tab, max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.communicate(timeout=30)
