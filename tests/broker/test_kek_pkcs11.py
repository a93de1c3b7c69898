"""The KEK on a token: SoftHSM2, by the same module interface as an HSM."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.broker.kek_pkcs11 import Pkcs11Wrapper
from sealserve.broker.keys import Envelope
from sealserve.errors import Refused, SealserveError, Unavailable
from tests.broker.softhsm import KEY, PIN, TOKEN

SECRET = b"PLANTED-SECRET"


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.touch(mode=0o600)
    path.write_text(PIN + "\n")
    return path


@pytest.fixture
def kek(softhsm: Path, pin_file: Path) -> Iterator[Envelope]:
    opened = Envelope(Pkcs11Wrapper(softhsm, TOKEN, KEY, str(pin_file)))
    yield opened
    opened.close()


def test_a_value_opens_in_its_own_place_only(kek: Envelope, softhsm: Path, pin_file: Path) -> None:
    wrapped = kek.wrap(SECRET, name="a", version=1)
    assert SECRET not in wrapped
    assert kek.unwrap(wrapped, name="a", version=1) == SECRET
    changed = [wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped[:20], b"", b"\x02" + wrapped[1:]]
    changed += [wrapped[:at] + bytes([wrapped[at] ^ 1]) + wrapped[at + 1 :] for at in (5, 20, 60)]
    attempts = [(wrapped, "b", 1), (wrapped, "a", 2), *((each, "a", 1) for each in changed)]
    for value, name, version in attempts:
        with pytest.raises(Refused) as caught:
            kek.unwrap(value, name=name, version=version)
        assert caught.value.code == "kek.unwrap_failed"
    other = Envelope(Pkcs11Wrapper(softhsm, TOKEN, "second", str(pin_file)))
    with pytest.raises(Refused) as caught:
        other.unwrap(wrapped, name="a", version=1)
    assert caught.value.code == "kek.unwrap_failed"
    assert other.id != kek.id
    other.close()
    # Closing one logs the whole process out: the other one logs in again.
    assert kek.unwrap(wrapped, name="a", version=1) == SECRET


def test_what_the_token_refuses_is_named(softhsm: Path, pin_file: Path, tmp_path: Path) -> None:
    cases = {
        "kek.token_missing": (softhsm, "absent", KEY),
        "kek.key_missing": (softhsm, TOKEN, "absent"),
        "kek.key_unfit": (softhsm, TOKEN, "open"),
        "kek.pkcs11_module": (tmp_path / "absent.so", TOKEN, KEY),
    }
    for code, (module, token, key) in cases.items():
        with pytest.raises(SealserveError) as caught:
            Pkcs11Wrapper(module, token, key, str(pin_file))
        assert caught.value.code == code
    with pytest.raises(Refused) as short:
        Pkcs11Wrapper(softhsm, TOKEN, "short", str(pin_file))
    assert short.value.code == "kek.key_unfit"


def test_a_wrong_pin_is_refused_and_shown_nowhere(softhsm: Path, pin_file: Path) -> None:
    pin_file.write_text("PLANTED-WRONG")
    with pytest.raises(Refused) as caught:
        Pkcs11Wrapper(softhsm, TOKEN, KEY, str(pin_file))
    assert caught.value.code == "kek.pin_refused"
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode", "code"),
    [
        (b"", 0o600, "kek.pin_malformed"),
        (b"\xff\xfe", 0o600, "kek.pin_malformed"),
        (b"1" * 300, 0o600, "kek.pin_malformed"),
        (PIN.encode(), 0o640, "kek.mode_too_wide"),
    ],
)
def test_a_file_that_holds_no_private_pin_is_refused(
    softhsm: Path, pin_file: Path, content: bytes, mode: int, code: str
) -> None:
    pin_file.write_bytes(content)
    pin_file.chmod(mode)
    with pytest.raises(Refused) as caught:
        Pkcs11Wrapper(softhsm, TOKEN, KEY, str(pin_file))
    assert caught.value.code == code


def test_the_pin_may_come_by_a_descriptor(softhsm: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, PIN.encode())
    os.close(writing)
    wrapper = Pkcs11Wrapper(softhsm, TOKEN, KEY, f"fd:{reading}")
    assert wrapper.unwrap_key(wrapper.wrap_key(bytes(32), b"a"), b"a") == bytes(32)
    wrapper.close()
    for source in (f"fd:{reading}", "fd:x"):
        with pytest.raises(Unavailable) as caught:
            Pkcs11Wrapper(softhsm, TOKEN, KEY, source)
        assert caught.value.code == "kek.unreadable"


def test_threads_share_one_session(kek: Envelope) -> None:
    wrapped, opened = kek.wrap(SECRET, name="a", version=1), []

    def work() -> None:
        opened.extend(kek.unwrap(wrapped, name="a", version=1) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [SECRET] * 80
