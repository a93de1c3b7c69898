"""The KEK in a transit engine: the documented API, and every way in which it says no."""

from __future__ import annotations

import base64
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.broker.kek_vault import VaultWrapper
from sealserve.broker.keys import Envelope, bound_to
from sealserve.certificates import key_pem, server_certificate
from sealserve.errors import Refused, SealserveError, Unavailable
from tests.broker import vault as double
from tests.broker.vault import TOKEN, Vault

SECRET = b"PLANTED-SECRET"


@pytest.fixture
def vault() -> Iterator[Vault]:
    with double.running() as running:
        yield running


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    return path


def _kek(
    vault: Vault, token_file: Path, key: str = "sealserve", mount: str = "transit"
) -> Envelope:
    return Envelope(VaultWrapper(vault.url, mount, key, token_file, timeout_seconds=1))


def test_a_value_is_wrapped_by_the_documented_calls(vault: Vault, token_file: Path) -> None:
    kek = _kek(vault, token_file)
    wrapped = kek.wrap(SECRET, name="models/demo", version=3)
    assert kek.unwrap(wrapped, name="models/demo", version=3) == SECRET
    assert SECRET not in wrapped
    (path, headers, request), (path_back, _, request_back) = vault.requests
    assert path == "/v1/transit/encrypt/sealserve"
    assert path_back == "/v1/transit/decrypt/sealserve"
    assert headers["X-Vault-Token"] == TOKEN
    assert sorted(request) == ["associated_data", "plaintext"]
    assert base64.b64decode(request["associated_data"]) == bound_to("models/demo", 3)
    assert sorted(request_back) == ["associated_data", "ciphertext"]
    # Vault sees a data key, never a secret.
    assert len(base64.b64decode(request["plaintext"])) == 32


def test_a_value_opens_in_its_own_place_only(vault: Vault, token_file: Path) -> None:
    kek = _kek(vault, token_file)
    wrapped = kek.wrap(SECRET, name="a", version=1)
    changed = [wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped[:20], b"", b"\x02" + wrapped[1:]]
    attempts = [(wrapped, "b", 1), (wrapped, "a", 2), *((each, "a", 1) for each in changed)]
    for value, name, version in attempts:
        with pytest.raises(Refused) as caught:
            kek.unwrap(value, name=name, version=version)
        assert caught.value.code == "kek.unwrap_failed"
    with pytest.raises(Refused) as caught:
        _kek(vault, token_file, key="second").unwrap(wrapped, name="a", version=1)
    assert caught.value.code == "kek.unwrap_failed"


@pytest.mark.parametrize(
    ("mode", "kind", "code"),
    [
        ("sealed", Unavailable, "kek.vault_sealed"),
        ("garbage", Unavailable, "kek.vault_answer_malformed"),
        ("other", Unavailable, "kek.vault_answer_malformed"),
        ("list", Unavailable, "kek.vault_answer_malformed"),
        ("deep", Unavailable, "kek.vault_answer_malformed"),
        ("huge", Unavailable, "kek.vault_answer_malformed"),
        ("broken", Unavailable, "kek.vault_failed"),
        ("busy", Unavailable, "kek.vault_failed"),
        ("redirect", Unavailable, "kek.vault_redirects"),
        ("slow", Unavailable, "kek.vault_unreachable"),
        ("hangs up", Unavailable, "kek.vault_unreachable"),
    ],
)
def test_whatever_vault_does_is_one_error(
    vault: Vault, token_file: Path, mode: str, kind: type[SealserveError], code: str
) -> None:
    kek = _kek(vault, token_file)
    wrapped = kek.wrap(SECRET, name="a", version=1)
    vault.mode = mode
    for act in (
        lambda: kek.wrap(SECRET, name="a", version=1),
        lambda: kek.unwrap(wrapped, name="a", version=1),
    ):
        with pytest.raises(kind) as caught:
            act()
        assert caught.value.code == code
        told = str(caught.value)
        assert TOKEN not in told
        assert "PLANTED" not in told
        assert told.isprintable()
    vault.mode = "well"
    assert kek.unwrap(wrapped, name="a", version=1) == SECRET  # it recovers by itself


def test_a_wrong_token_engine_or_key_is_named(vault: Vault, token_file: Path) -> None:
    cases = {
        "kek.vault_not_found": _kek(vault, token_file, mount="other"),
        "kek.vault_bad_request": _kek(vault, token_file, key="absent"),
    }
    for code, kek in cases.items():
        with pytest.raises(SealserveError) as caught:
            kek.wrap(SECRET, name="a", version=1)
        assert caught.value.code == code
    vault.token = "hvs.another"
    with pytest.raises(Refused) as caught_denied:
        _kek(vault, token_file).wrap(SECRET, name="a", version=1)
    assert caught_denied.value.code == "kek.vault_denied"
    # Vault's agent writes a new token: it is taken up without a restart.
    token_file.write_text("hvs.another")
    _kek(vault, token_file).wrap(SECRET, name="a", version=1)


@pytest.mark.parametrize("content", ["", "two words", "x" * 5000, "line\r\nX-Header: y", "naïve"])
def test_a_file_that_holds_no_token_is_refused(
    vault: Vault, token_file: Path, content: str
) -> None:
    token_file.write_text(content)
    with pytest.raises(Refused) as caught:
        _kek(vault, token_file).wrap(SECRET, name="a", version=1)
    assert caught.value.code == "kek.token_malformed"
    assert vault.requests == []


def test_a_token_that_others_may_read_is_refused(vault: Vault, token_file: Path) -> None:
    token_file.chmod(0o640)
    with pytest.raises(Refused) as caught:
        _kek(vault, token_file).wrap(SECRET, name="a", version=1)
    assert caught.value.code == "kek.mode_too_wide"


def test_only_the_named_ca_is_believed(tmp_path: Path, token_file: Path) -> None:
    files = {}
    for name in ("vault", "stranger"):
        key = ec.generate_private_key(ec.SECP256R1())
        host: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = server_certificate(key, name, host, timedelta(days=1), organization="test")
        files[name] = tmp_path / f"{name}.pem"
        files[name].write_bytes(certificate.public_bytes(Encoding.PEM))
        (tmp_path / f"{name}.key").write_bytes(key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["vault"], tmp_path / "vault.key")
    with double.running(context) as vault:
        good = VaultWrapper(vault.url, "transit", "sealserve", token_file, ca_file=files["vault"])
        assert good.unwrap_key(good.wrap_key(bytes(32), b"a"), b"a") == bytes(32)
        bad = VaultWrapper(vault.url, "transit", "sealserve", token_file, ca_file=files["stranger"])
        with pytest.raises(Refused) as caught:
            bad.wrap_key(bytes(32), b"a")
        assert caught.value.code == "kek.vault_unproven"
        assert len(vault.requests) == 2
    with pytest.raises(Unavailable) as unusable:
        VaultWrapper("https://vault", "transit", "k", token_file, ca_file=tmp_path / "absent")
    assert unusable.value.code == "kek.ca_file_unusable"


def test_many_threads_share_it(vault: Vault, token_file: Path) -> None:
    kek, opened = _kek(vault, token_file), []
    wrapped = kek.wrap(SECRET, name="a", version=1)

    def work() -> None:
        opened.append(kek.unwrap(wrapped, name="a", version=1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [SECRET] * 8
