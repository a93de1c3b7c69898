"""What we decide about evidence: binding, verification, policy, appraisal, sealing, RA-TLS.

:mod:`verifier` says what is genuine, :mod:`appraisal` what is trusted under a
:class:`~sealserve.attestation.policy.Policy`, :mod:`binding` what a quote
speaks for. Only the three together are a reason to hand something over.
"""
