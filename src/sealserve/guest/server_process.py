"""The model server as a child process that gets its TLS identity through a memfd.

The key of that identity is born in this TD and never has a name in any file
system. The server re-reads the memfd when it changes, which is how a renewed
identity reaches it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from sealserve.attestation.ratls import TlsIdentity
from sealserve.errors import Unavailable

__all__ = ["ServerProcess"]

_START_SECONDS = 300.0
_STOP_SECONDS = 60.0
_READY_LINE_BYTES = 4096


class ServerProcess:
    """A running ``sealserve serve``; use it as a context manager.

    Attributes:
        ports: what the server listens on: ``{"grpc": 8500, "rest": 8501}``.
    """

    def __init__(
        self,
        volume: Path,
        identity: TlsIdentity,
        flags: tuple[str, ...],
        *,
        signers: bytes | None = None,
    ) -> None:
        """Start the server on a mounted volume and wait until it serves.

        Args:
            volume: where the sealed volume is mounted.
            identity: the attested TLS identity.
            flags: further TensorFlow Serving flags (``--port=8500``).
            signers: whose signatures models must carry, PEM; none of ``flags`` overrides it.

        Raises:
            Unavailable: ``guest.server_failed``.
        """
        self._identity_fd = os.memfd_create("tls-identity")
        self.renew(identity)
        signers_fd = os.memfd_create("signers")
        os.write(signers_fd, signers or b"")
        ready_read, ready_write = os.pipe()
        command = [
            # The server must not outlive the guest that holds its volume open.
            "setpriv",
            "--pdeathsig=TERM",
            sys.executable,
            # A module in the current directory must not be taken for ours.
            "-P",
            "-m",
            "sealserve",
            "serve",
            f"--model_config_file={volume / 'models.config'}",
            f"--ssl_config_file={volume / 'tls' / 'ssl.cfg'}",
            f"--tls_identity_file=/proc/self/fd/{self._identity_fd}",
            f"--ready_fd={ready_write}",
            *flags,
            # Where a flag is repeated the last one counts.
            *([f"--model_provenance=/proc/self/fd/{signers_fd}"] if signers else []),
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(self._identity_fd, signers_fd, ready_write),
                # A signal to the terminal's group is ours to pass on, in order.
                start_new_session=True,
            )
        finally:
            os.close(ready_write)
            os.close(signers_fd)
        try:
            self.ports = self._wait_until_ready(ready_read)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(ready_read)

    def renew(self, identity: TlsIdentity) -> None:
        """Give the server a new identity; connections that stand keep the old one."""
        pem = identity.key_pem + identity.certificate_pem
        os.pwrite(self._identity_fd, pem, 0)
        os.ftruncate(self._identity_fd, len(pem))

    def exit_status(self) -> int | None:
        """The server's exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let the server finish its requests, then end it; safe to call twice."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._identity_fd >= 0:
            os.ftruncate(self._identity_fd, 0)
            os.close(self._identity_fd)
            self._identity_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait_until_ready(self, ready: int) -> dict[str, int]:
        deadline = time.monotonic() + _START_SECONDS
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(ready, selectors.EVENT_READ)
            while not line.endswith(b"\n") and len(line) < _READY_LINE_BYTES:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    break
                chunk = os.read(ready, _READY_LINE_BYTES)
                if not chunk:
                    break  # the server closed its end: it gave up
                line += chunk
        if not line.endswith(b"\n"):
            raise Unavailable(
                "guest.server_failed",
                "the model server did not start",
                hint="its own log, just above, says why",
            )
        ports: dict[str, int] = json.loads(line)
        return ports
