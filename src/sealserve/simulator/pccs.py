"""A SIMULATED PCCS: the collateral of a simulated platform by the REST API of version 4.

What it answers is byte for byte what Intel's PCCS would, of another root: the
documents as they were signed, issuer chains percent-encoded in headers, the
PCK CRL in DER or PEM, the root CA's CRL in hexadecimal. Plain HTTP: it is for
this machine.

Source: Intel SGX PCCS design guide; Intel SGX and TDX Provisioning
Certification Service API v4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.address import Address
from sealserve.attestation.collateral import Collateral
from sealserve.errors import SealserveError, Unavailable

__all__ = ["Pccs", "PccsAnswer", "answer"]

_IDLE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class PccsAnswer:
    """What a PCCS says to one request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(collateral: Collateral, target: str) -> PccsAnswer:
    """The answer of a PCCS that holds one platform's collateral.

    Args:
        collateral: of the one platform it knows.
        target: path and query of a GET.
    """
    try:
        asked = urlsplit(target)
    except ValueError:
        return PccsAnswer(400)
    query = {name: values[-1] for name, values in parse_qs(asked.query).items()}
    parts = collateral.parts
    match asked.path:
        case "/tdx/certification/v4/tcb":
            fmspc = query.get("fmspc", "")
            if len(fmspc) != 12 or query.get("update", "standard") not in ("standard", "early"):
                return PccsAnswer(400)
            if fmspc.lower() != collateral.fmspc:
                return PccsAnswer(404)
            return _document(parts, "tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain")
        case "/tdx/certification/v4/qe/identity":
            chain = "SGX-Enclave-Identity-Issuer-Chain"
            return _document(parts, "enclaveIdentity", "qe_identity", chain)
        case "/sgx/certification/v4/pckcrl":
            ca, encoding = query.get("ca"), query.get("encoding", "pem")
            if ca not in ("platform", "processor") or encoding not in ("der", "pem"):
                return PccsAnswer(400)
            if ca != collateral.ca:
                return PccsAnswer(404)
            headers = {"SGX-PCK-CRL-Issuer-Chain": quote(parts["pck_crl_issuer_chain"])}
            der = bytes.fromhex(parts["pck_crl"])
            if encoding == "pem":
                der = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
            return PccsAnswer(200, der, {"Content-Type": "application/pkix-crl", **headers})
        case "/sgx/certification/v4/rootcacrl":
            return PccsAnswer(200, parts["root_ca_crl"].encode())
        case _:
            return PccsAnswer(404)


def _document(parts: Mapping[str, str], name: str, part: str, chain_header: str) -> PccsAnswer:
    # The signed text goes in as it is: any other spelling breaks the signature.
    body = f'{{"{name}":{parts[part]},"signature":"{parts[f"{part}_signature"]}"}}'
    return PccsAnswer(
        200,
        body.encode(),
        {"Content-Type": "application/json", chain_header: quote(parts[f"{part}_issuer_chain"])},
    )


class Pccs:
    """A server of :func:`answer`, in a thread of its own; a context manager.

    Args:
        collateral: gives the collateral as it is at a request.
        listen: where; port 0 for any.

    Raises:
        Unavailable: ``simulator.pccs_address``.
    """

    def __init__(self, collateral: Callable[[], Collateral], listen: Address) -> None:
        class Handler(_Handler):
            source = staticmethod(collateral)

        try:
            self._server = ThreadingHTTPServer((listen.host, listen.port), Handler)
        except OSError as error:
            raise Unavailable(
                "simulator.pccs_address",
                f"cannot listen: {error.strerror}",
                where=str(listen),
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self.address = Address(listen.host, self._server.server_address[1])

    @property
    def url(self) -> str:
        """What to give as the PCCS's address."""
        return f"http://{self.address}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    source: Callable[[], Collateral]
    server_version = "SIMULATION"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        try:
            found = answer(type(self).source(), self.path)
        except SealserveError:
            found = PccsAnswer(500)
        self.send_response(found.status)
        for name, value in found.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        self.wfile.write(found.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Nothing: who asks what is the test's business."""
        del format, args
