"""Headless Chromium, driven over a pipe by its DevTools protocol: no driver, no port, no network.

Source: the Chrome DevTools Protocol (`--remote-debugging-pipe`: JSON messages
ended by a zero byte on descriptors 3 and 4).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe", "--disable-dev-shm-usage", "--mute-audio",
)  # fmt: skip


class Tab:
    """One open page."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to = os.fdopen(to_browser, "wb", buffering=0)
        self._from = os.fdopen(from_browser, "rb", buffering=0)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """A value that a script of the debugger's, not of the page, finds."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """What the browser put into its console or its list of issues."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                 "Audits.issueAdded", "Page.javascriptDialogOpening")  # fmt: skip
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in names]

    def requested(self) -> list[str]:
        """The URLs that were asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """The whole page as a PNG file."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Leave the pipe; the browser ends with it."""
        self._to.close()
        self._from.close()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = self._from.read(1 << 20)
            assert more, "the browser has ended"
            self._buffer += more
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser of one's own; gone when the block ends."""
    assert CHROMIUM is not None
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()

    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    # The protocol's pipe has fixed numbers, 3 and 4, in the browser.
    wrapped = [
        "bash",
        "-c",
        f'exec 3<&{read_commands} 4>&{write_answers}; exec "$@"',
        "-",
        *command,
    ]
    process = subprocess.Popen(
        wrapped,
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"HOME": str(profile), "PATH": os.environ["PATH"]},
        start_new_session=True,
    )
    os.close(read_commands)
    os.close(write_answers)
    tab = Tab(write_commands, read_answers)
    try:
        yield tab
    finally:
        tab.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def plain_proxy(path: Path) -> Iterator[str]:
    """A TCP address on this machine that leads to a UNIX socket; browsers open no such socket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve() -> None:
        with listener:
            while True:
                try:
                    outer, _ = listener.accept()
                except OSError:
                    return
                inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                inner.connect(str(path))
                pumps = [
                    threading.Thread(target=pump, args=pair, daemon=True)
                    for pair in ((outer, inner), (inner, outer))
                ]
                threading.Thread(target=close_after, args=(pumps, outer, inner)).start()

    def close_after(pumps: list[threading.Thread], *sockets: socket.socket) -> None:
        for each in pumps:
            each.start()
        for each in pumps:
            each.join()
        for each in sockets:
            each.close()

    accepting = threading.Thread(target=serve, daemon=True)
    accepting.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    accepting.join()
