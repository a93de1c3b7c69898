"""From evidence to fact: is this quote genuine, by whom, and with what TCB status?

Rules this module keeps:

* ``verify`` answers "genuine", never "trusted": measurements, TCB status,
  platform flags, nonce and freshness belong to
  :mod:`~sealserve.attestation.appraisal` and
  :mod:`~sealserve.attestation.binding`.
* There are two verifiers, one of Intel's algorithm in Rust
  (:mod:`~sealserve.attestation.library`, the primary) and one of our own
  (:mod:`~sealserve.attestation.reference`). They share the door
  (:mod:`~sealserve.attestation.admission`), which can only refuse.
* Asked for both, each must accept and agree on every fact.
* One verifier has one anchor. A simulation anchor marks everything it verifies.
* One call at a time. Most of it holds the interpreter lock, so threads side by
  side gain nothing; fighting for that lock they keep everything else in the
  process waiting (measured by ``bench/verify.py``).
"""

from __future__ import annotations

import threading
from datetime import datetime

from sealserve.attestation.admission import Evidence, admit
from sealserve.attestation.anchor import INTEL, Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.errors import Refused, SealserveError

__all__ = ["INTEL", "Anchor", "VerifiedTd", "Verifier"]


class Verifier:
    """Verifies quotes under one anchor. Holds no state between calls; threads take turns.

    A call takes about a millisecond (with both verifiers about three) and holds
    the interpreter lock for most of it: call it from a worker, not from an event
    loop.

    Args:
        anchor: the root to believe.
        require_both: ask the reference verifier too.
    """

    def __init__(self, anchor: Anchor, *, require_both: bool = False) -> None:
        self.anchor = anchor
        self._primary = LibraryVerifier(anchor)
        self._second = ReferenceVerifier(anchor) if require_both else None
        self._turn = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Who judges here, for audit lines: ``"dcap-qvl"``, and ``"reference"`` if asked."""
        return ("dcap-qvl",) if self._second is None else ("dcap-qvl", "reference")

    def verify(self, quote: bytes, collateral: Collateral, now: datetime) -> VerifiedTd:
        """Verify that a quote is genuine.

        Args:
            quote: the quote as it arrived.
            collateral: Intel's statements about its platform.
            now: the time to verify for, with a time zone.

        Returns:
            The facts. They say nothing yet about trust.

        Raises:
            InputError: as :func:`~sealserve.tdx.quote.parse_quote`, and
                ``*.malformed`` for what cannot be decoded.
            Refused: ``quote.*``, ``chain.*``, ``crl.*``, ``tcb.*``, ``qe.*``,
                ``td.*`` or ``collateral.*``: not genuine, or not provably so;
                ``quote.verifiers_disagree`` if only the primary verifier
                accepts, or the two differ in a fact. What the primary refuses,
                the second is not asked.
        """
        with self._turn:
            evidence = admit(quote, collateral, now)
            td = self._primary.judge(evidence)
            if self._second is not None:
                _require_agreement(td, self._second, evidence)
            return td


def _require_agreement(td: VerifiedTd, second: ReferenceVerifier, evidence: Evidence) -> None:
    try:
        differing = differences(td, second.judge(evidence))
    except SealserveError as error:
        reason = f"the second refuses: {error.message} [{error.code}]"
    else:
        if not differing:
            return
        reason = f"they differ in {', '.join(differing)}"
    raise Refused(
        "quote.verifiers_disagree",
        f"two verifiers judge this quote differently: {reason}",
        hint="keep quote and collateral and report this: it must not happen",
    )
