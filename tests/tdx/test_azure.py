"""An Azure guest's evidence: the paravisor's report, the way to it, and the metadata service."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.address import Address
from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.tdx.azure import AzureProvider, ask_metadata_service
from sealserve.tdx.evidence import (
    MAX_EVIDENCE_BYTES,
    MAX_HCL_REPORT_BYTES,
    AzureEvidence,
    PassingTrouble,
    decode_azure,
)
from sealserve.tdx.hcl import parse_hcl_report, parse_runtime_data
from sealserve.tdx.quote import parse_quote
from tests.tdx.azure_guest import JSON_AT, FakeVtpm, hcl_report, quote_of, runtime_of
from tests.vectors import read_vector

DATA = bytes(range(64))
HCL = "trustee/az-tdx-vtpm/hcl-report.bin"


def provider(
    vtpm: FakeVtpm, quote: Callable[[bytes], bytes] = quote_of, pauses: list[float] | None = None
) -> AzureProvider:
    sleep = (pauses if pauses is not None else []).append
    return AzureProvider(transmit=vtpm, quote=quote, sleep=sleep)


def test_a_published_report_reads_as_its_quote_states() -> None:
    report = parse_hcl_report(read_vector(HCL))
    quote = parse_quote(read_vector("trustee/az-tdx-vtpm/td-quote.bin"))
    assert report.report_data == quote.report.report_data
    assert report.tdreport[128:192] == quote.report.report_data
    runtime = parse_runtime_data(report.runtime_json)
    assert runtime.user_data == bytes(64)
    assert runtime.secure_boot is True
    assert runtime.console_enabled is True
    assert runtime.vm_id == "6332533D-5649-4D02-8AA7-8F64B7C3EE21"
    assert runtime.to_dict()["ak_modulus"].startswith("c89b")


def test_the_key_in_a_published_report_signed_its_tpm_quote() -> None:
    """The oracle for the key: a signature that another project published beside it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    published = json.loads(read_vector("trustee/az-tdx-vtpm/evidence-v1.json"))["tpm_quote"]
    runtime = parse_runtime_data(parse_hcl_report(read_vector(HCL)).runtime_json)
    key = rsa.RSAPublicNumbers(65537, runtime.ak_modulus).public_key()
    key.verify(
        bytes.fromhex(published["signature"]),
        bytes.fromhex(published["message"]),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def test_evidence_speaks_for_what_was_asked() -> None:
    vtpm = FakeVtpm()
    azure = provider(vtpm)
    evidence = azure.collect(DATA)
    report = parse_hcl_report(evidence.hcl_report)
    assert parse_quote(evidence.quote).report.report_data == report.report_data
    assert parse_runtime_data(report.runtime_json).user_data == DATA
    assert azure.name == "azure"
    assert azure.simulated is False
    assert 0x12A not in vtpm.commands, "the index was there"


def test_a_missing_index_is_defined() -> None:
    vtpm = FakeVtpm()
    vtpm.defined = False
    assert provider(vtpm).collect(DATA).quote
    assert vtpm.commands.count(0x12A) == 1


def test_an_index_that_another_process_defines_first_is_used() -> None:
    vtpm = FakeVtpm()
    vtpm.codes = [0x18B]  # not there yet, when it is looked for
    assert provider(vtpm).collect(DATA).quote


def test_a_report_that_follows_late_is_waited_for() -> None:
    """Azure shows the old report for some seconds; writing again would not help."""
    vtpm = FakeVtpm()
    pauses: list[float] = []
    vtpm.make_report = lambda data: hcl_report(data if len(pauses) >= 3 else bytes(64))
    assert provider(vtpm, pauses=pauses).collect(DATA).quote
    assert pauses == [1.0, 1.0, 1.0]
    assert vtpm.commands.count(0x137) == 1


def test_another_writer_is_noticed_and_outlasted() -> None:
    vtpm = FakeVtpm()
    vtpm.make_report = lambda data: hcl_report(
        b"\xee" * 64 if vtpm.commands.count(0x137) == 1 else data
    )
    assert provider(vtpm).collect(DATA).quote
    assert vtpm.commands.count(0x137) == 2
    vtpm.make_report = lambda _: hcl_report(bytes(64))
    with pytest.raises(Unavailable, match="other user data") as caught:
        provider(vtpm).collect(DATA)
    assert caught.value.code == "tdx.quote_failed"


def test_a_user_data_index_of_another_size_is_left_alone() -> None:
    vtpm = FakeVtpm()
    vtpm.user_size = 32
    with pytest.raises(Unavailable) as caught:
        provider(vtpm).collect(DATA)
    assert caught.value.code == "azure.user_data_index"
    assert 0x137 not in vtpm.commands


def test_a_report_that_is_not_of_one_piece_is_asked_for_again() -> None:
    vtpm = FakeVtpm()

    def torn(user_data: bytes) -> bytes:
        raw = hcl_report(user_data)
        return raw[:160] + bytes(64) + raw[224:]

    vtpm.make_report = torn
    with pytest.raises(Unavailable, match="not for its runtime data"):
        provider(vtpm).collect(DATA)


@pytest.mark.parametrize("code", [0x922, 0x920])
def test_a_busy_tpm_is_asked_again(code: int) -> None:
    vtpm = FakeVtpm()
    vtpm.codes = [code, 0, 0, code]
    assert provider(vtpm).collect(DATA).quote


def test_a_machine_that_is_not_azures() -> None:
    vtpm = FakeVtpm()
    vtpm.has_report = False
    with pytest.raises(Unavailable) as caught:
        provider(vtpm).collect(DATA)
    assert caught.value.code == "azure.no_report"


def test_a_huge_report_is_not_read() -> None:
    vtpm = FakeVtpm()
    vtpm.make_report = lambda _: bytes(MAX_HCL_REPORT_BYTES + 1)
    with pytest.raises(InputError) as caught:
        provider(vtpm).collect(DATA)
    assert caught.value.code == "azure.report_too_large"
    assert 0x14E not in vtpm.commands


def test_a_quote_for_another_report_is_not_taken() -> None:
    with pytest.raises(Unavailable, match="other report data"):
        provider(FakeVtpm(), lambda _: quote_of(bytes(1024))).collect(DATA)


@pytest.mark.parametrize("size", [0, 32, 65])
def test_report_data_has_64_bytes(size: int) -> None:
    with pytest.raises(InputError) as caught:
        provider(FakeVtpm()).collect(bytes(size))
    assert caught.value.code == "tdx.report_data_length"


def put(offset: int, value: int) -> bytes:
    raw = bytearray(read_vector(HCL))
    struct.pack_into("<I", raw, offset, value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (lambda: b"", "azure.report_malformed"),
        (lambda: read_vector(HCL)[: JSON_AT - 1], "azure.report_malformed"),
        (lambda: read_vector(HCL)[: JSON_AT + 1200], "azure.report_malformed"),
        (lambda: b"HCLB" + read_vector(HCL)[4:], "azure.report_malformed"),
        (lambda: put(4, 3), "azure.report_malformed"),
        (lambda: put(8, 2436), "azure.report_malformed"),
        (lambda: put(12, 1), "azure.report_malformed"),
        (lambda: put(16, 1), "azure.report_malformed"),
        (lambda: put(20, 1), "azure.report_malformed"),
        (lambda: put(1100, 1), "azure.report_malformed"),  # between report and runtime data
        (lambda: put(1216, 1222), "azure.report_malformed"),
        (lambda: put(1220, 2), "azure.report_malformed"),
        (lambda: put(1224, 2), "azure.report_malformed"),  # AMD SEV-SNP
        (lambda: put(1228, 2), "azure.report_malformed"),  # SHA-384
        (lambda: put(1232, 1200), "azure.report_malformed"),
        (lambda: put(1232, 2**32 - 1), "azure.report_malformed"),
        (lambda: put(2596, 1), "azure.report_malformed"),  # behind everything
        (lambda: bytes(MAX_HCL_REPORT_BYTES + 1), "azure.report_too_large"),
    ],
)
def test_unsound_reports_are_refused(raw: Callable[[], bytes], code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_hcl_report(raw())
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"keys"', b'{"kays"'),
        (b'"HCLAkPub"', b'"HCLEkPub"'),
        (b'"HCLEkPub"', b'"HCLAkPub"'),
        (b'["sign"]', b'["sign","decrypt"]'),
        (b'"kty":"RSA","e":"AQAB","n":"yJ', b'"kty":"EC","e":"AQAB","n":"yJ'),
        (b'"e":"AQAB","n":"yJ', b'"e":"AAAB","n":"yJ'),
        (b'"e":"AQAB","n":"yJ', b'"e":"AQ B","n":"yJ'),
        (b'"n":"yJ', b'"n":"AA'),
        (b'"n":"yJ', b'"n":1,"m":"yJ'),
        (b'"user-data":"0', b'"user-data":" '),
        (b'"user-data"', b'"user-data":"","user-data"'),
        (b'"user-data"', b'"user_data"'),
        (b'"secure-boot":true', b'"secure-boot":1'),
        (b'"vmUniqueId"', b'"vmId"'),
        (b'"vm-configuration":{', b'"vm-configuration":[{'),
        (b"}", b"\xff"),
    ],
)
def test_unsound_runtime_data_are_refused(old: bytes, new: bytes) -> None:
    runtime = runtime_of(read_vector(HCL))
    assert old in runtime
    with pytest.raises(InputError) as caught:
        parse_runtime_data(re.sub(re.escape(old), new.replace(b"\\", b"\\\\"), runtime, count=1))
    assert caught.value.code == "azure.runtime_malformed"


@given(st.data())
def test_a_report_with_any_bytes_changed_gives_data_or_a_typed_error(data: st.DataObject) -> None:
    raw = bytearray(read_vector(HCL))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        parse_runtime_data(parse_hcl_report(bytes(raw)).runtime_json)


@given(st.binary(max_size=200))
def test_any_bytes_give_data_or_a_typed_error(raw: bytes) -> None:
    for parse in (parse_hcl_report, parse_runtime_data, decode_azure):
        with suppress(InputError):
            parse(raw)  # type: ignore[operator]


def test_deep_documents_are_refused() -> None:
    with pytest.raises(InputError):
        parse_runtime_data(b'{"keys":' + b"[" * 50000)


def test_evidence_survives_encoding() -> None:
    evidence = provider(FakeVtpm()).collect(DATA)
    assert decode_azure(evidence.encode()) == evidence


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "evidence.malformed"),
        (b"[]", "evidence.malformed"),
        (b'{"type":"azure-tdx-vtpm"}', "evidence.malformed"),
        (b'{"hcl_report":"","quote":1,"type":"azure-tdx-vtpm"}', "evidence.malformed"),
        (b'{"hcl_report":"*","quote":"","type":"azure-tdx-vtpm"}', "evidence.malformed"),
        (b'{"hcl_report":"","quote":"","type":"tdx"}', "evidence.malformed"),
        (AzureEvidence(b"q", b"r").encode() + b"\n", "evidence.malformed"),
        (bytes(MAX_EVIDENCE_BYTES + 1), "evidence.too_large"),
    ],
)
def test_every_other_form_of_evidence_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_azure(raw)
    assert caught.value.code == code


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def metadata_service(answer: Answer) -> Iterator[Address]:
    """A server in the metadata service's place."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/acc/tdquote"
            assert self.headers["Content-Type"] == "application/json"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert list(body) == ["report"]
            with suppress(ConnectionError):
                answer(self, base64.urlsafe_b64decode(body["report"] + "=="))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


def reply(status: int, body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def quoting(handler: BaseHTTPRequestHandler, tdreport: bytes) -> None:
    quote = base64.urlsafe_b64encode(quote_of(tdreport)).decode().rstrip("=")
    reply(200, json.dumps({"quote": quote}).encode())(handler, b"")


def dripping(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """Sends header after header, each of them in time, the answer never."""
    handler.send_response(200)
    handler.flush_headers()
    stop = threading.Event()
    while True:
        handler.wfile.write(b"X-Wait: 1\r\n"[:1])
        stop.wait(0.01)


def test_evidence_by_a_metadata_service_over_http() -> None:
    with metadata_service(quoting) as address:
        azure = provider(FakeVtpm(), lambda tdreport: ask_metadata_service(tdreport, address))
        evidence = azure.collect(DATA)
    expected = hashlib.sha256(runtime_of(evidence.hcl_report)).digest()
    assert parse_quote(evidence.quote).report.report_data == expected + bytes(32)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_service_may_be_asked_again(status: int) -> None:
    with metadata_service(reply(status, b"{}")) as address, pytest.raises(PassingTrouble):
        ask_metadata_service(bytes(1024), address, 5)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(400, b"{}"), "azure.metadata_refused"),
        (reply(404, b""), "azure.metadata_refused"),
        (reply(302, b""), "azure.metadata_refused"),
        (reply(200, bytes(70000)), "azure.metadata_malformed"),
    ],
)
def test_a_service_that_refuses_or_floods(answer: Answer, code: str) -> None:
    with metadata_service(answer) as address, pytest.raises(SealserveError) as caught:
        ask_metadata_service(bytes(1024), address, 5)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b""),
        reply(200, b"{}"),
        reply(200, b'{"quote": 1}'),
        reply(200, b'{"quote": "a b"}'),
        reply(200, b'{"quote": "A"}'),
        reply(200, b"[" * 50000),
        lambda handler, _: handler.wfile.write(b"nonsense\r\n"),
        lambda *_: None,
    ],
)
def test_an_answer_without_a_quote_may_be_asked_for_again(answer: Answer) -> None:
    with metadata_service(answer) as address, pytest.raises(PassingTrouble):
        ask_metadata_service(bytes(1024), address, 5)


def test_a_slow_service_is_left_in_the_end() -> None:
    with metadata_service(dripping) as address, pytest.raises(PassingTrouble):
        ask_metadata_service(bytes(1024), address, 0.3)


def test_nobody_there() -> None:
    with metadata_service(quoting) as address:
        pass
    with pytest.raises(PassingTrouble):
        ask_metadata_service(bytes(1024), address, 5)
