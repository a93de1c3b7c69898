"""What the hardware and the kernel give a TDX guest: quotes, registers, the runtime event log.

Nothing in this package decides whether something is trusted; that is the job
of :mod:`sealserve.attestation`.
"""
