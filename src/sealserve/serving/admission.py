"""Which versions may be loaded: those that a trusted signer signed, where that is asked for.

Rules this module keeps:

* Who is trusted is read once, at start; a missing library is told then, not at the first load.
* Each version is checked just before it is loaded, every file of it. In a mounted sealed
  volume no file can change in between, nor later. In an ordinary directory whoever may
  write there can: the check then finds damage and mistakes, not a hostile owner of the
  directory.
"""

from __future__ import annotations

import time
from pathlib import Path

from sealserve.logs import Log
from sealserve.provenance import load_trust, require_library, verify_model

__all__ = ["Admission"]


class Admission:
    """Admits every version, or those that are signed.

    Args:
        signers: PEM file with public keys and root certificates; None: no signature is asked for.
        log: where signers are told.

    Raises:
        InputError: ``provenance.trust_malformed``, ``provenance.trust_private``.
        Unavailable: ``file.unreadable``, ``provenance.extra_missing``.
    """

    def __init__(self, signers: Path | None, log: Log) -> None:
        self._trust = load_trust(signers) if signers else None
        self._log = log
        if self._trust is not None:
            require_library()
            log.info("provenance_required", signers=self._trust.names)

    def decide(self, name: str, version: int, path: Path) -> None:
        """Let a version be loaded, or raise.

        Raises:
            InputError, Refused, Unavailable: as `sealserve.provenance.verify_model`.
        """
        if self._trust is None:
            return
        begun = time.perf_counter()
        verified = verify_model(path, self._trust)
        self._log.info(
            "model_signed",
            model=name,
            version=version,
            signer=verified.signer,
            files=verified.files,
            seconds=round(time.perf_counter() - begun, 3),
        )
