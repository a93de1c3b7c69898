"""The targets: what is fed, with what to begin, and what must hold of what is accepted."""

from __future__ import annotations

import base64
import functools
import json
import struct
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fuzz import (
    administration,
    keys,
    onnx_reader,
    provenance,
    serving_codecs,
    serving_files,
    serving_requests,
    volumes,
)
from fuzz.target import REFUSALS, Target, feed, promised
from fuzz.world import patched, world
from sealserve.attestation import cbor, policy_file
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_check import check_signatures
from sealserve.attestation.collateral_fetch import read_crl, read_signed
from sealserve.attestation.collateral_store import decode_bundle, encode_bundle
from sealserve.attestation.policy import MaskedValue, RequiredEvent
from sealserve.attestation.policy_diff import diff
from sealserve.attestation.ratls import check_certificate
from sealserve.attestation.reference.documents import read_qe_identity, read_tcb_info
from sealserve.attestation.reference.pck import SGX_EXTENSION, read_platform
from sealserve.attestation.verified import differences
from sealserve.broker import config_file as broker_config
from sealserve.simulator.der import PckExtension
from sealserve.simulator.pccs import answer
from sealserve.simulator.td import report_of
from sealserve.tdx import ccel, dstack, hcl, qgs, tpm
from sealserve.tdx.eventlog import RuntimeEvent, decode_log, encode_log
from sealserve.tdx.evidence import AzureEvidence, PassingTrouble, decode_azure
from sealserve.tdx.quote import MAX_QUOTE_BYTES, parse_quote, quote_of_file
from sealserve.tdx.signature_data import split_signature_data

__all__ = ["TARGETS", "Target", "feed"]

# --- quotes --------------------------------------------------------------------


def _quote(data: bytes) -> None:
    quote = parse_quote(data)
    promised(data.startswith(quote.signed_part))
    promised(len(quote.raw) <= MAX_QUOTE_BYTES)
    promised(not any(data[len(quote.raw) :]))
    split_signature_data(quote)


def _verifier(data: bytes) -> None:
    """Both verifiers say the same of a quote with some bytes replaced, and never something new."""
    here = world()
    original = here.quotes[data[0] % len(here.quotes)] if data else here.quotes[0]
    _judge(patched(original, data[1:]), here.collateral, original)


def _verifier_collateral(data: bytes) -> None:
    """The same with some bytes of the collateral replaced."""
    here = world()
    names = sorted(here.collateral.parts)
    name = names[data[0] % len(names)] if data else names[0]
    part = patched(here.collateral.parts[name].encode(), data[1:]).decode("latin-1")
    changed = json.dumps({**here.collateral.parts, name: part})
    _judge(here.quotes[0], Collateral.from_json(changed.encode()), here.quotes[0])


def _judge(quote: bytes, collateral: Collateral, original: bytes) -> None:
    here = world()
    facts = []
    refusals = []
    for verifier in (here.primary, here.second):
        try:
            facts.append(verifier.verify(quote, collateral, here.now))
        except REFUSALS as error:
            refusals.append(error)
    if facts and refusals:
        raise AssertionError(f"one verifier accepts, the other does not: {refusals[0]}")
    if refusals:
        raise refusals[0]
    promised(not differences(facts[0], facts[1]))
    promised(facts[0].signed_part_sha256 == parse_quote(original).signed_digest)


@functools.cache
def _certificate_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pck_extension(data: bytes) -> None:
    name = x509.Name([])
    now = world().now
    certificate = (
        x509.CertificateBuilder(name, name, _certificate_key().public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now)
        .add_extension(x509.UnrecognizedExtension(SGX_EXTENSION, data), critical=False)
        .sign(_certificate_key(), hashes.SHA256())
    )
    platform = read_platform(certificate)
    promised(len(platform.components) == 16)
    promised(len(platform.fmspc) == 6)


def _pck_seeds() -> list[bytes]:
    full = PckExtension(
        ppid=bytes(16), cpu_svn=bytes(range(16)), pce_svn=300, fmspc=bytes(6), piid=bytes(16)
    )
    return [full.to_der(), replace(full, pce_svn=1, smt=False).to_der()]


def _quote_file(data: bytes) -> None:
    parse_quote(quote_of_file(data, "here"))


def _tls_certificate(data: bytes) -> None:
    """An attested certificate with some bytes replaced: nothing that is believed changes."""
    here = world()
    found = check_certificate(
        patched(here.certificate, data), here.primary, here.collateral, here.policy, here.now
    )
    good = _good_certificate()
    promised((found.key_sha384, found.td, found.events) == good)


@functools.cache
def _good_certificate() -> tuple[object, ...]:
    here = world()
    good = check_certificate(here.certificate, here.primary, here.collateral, here.policy, here.now)
    return good.key_sha384, good.td, good.events


# --- collateral ----------------------------------------------------------------


def _collateral(data: bytes) -> None:
    found = Collateral.from_json(data)
    promised(Collateral.from_json(found.to_json()) == found)
    promised(found.begins.tzinfo is not None)
    check_signatures(found, world().anchor)
    promised(found.parts["tcb_info"] == world().collateral.parts["tcb_info"])


def _tcb_info(data: bytes) -> None:
    found = read_tcb_info(data.decode("utf-8", "replace"))
    promised(all(len(level.sgx) == len(level.tdx) == 16 for level in found.levels))


def _qe_identity(data: bytes) -> None:
    promised(len(read_qe_identity(data.decode("utf-8", "replace")).mrsigner) == 32)


def _bundle(data: bytes) -> None:
    found = decode_bundle(data)
    promised(decode_bundle(encode_bundle(found)) == found)


def _pccs_answer(data: bytes) -> None:
    text, signature = read_signed(data, "tcbInfo", "here")
    members = json.loads(data)
    promised(json.loads(text) == members["tcbInfo"])
    promised(signature == members["signature"])


def _crl(data: bytes) -> None:
    x509.load_der_x509_crl(read_crl(data, "here"))


def _pccs_seeds() -> list[bytes]:
    path = "/tdx/certification/v4/tcb?fmspc="
    return [
        b'{"tcbInfo":{},"signature":""}',
        answer(world().collateral, path + world().collateral.fmspc).body,
    ]


def _crl_seeds() -> list[bytes]:
    path = "/sgx/certification/v4/"
    asked = ("pckcrl?ca=platform&encoding=der", "pckcrl?ca=platform", "rootcacrl")
    return [answer(world().collateral, path + each).body for each in asked]


# --- policies, CBOR, logs, the guest's own sources -----------------------------


def _policy(data: bytes) -> None:
    found = policy_file.parse(data)
    promised(policy_file.parse(policy_file.dump(found).encode()) == found)
    promised(not diff(found, found))


def _broker_config(data: bytes) -> None:
    found = broker_config.parse(data)
    promised(broker_config.parse(broker_config.render(found)) == found)
    promised(found.store.location.password is None)
    for provider, settings in _KEKS:
        chosen = broker_config.with_kek(found, provider, settings, where="fuzz")
        revised = broker_config.revise(data, chosen)
        promised(revised is None or broker_config.parse(revised) == chosen)


_KEKS = (
    ("file", ["file=kek-2"]),
    ("vault", ["vault_url=https://vault", "vault_key=k", "vault_token_file=t"]),
)


def _broker_config_seeds() -> list[bytes]:
    urls = (
        "sqlite:///broker.db",
        "postgresql://user@db.example.com:5432/broker?sslmode=verify-full",
        "postgresql:///broker?host=/run/postgresql",
    )
    chosen = [broker_config.with_store(url, where="seed") for url in urls]
    return [
        *(f"store: {{url: '{url}'}}".encode() for url in urls),
        *map(broker_config.render, chosen),
        b"kek:  # the key\n  provider: file  # for now\n  file: 'k'\nadmin:\n  two_person: []\n",
    ]


def _policy_seeds() -> list[bytes]:
    small = policy_file.from_report(report_of(), label="x", events=("sealed",))
    large = replace(
        small,
        mrseam=("00" * 48,),
        xfam=MaskedValue(mask="ff" * 8, value="e702060000000000"),
        platform_ids=("00" * 16,),
        rejected_advisories=("INTEL-SA-00001",),
        required_events=(RequiredEvent(name="model", payload="aa"), RequiredEvent(name="sealed")),
    )
    return [policy_file.dump(each).encode() for each in (small, large)]


def _cbor(data: bytes) -> None:
    promised(cbor.encode(cbor.decode(data)) == data)


def _runtime_log(data: bytes) -> None:
    promised(encode_log(decode_log(data)) == data)


def _boot_log(data: bytes) -> None:
    registers = ccel.replay(ccel.parse_log(data))
    promised([len(value) for value in registers] == [48] * 4)


def _boot_log_seeds() -> list[bytes]:
    """A log as firmware writes it: the SHA-1 head, then events of one SHA-384 digest each."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    spec += struct.pack("<IHHB", 1, 0xC, 48, 0)
    head = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    events = b"".join(
        struct.pack("<IIIH48sI", index, 4, 1, 0xC, bytes([index]) * 48, 4) + bytes(4)
        for index in (1, 2, 3, 4)
    )
    return [head + events + b"\xff" * 16, head + events + bytes(64), head]


def _boot_table_seeds() -> list[bytes]:
    table = b"CCEL" + struct.pack("<I", 56) + bytes(28) + struct.pack("<BBHQQ", 2, 0, 0, 1, 1)
    checksum = -sum(table) % 256
    return [table[:9] + bytes([checksum]) + table[10:]]


def _boot_table(data: bytes) -> None:
    ccel.parse_table(data)


def _dstack_log(data: bytes) -> None:
    registers = ccel.replay(dstack.parse_log(data))
    promised([len(value) for value in registers] == [48] * 4)


def _dstack_seeds() -> list[bytes]:
    boot = {"imr": 0, "event_type": 4, "digest": "07" * 48, "event": "", "event_payload": "00"}
    runtime = {**boot, "imr": 3, "event_type": 0x08000001, "digest": "", "event": "app-id"}
    log = [boot, runtime]
    reports = [{"event_log": log}, {"quote": "", "event_log": json.dumps(log)}]
    return [json.dumps(each).encode() for each in reports]


def _azure_evidence(data: bytes) -> None:
    promised(decode_azure(data).encode() == data)


def _tpm_response(data: bytes) -> None:
    """The same bytes in answer to every command."""
    index = tpm.NvIndex(lambda _: data, 0x01400001)
    try:
        size = index.size()
        promised(size is None or 0 <= size < 1 << 16)
        promised(len(index.read(2)) == 2)
    except PassingTrouble:
        return


def _tpm_seeds() -> list[bytes]:
    public = struct.pack(">IHIHH", 0x01400001, 0x0B, 0x20002, 0, 2)
    body = struct.pack(">H", len(public)) + public + struct.pack(">H", 34) + bytes(34)
    read = struct.pack(">IH", 4, 2) + bytes(2) + b"\0\0\1\0\0"
    return [
        struct.pack(">HII", 0x8001, 10, 0x922),
        struct.pack(">HII", 0x8001, 10 + len(body), 0) + body,
        struct.pack(">HII", 0x8002, 10 + len(read), 0) + read,
    ]


def _qgs_response(data: bytes) -> None:
    promised(len(qgs.decode_response(data)) <= MAX_QUOTE_BYTES)


def _qgs_seeds() -> list[bytes]:
    quote = bytes(1020)
    body = struct.pack("<II", 0, len(quote)) + quote
    return [
        struct.pack("<HHIII", 1, 0, 1, 16 + len(body), 0) + body,
        struct.pack("<HHIII", 1, 0, 1, 24, 0x12001) + bytes(8),
    ]


def _hcl_runtime_seeds() -> list[bytes]:
    modulus = base64.urlsafe_b64encode(b"\xc1" * 256).decode().rstrip("=")
    key = {"kid": "HCLAkPub", "kty": "RSA", "key_ops": ["sign"], "e": "AQAB", "n": modulus}
    machine = {"secure-boot": True, "console-enabled": False, "vmUniqueId": "00"}
    document = {"keys": [key], "vm-configuration": machine, "user-data": "00" * 64}
    return [json.dumps(document).encode()]


def _hcl_seeds() -> list[bytes]:
    runtime = _hcl_runtime_seeds()[0]
    head = struct.pack("<4sIIII12s", b"HCLA", 2, 1236 + len(runtime), 2, 0, bytes(12))
    request = struct.pack("<IIIII", 20 + len(runtime), 1, 4, 1, len(runtime))
    return [head + bytes(1184) + request + runtime]


def _hcl_report(data: bytes) -> None:
    hcl.parse_hcl_report(data)


def _hcl_runtime_data(data: bytes) -> None:
    hcl.parse_runtime_data(data)


TARGETS: dict[str, Target] = {
    "quote": Target(_quote, lambda: world().quotes, 6000),
    "quote-file": Target(
        _quote_file,
        lambda: [
            world().quotes[0].hex().encode(),
            json.dumps({"quote": world().quotes[0].hex()}).encode(),
            world().quotes[0],
        ],
        12288,
    ),
    "verifier": Target(_verifier, lambda: [b"\0", b"\1", b"\2", b"\3", b"\0\x40\x02\x01"], 64),
    "verifier-collateral": Target(_verifier_collateral, lambda: [bytes([n]) for n in range(9)], 64),
    "tls-certificate": Target(_tls_certificate, lambda: [b"", b"\x40\x02\x01"], 64),
    "pck-extension": Target(_pck_extension, _pck_seeds, 1024),
    "collateral": Target(_collateral, lambda: [world().collateral.to_json()], 16384),
    "tcb-info": Target(_tcb_info, lambda: [world().collateral.parts["tcb_info"].encode()]),
    "qe-identity": Target(_qe_identity, lambda: [world().collateral.parts["qe_identity"].encode()]),
    "bundle": Target(_bundle, lambda: [encode_bundle([world().collateral])], 16384),
    "pccs-answer": Target(_pccs_answer, _pccs_seeds),
    "crl": Target(_crl, _crl_seeds),
    "policy": Target(_policy, _policy_seeds),
    "broker-config": Target(_broker_config, _broker_config_seeds, 8192),
    "cbor": Target(_cbor, lambda: [cbor.encode({"a": [b"x", 1], 2: cbor.Tag(60000, "t")})], 1024),
    "runtime-log": Target(
        _runtime_log,
        lambda: [encode_log([RuntimeEvent("broker", bytes(32)), RuntimeEvent("sealed")]), b"[]"],
    ),
    "boot-log": Target(_boot_log, _boot_log_seeds),
    "boot-table": Target(_boot_table, _boot_table_seeds, 128),
    "dstack-log": Target(_dstack_log, _dstack_seeds),
    "azure-evidence": Target(
        _azure_evidence, lambda: [AzureEvidence(b"quote", b"report").encode()], 1024
    ),
    "tpm-response": Target(_tpm_response, _tpm_seeds, 256),
    "qgs-response": Target(_qgs_response, _qgs_seeds, 2048),
    "hcl-report": Target(_hcl_report, _hcl_seeds),
    "hcl-runtime-data": Target(_hcl_runtime_data, _hcl_runtime_seeds),
    "admin-request": Target(administration.admin_request, administration.admin_request_seeds, 512),
    "principal-certificate": Target(
        administration.principal_certificate, administration.principal_certificate_seeds, 1024
    ),
    "vault-answer": Target(keys.vault_answer, keys.vault_answer_seeds, 1024),
    "legacy-secrets": Target(keys.legacy_secrets, keys.legacy_secrets_seeds, 1024),
    "foreign-header": Target(volumes.foreign_header, volumes.foreign_header_seeds),
    "backup": Target(keys.backup, keys.backup_seeds, 8192),
    "audit-export": Target(administration.audit_export, administration.audit_export_seeds),
    "model-signature": Target(provenance.signature, provenance.signature_seeds),
    "trusted-signers": Target(provenance.trust, provenance.trust_seeds, 512),
    **serving_codecs.TARGETS,
    **serving_requests.TARGETS,
    **serving_files.TARGETS,
    "onnx-file": onnx_reader.TARGET,
}
