"""The second verifier: Intel's algorithm in Python, on nothing but ``cryptography``.

Rules this package keeps:

* It is written from the specifications and shares no code with the primary
  verifier beyond the door that both stand behind.
* Where the two could differ it is the stricter one, and says so in a comment:
  a false refusal is found on the first day, a false acceptance never.
* Every refusal has the code that the primary verifier gives for the same cause.

Sources: Intel SGX PCK Certificate and CRL Profile Specification; PCS API
version 4; Intel TDX DCAP Quoting Library API; Intel TDX Module ABI
Specification 348551.
"""

from sealserve.attestation.reference.verifier import ReferenceVerifier

__all__ = ["ReferenceVerifier"]
