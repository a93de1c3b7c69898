"""The key broker: who may have a secret, decided by attestation and written down.

Rules this package keeps:

* A secret leaves only sealed to the HPKE key that the quote itself vouches for,
  and only after the audit line that says so is on the disk.
* On the broker's own disk every secret is wrapped under the key-encryption key.
* A peer hears codes, never details; the details stand in the audit log.
* `broker.identity`, `broker.deposit` and `broker.client` are for owners and
  guests: they import no database.
"""
