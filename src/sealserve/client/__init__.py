"""The client: verify a server, then talk to it.

    >>> import sealserve.client as sc
    >>> trust = sc.Trust(sc.Verifier(sc.INTEL), collateral, policy)
    >>> with sc.connect_attested("models.example.com:8500", trust) as server:
    ...     print(server.report)
    ...     outputs = server.predict("efficientnet-lite0", {"input": image})

This package needs grpcio, protobuf, numpy, cryptography and dcap-qvl, nothing
more, so that it can be installed where a model's users are.
"""

from __future__ import annotations

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.ratls import TrustReport
from sealserve.attestation.verifier import INTEL, Anchor, Verifier
from sealserve.client.bench import BenchResult, run_bench
from sealserve.client.channel import Trust, fetch_certificate
from sealserve.client.connection import Connection, TensorSpec, connect_attested, connect_classic

__all__ = [
    "INTEL",
    "Anchor",
    "BenchResult",
    "Collateral",
    "Connection",
    "Policy",
    "TensorSpec",
    "Trust",
    "TrustReport",
    "Verifier",
    "connect_attested",
    "connect_classic",
    "fetch_certificate",
    "run_bench",
]
