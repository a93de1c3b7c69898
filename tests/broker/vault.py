"""A double of the transit engine, by its documented HTTP API.

``POST /v1/MOUNT/encrypt|decrypt/KEY`` with base64 and `associated_data`, the errors
as both products give them: 400 for what does not open, 403 for a wrong token, 404 for
no engine there, 503 while sealed. `mode` makes it misbehave.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.TEST-TOKEN"


class Vault:
    """One running double."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.mode = "well"
        self.token = TOKEN
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self._keys = {"sealserve": AESGCM(os.urandom(32)), "second": AESGCM(os.urandom(32))}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        request = json.loads(body)
        self.requests.append((path, headers, request))
        match self.mode:
            case "sealed":
                return _errors(503, "Vault is sealed")
            case "garbage":
                return 200, b"<html>welcome</html>"
            case "other":
                return 200, b'{"data": {"ciphertext": "AAAA", "plaintext": "AAAA"}}'
            case "list":
                return 200, b'["data"]'
            case "deep":
                return 200, b"[" * 30_000
            case "huge":
                return 200, b'{"data": {"ciphertext": "' + b"A" * 100_000 + b'"}}'
            case "broken":
                return _errors(500, "internal\x1b[31m error")
            case "busy":
                return _errors(429, "request path kms: rate limit quota exceeded")
            case "redirect":
                return 307, b""
        if headers.get("X-Vault-Token") != self.token:
            return _errors(403, "permission denied")
        parts = path.split("/")
        if parts[:3] != ["", "v1", "transit"]:
            return _errors(404, "no handler for route")
        if parts[4] not in self._keys:
            return _errors(400, "encryption key not found")
        return self._transit(parts[3], self._keys[parts[4]], request)

    def _transit(self, act: str, key: AESGCM, request: dict[str, str]) -> tuple[int, bytes]:
        bound = base64.b64decode(request.get("associated_data", ""), validate=True)
        if act == "encrypt":
            nonce = os.urandom(12)
            plaintext = base64.b64decode(request["plaintext"], validate=True)
            sealed = nonce + key.encrypt(nonce, plaintext, bound)
            return _data(ciphertext="vault:v1:" + base64.b64encode(sealed).decode())
        sealed = base64.b64decode(request["ciphertext"].removeprefix("vault:v1:"))
        try:
            plaintext = key.decrypt(sealed[:12], sealed[12:], bound)
        except InvalidTag:
            return _errors(400, "cipher: message authentication failed")
        return _data(plaintext=base64.b64encode(plaintext).decode())


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Vault]:
    vault = Vault(tls)
    try:
        yield vault
    finally:
        vault.close()


def _handler(vault: Vault) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if vault.mode == "slow":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
                for _ in range(60):  # a byte now and then, for longer than anybody waits
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                    time.sleep(0.05)
                return
            if vault.mode == "hangs up":
                self.close_connection = True
                return
            status, answer = vault.answer(self.path, dict(self.headers), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            if status == 307:
                self.send_header("Location", "http://192.0.2.1/")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _data(**fields: str) -> tuple[int, bytes]:
    return 200, json.dumps({"request_id": "0", "data": fields, "warnings": None}).encode()


def _errors(status: int, *errors: str) -> tuple[int, bytes]:
    return status, json.dumps({"errors": list(errors)}).encode()
