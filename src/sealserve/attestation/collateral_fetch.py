"""Collateral from Intel's PCS or from a PCCS: the REST API of version 4.

Rules this module keeps:

* Nobody is asked unless the caller names him; Intel's own service is the only
  one with a name here.
* The signed documents are taken out of the answers byte for byte: parsing and
  writing them again would break their signatures.
* What is returned is complete and about the platform asked for. Whether it is
  Intel's and new enough is for the store and the verifier to say.

Sources: Intel SGX and TDX Provisioning Certification Service API v4; Intel
SGX PCCS design guide (a PCCS adds ``rootcacrl``, which it gives in
hexadecimal).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_http import Answer, Endpoint, Unreachable, get
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.tdx.quote import parse_quote

__all__ = [
    "DEADLINE_SECONDS",
    "INTEL_PCS_URL",
    "Source",
    "Update",
    "fetch",
    "platform_of_quote",
    "read_crl",
    "read_signed",
]

INTEL_PCS_URL: Final = "https://api.trustedservices.intel.com"
_INTEL_ROOT_CRL_URL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
DEADLINE_SECONDS: Final = 60.0
"""For all requests together, with their repetitions."""

Update = Literal["standard", "early"]
"""Which TCB information: what is in force, or what will be after Intel's next change."""

_ATTEMPTS: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.5
_PASSING_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_DOCUMENT_LIMIT: Final = 1 << 20
_CRL_LIMIT: Final = 3 << 20  # twice as long in hexadecimal, and still below a collateral's limit
_API: Final = re.compile(r"/(sgx|tdx)/certification/v4$")


@dataclass(frozen=True, slots=True)
class Source:
    """Where to ask.

    Attributes:
        api: what stands before ``/sgx/certification/v4`` and
            ``/tdx/certification/v4``.
        root_crl: the whole address of the root CA's CRL; ``None`` for a PCCS,
            which has it among the rest.
    """

    api: Endpoint
    root_crl: Endpoint | None = None

    @classmethod
    def parse(cls, url: str, *, ca_file: Path | None = None) -> Source:
        """A source by the URL that Intel's quote provider library would be given.

        Args:
            url: with or without ``/sgx/certification/v4/``.
            ca_file: certificates (PEM) to believe instead of the system's.

        Raises:
            InputError: ``collateral.url_invalid``.
        """
        api = Endpoint.parse(_API.sub("", url.rstrip("/")), ca_file)
        intel = api.base.lower() == INTEL_PCS_URL
        return cls(api, Endpoint.parse(_INTEL_ROOT_CRL_URL, ca_file) if intel else None)


def platform_of_quote(quote: bytes) -> tuple[str, str]:
    """The platform model (FMSPC, lower case) and PCK CA that a quote names. Unverified.

    Raises:
        InputError, Refused: as :func:`~sealserve.tdx.quote.parse_quote`;
            ``quote.malformed`` if it carries no PCK certificate.
    """
    parsed = parse_quote(quote)
    try:
        library = dcap_qvl.parse_quote(parsed.raw)
        fmspc, ca = str(library.fmspc()).lower(), str(library.ca()).lower()
        if not re.fullmatch(r"[0-9a-f]{12}", fmspc) or ca not in ("platform", "processor"):
            raise ValueError("no platform")
    except ValueError:
        raise InputError(
            "quote.malformed",
            "the quote carries no PCK certificate that names its platform",
            hint="give the platform model with --fmspc",
        ) from None
    return fmspc, ca


def fetch(
    source: Source,
    fmspc: str,
    ca: str = "platform",
    *,
    update: Update = "standard",
    deadline_seconds: float = DEADLINE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Collateral:
    """Get the collateral of one platform model.

    Args:
        source: where to ask.
        fmspc: platform model, 12 hexadecimal digits.
        ca: ``"platform"`` or ``"processor"``: who issued the PCK certificate.
        update: ``"early"`` for the TCB information that will be in force later.
        deadline_seconds: for everything together.
        sleep: waits between attempts.

    Returns:
        The collateral, complete and readable. Unverified.

    Raises:
        Unavailable: ``collateral.unreachable``, ``collateral.http_status``,
            ``collateral.unknown_platform``, ``collateral.ca_file_unusable``.
        Refused: ``collateral.tls_refused``.
        InputError: ``collateral.answer_malformed``,
            ``collateral.answer_too_large``, ``collateral.wrong_platform``,
            ``collateral.malformed``.
    """
    ask = _Asker(source, time.monotonic() + deadline_seconds, sleep)
    parameter = f"&update={update}" if update != "standard" else ""
    tcb = ask(f"/tdx/certification/v4/tcb?fmspc={fmspc.upper()}{parameter}", _DOCUMENT_LIMIT)
    tcb_info, tcb_signature = read_signed(tcb.body, "tcbInfo", ask.where)
    tcb_chain = _chain(tcb, ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"), ask.where)
    parameter = parameter.replace("&", "?")
    qe = ask(f"/tdx/certification/v4/qe/identity{parameter}", _DOCUMENT_LIMIT)
    qe_identity, qe_signature = read_signed(qe.body, "enclaveIdentity", ask.where)
    qe_chain = _chain(qe, ("sgx-enclave-identity-issuer-chain",), ask.where)
    crl = ask(f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der", _CRL_LIMIT)
    pck_crl = read_crl(crl.body, ask.where)
    pck_crl_chain = _chain(crl, ("sgx-pck-crl-issuer-chain",), ask.where)
    root_crl = read_crl(ask.root_crl().body, ask.where)
    fields = {
        "pck_crl_issuer_chain": pck_crl_chain,
        "root_ca_crl": root_crl.hex(),
        "pck_crl": pck_crl.hex(),
        "tcb_info_issuer_chain": tcb_chain,
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb_signature,
        "qe_identity_issuer_chain": qe_chain,
        "qe_identity": qe_identity,
        "qe_identity_signature": qe_signature,
    }
    collateral = Collateral.from_json(json.dumps(fields).encode())
    if (collateral.fmspc, collateral.ca) != (fmspc.lower(), ca):
        raise InputError(
            "collateral.wrong_platform",
            f"asked about {fmspc.lower()} ({ca} CA), and the answer is about "
            f"{collateral.fmspc} ({collateral.ca} CA)",
            where=source.api.base,
        )
    return collateral


class _Asker:
    """Asks one source, again after what may pass, until the deadline."""

    def __init__(self, source: Source, deadline: float, sleep: Callable[[float], None]) -> None:
        self._source = source
        self._deadline = deadline
        self._sleep = sleep
        self.where = source.api.base

    def __call__(self, path: str, limit: int) -> Answer:
        return self._ask(self._source.api, path, limit)

    def root_crl(self) -> Answer:
        if self._source.root_crl is not None:
            return self._ask(self._source.root_crl, "", _CRL_LIMIT)
        return self._ask(self._source.api, "/sgx/certification/v4/rootcacrl", _CRL_LIMIT)

    def _ask(self, endpoint: Endpoint, path: str, limit: int) -> Answer:
        self.where = endpoint.base + path
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = get(endpoint, path, limit=limit, deadline=self._deadline)
                if answer.status == 200:
                    return answer
                failure: SealserveError = _status(answer.status, self.where)
                passing = answer.status in _PASSING_STATUSES
            except Unreachable as error:
                failure = Unavailable(
                    "collateral.unreachable",
                    f"no answer: {error}",
                    where=self.where,
                    hint="check the address and the network; what is held stays in force until "
                    "it ends, and `sealserve collateral import` needs no network",
                )
                passing = True
            if not passing or attempt == _ATTEMPTS:
                break
            if time.monotonic() + pause >= self._deadline:
                break
            self._sleep(pause)
            pause *= 2
        raise failure


def _status(status: int, where: str) -> Unavailable:
    if status == 404:
        return Unavailable(
            "collateral.unknown_platform",
            "the service has nothing about this (HTTP status 404)",
            where=where,
            hint="check the FMSPC; not every platform model has TDX",
        )
    return Unavailable(
        "collateral.http_status", f"the service answered with HTTP status {status}", where=where
    )


def read_signed(body: bytes, name: str, where: str) -> tuple[str, str]:
    """A document's exact text and its signature, from ``{NAME: {...}, "signature": "..."}``.

    Raises:
        InputError: ``collateral.answer_malformed``.
    """
    try:
        members = _members(body.decode())
        signature = json.loads(members["signature"])
        if not isinstance(signature, str):
            raise ValueError("the signature is no text")
        return members[name], signature
    except (ValueError, KeyError, RecursionError):
        raise _malformed(f"no JSON object with {name!r} and 'signature'", where) from None


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object, each value as it is written."""
    decoder = json.JSONDecoder()
    members: dict[str, str] = {}
    place = _after(text, 0, "{")
    while True:
        name, place = decoder.raw_decode(text, place)
        start = _after(text, place, ":")
        place = decoder.raw_decode(text, start)[1]
        if not isinstance(name, str) or name in members:
            raise ValueError("a name that is no text, or stands twice")
        members[name] = text[start:place]
        rest = text[place:].lstrip(_WHITE)
        if rest.startswith("}"):
            if rest[1:].strip(_WHITE):
                raise ValueError("something follows the object")
            return members
        place = _after(text, place, ",")


_WHITE: Final = " \t\r\n"


def _after(text: str, place: int, mark: str) -> int:
    """The place of the next token behind a mark that must stand here."""
    while text[place : place + 1] in tuple(_WHITE):
        place += 1
    if text[place : place + 1] != mark:
        raise ValueError(f"no {mark!r}")
    place += 1
    while text[place : place + 1] in tuple(_WHITE):
        place += 1
    return place


def _chain(answer: Answer, names: tuple[str, ...], where: str) -> str:
    value = next((answer.headers[name] for name in names if name in answer.headers), None)
    if value is None:
        raise _malformed(f"no header {names[0]}", where)
    chain = unquote(value)
    if "-----BEGIN CERTIFICATE-----" not in chain:
        raise _malformed(f"no certificates in the header {names[0]}", where)
    return chain


def read_crl(body: bytes, where: str) -> bytes:
    """A CRL in DER, however it is written: DER, hexadecimal or PEM.

    Raises:
        InputError: ``collateral.answer_malformed``.
    """
    for read in (_as_der, _as_hexadecimal, _as_pem):
        try:
            return read(body).public_bytes(Encoding.DER)
        except UNREADABLE:
            continue
    raise _malformed("no CRL", where)


def _as_der(body: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(body)


def _as_hexadecimal(body: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(bytes.fromhex(body.decode("ascii")))


def _as_pem(body: bytes) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(body)


def _malformed(what: str, where: str) -> InputError:
    return InputError(
        "collateral.answer_malformed",
        f"the answer is not what the API of version 4 gives: {what}",
        where=where,
        hint="check that this is the address of a PCS or PCCS with TDX support",
    )
