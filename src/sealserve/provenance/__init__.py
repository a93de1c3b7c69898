"""Who made a model: OpenSSF Model Signing signatures, made before sealing, checked before loading.

Rules this package keeps:

* A signature is a Sigstore bundle in the model's own directory (``model.sig``): the
  `model-signing` library makes and checks it. What is stricter here stands in
  `sealserve.provenance.bundle` and `sealserve.provenance.verify`.
* Keys and certificates only, and no network: keyless signatures would need Sigstore's servers.
* What is asked for and cannot be checked is refused.
"""

from __future__ import annotations

from sealserve.provenance.library import SIGNATURE_NAME, require_library
from sealserve.provenance.sign import Signing, make_signing_key, sign_model
from sealserve.provenance.trust import Trust, load_trust
from sealserve.provenance.verify import Verified, verify_model

__all__ = [
    "SIGNATURE_NAME",
    "Signing",
    "Trust",
    "Verified",
    "load_trust",
    "make_signing_key",
    "require_library",
    "sign_model",
    "verify_model",
]
