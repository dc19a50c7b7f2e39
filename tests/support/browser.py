"""A real browser, driven over the Chrome DevTools Protocol."""

import itertools
import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx2
from websockets.sync.client import connect

from tests.support.tools import require_tool
from tests.support.waiting import eventually

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1400",
    "--remote-debugging-port=0",
)


class Browser:
    """One page of one browser with a profile of its own. Skips the test when there is no Chromium."""

    def __init__(self, profile: Path) -> None:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox for root
        command = [require_tool("chromium"), *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._open = ExitStack()
        try:
            self._attach(profile)
        except BaseException:
            self._stop()
            raise

    def _attach(self, profile: Path) -> None:
        port_file = profile / "DevToolsActivePort"
        eventually(lambda: port_file.exists() and "\n" in port_file.read_text(), "the browser's port", timeout=30)
        port = port_file.read_text().splitlines()[0]
        pages = httpx2.get(f"http://127.0.0.1:{port}/json/list").json()
        page = next(page for page in pages if page["type"] == "page")
        self._socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        self._ids = itertools.count(1)
        self.requests: list[str] = []  # addresses that the page asked for
        self._call("Network.enable")
        self._call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Until the expression is true."""
        eventually(lambda: bool(self.run(script)), script, timeout=30)
