"""The root certificates that a verifier may believe: Intel's, or a simulation's.

Rules this module keeps:

* Intel's root stands here and cannot be configured.
* Any other root must say SIMULATION in its subject, and marks everything that
  is verified under it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, Refused
from sealserve.files import read_limited

__all__ = ["INTEL", "INTEL_ROOT_DER", "SIMULATION", "Anchor"]

SIMULATION: Final = "SIMULATION"
"""The word that stands in every name below an own anchor."""

_MAX_ANCHOR_BYTES = 16 * 1024

INTEL_ROOT_DER: Final = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UE"
    "AwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQH"
    "DAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoX"
    "DTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUlu"
    "dGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNV"
    "BAYTAlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRF"
    "hWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAW"
    "gBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2NlcnRpZmlj"
    "YXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4E"
    "FgQUImUM1lqdNInzg7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8C"
    "AQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA"
    "4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)
"""Intel's SGX root CA (valid to the end of 2049), SHA-256
44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3, as published at
https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer
"""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The root certificate a verifier believes.

    Attributes:
        root_der: a root in DER; ``None`` is Intel's SGX root CA.
        simulated: whether everything below this root is a simulation.
    """

    root_der: bytes | None
    simulated: bool

    @classmethod
    def simulation(cls, root_der: bytes) -> Anchor:
        """The anchor of a simulated platform.

        Args:
            root_der: its root certificate in DER, at most 16 KiB.

        Raises:
            InputError: ``chain.anchor_malformed``.
            Refused: ``chain.anchor_not_simulation`` for a root whose subject
                does not say SIMULATION.
        """
        try:
            if len(root_der) > _MAX_ANCHOR_BYTES:
                raise ValueError("too large")
            subject = x509.load_der_x509_certificate(root_der).subject.rfc4514_string()
        except UNREADABLE:
            raise InputError(
                "chain.anchor_malformed",
                "the anchor is not an X.509 certificate in DER",
                hint="`sealserve simulate platform DIR` writes one as DIR/anchor.der",
            ) from None
        if SIMULATION not in subject:
            raise Refused(
                "chain.anchor_not_simulation",
                f"the anchor {subject!r} does not say SIMULATION in its subject",
                hint="own anchors exist for simulation only; production has Intel's root alone",
            )
        return cls(root_der, simulated=True)

    @classmethod
    def load(cls, path: Path | str | None) -> Anchor:
        """Intel's anchor for ``None`` or a file with Intel's root, else a simulation's in DER.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError, Refused: ``file.too_large``, and as :meth:`simulation`.
        """
        if path is None:
            return INTEL
        root_der = read_limited(path, _MAX_ANCHOR_BYTES)
        return INTEL if root_der == INTEL_ROOT_DER else cls.simulation(root_der)

    @property
    def certificate(self) -> x509.Certificate:
        """The root certificate."""
        return x509.load_der_x509_certificate(
            INTEL_ROOT_DER if self.root_der is None else self.root_der
        )

    @property
    def name(self) -> str:
        """For log lines: ``"Intel"``, or ``"SIMULATION"`` with the root's fingerprint."""
        if self.root_der is None:
            return "Intel"
        return f"{SIMULATION} {hashlib.sha256(self.root_der).hexdigest()[:16]}"


INTEL = Anchor(None, simulated=False)
"""Production: Intel's SGX root CA."""
