"""The public identity, deposits, and the directory they come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sealserve.broker.deposit import MAX_DEPOSIT_BYTES, open_deposit, seal_for
from sealserve.broker.directory import Broker, create, open_broker
from sealserve.broker.identity import SERVER_NAME, BrokerIdentity
from sealserve.errors import InputError, Refused, SealserveError, Unavailable

KEY = b"planted volume key " + bytes(range(45))


def _code(caught: pytest.ExceptionInfo[SealserveError]) -> str:
    return caught.value.code


def test_the_document_survives_its_file(broker: Broker, broker_root: Path) -> None:
    identity = BrokerIdentity.load(broker_root / "broker.json")
    assert identity == broker.identity
    assert BrokerIdentity.from_json(identity.to_json()) == identity


def test_the_fingerprint_is_that_of_the_certificates_key(broker: Broker) -> None:
    certificate = x509.load_pem_x509_certificate(broker.identity.certificate.encode())
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert broker.identity.spki_sha256 == hashlib.sha256(spki).digest()


def test_the_certificate_names_server_and_hosts(tmp_path: Path) -> None:
    hosts = ["broker.example.com", "192.0.2.7", "2001:db8::1", "broker.example.com"]
    identity = create(tmp_path / "b", name="acme", hosts=hosts)
    names = identity.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME, "broker.example.com"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == hosts[1:3]


def _changed(document: dict[str, Any], **changes: Any) -> bytes:
    merged = {**document, **changes}
    return json.dumps({k: v for k, v in merged.items() if v is not ...}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "sealserve-broker-identity/2"},
        {"name": ...},
        {"name": ""},
        {"name": "x" * 65},
        {"name": 7},
        {"certificate": "no certificate"},
        {"certificate": ...},
        {"deposit_key": "no base64!"},
        {"deposit_key": "AAAA"},
        {"surprise": 1},
    ],
)
def test_a_wrong_document_is_refused_by_name(broker: Broker, changes: dict[str, Any]) -> None:
    raw = _changed(json.loads(broker.identity.to_json()), **changes)
    with pytest.raises(InputError) as caught:
        BrokerIdentity.from_json(raw, where="broker.json")
    assert _code(caught) == "identity.malformed"
    assert caught.value.where == "broker.json"


def test_two_certificates_are_one_too_many(broker: Broker) -> None:
    document = json.loads(broker.identity.to_json())
    with pytest.raises(InputError):
        BrokerIdentity.from_json(_changed(document, certificate=document["certificate"] * 2))


@given(st.one_of(st.binary(max_size=300), st.just(b"{" * 20_000), st.just(b"[]"), st.just(b"null")))
def test_any_bytes_give_a_typed_error(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        BrokerIdentity.from_json(raw)
    assert _code(caught) == "identity.malformed"


def test_a_deposit_opens_with_its_broker_only(broker: Broker, tmp_path: Path) -> None:
    sealed = seal_for(broker.identity, KEY)
    assert KEY not in sealed
    assert open_deposit(broker._deposit_key(), broker.identity, sealed) == KEY
    create(tmp_path / "other", name="other")
    with open_broker(tmp_path / "other") as other, pytest.raises(Refused) as caught:
        open_deposit(other._deposit_key(), other.identity, sealed)
    assert _code(caught) == "sealing.not_opened"


def test_a_changed_deposit_is_refused(broker: Broker) -> None:
    sealed = bytearray(seal_for(broker.identity, KEY))
    key = broker._deposit_key()
    for position in (0, 600, 1119, 1120, len(sealed) - 17, len(sealed) - 1):
        sealed[position] ^= 1
        with pytest.raises(Refused) as caught:
            open_deposit(key, broker.identity, bytes(sealed))
        assert _code(caught) == "sealing.not_opened"
        assert "planted" not in str(caught.value)
        sealed[position] ^= 1
    assert open_deposit(key, broker.identity, bytes(sealed)) == KEY


@pytest.mark.parametrize("size", [0, 4097])
def test_a_key_of_no_sensible_size_is_not_sealed(broker: Broker, size: int) -> None:
    with pytest.raises(InputError) as caught:
        seal_for(broker.identity, bytes(size))
    assert _code(caught) == "deposit.key_size"


@pytest.mark.parametrize("size", [0, 1136, MAX_DEPOSIT_BYTES + 1])
def test_bytes_of_another_size_are_no_deposit(broker: Broker, size: int) -> None:
    with pytest.raises(InputError) as caught:
        open_deposit(broker._deposit_key(), broker.identity, bytes(size))
    assert _code(caught) == "deposit.malformed"


def test_a_broker_is_never_overwritten(broker_root: Path) -> None:
    before = {path.name: path.read_bytes() for path in broker_root.iterdir()}
    with pytest.raises(InputError) as caught:
        create(broker_root, name="second")
    assert _code(caught) == "broker.directory_exists"
    assert {path.name: path.read_bytes() for path in broker_root.iterdir()} == before


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    create(tmp_path / "b", name="acme")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"name": ""}, "broker.name_invalid"),
        ({"name": "a/b"}, "broker.name_invalid"),
        ({"name": "n" * 65}, "broker.name_invalid"),
        ({"name": "ok", "hosts": ["a b"]}, "identity.host_invalid"),
        ({"name": "ok", "hosts": ["häuser.example"]}, "identity.host_invalid"),
        ({"name": "ok", "hosts": ["a."]}, "identity.host_invalid"),
        ({"name": "ok", "hosts": [f"h{n}" for n in range(17)]}, "identity.host_invalid"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path: Path, arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        create(tmp_path / "b", **arguments)
    assert _code(caught) == code
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable) as caught:
        create(tmp_path / "file" / "b", name="acme")
    assert _code(caught) == "broker.directory_unwritable"


def test_the_private_keys_on_disk_are_wrapped(broker: Broker) -> None:
    tls_key = broker.tls_private_key()
    deposit_key = broker._deposit_key().private_bytes()
    body = b"".join(tls_key.splitlines()[1:-1])
    for path in broker.root.iterdir():
        content = path.read_bytes()
        assert b"PRIVATE KEY" not in content
        assert body[:32] not in content
        assert deposit_key[:16] not in content
        assert deposit_key[-16:] not in content


def test_an_identity_of_another_broker_is_noticed(broker_root: Path, tmp_path: Path) -> None:
    other = create(tmp_path / "other", name="other")
    (broker_root / "broker.json").write_bytes(other.to_json())
    with pytest.raises(Refused) as caught:
        open_broker(broker_root)
    assert _code(caught) == "broker.key_mismatch"


def test_a_directory_without_a_broker_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_broker(tmp_path)
    assert _code(caught) == "broker.directory_missing"
    assert list(tmp_path.iterdir()) == []
