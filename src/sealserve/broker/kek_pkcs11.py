"""The KEK in a hardware security module, by PKCS#11 (OASIS, version 2.40 and on).

Rules this module keeps:

* The key is an AES-256 key that the token does not give out (CKA_SENSITIVE, not
  CKA_EXTRACTABLE); it wraps data keys with CKM_AES_GCM under nonces made here.
* The PIN comes from a private file or an inherited descriptor. A refused PIN is
  never tried again: tokens lock.
* A session that has gone (the token was pulled, another part of this process
  logged out) is opened again, once per operation.

The module runs in this process: it is believed like any library, and one that
hangs cannot be interrupted.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as cryptoki

from sealserve.broker.keys import DATA_KEY_BYTES, NONCE_BYTES, NotOpened
from sealserve.broker.private_file import read_private
from sealserve.errors import Refused, SealserveError, Unavailable

__all__ = ["Pkcs11Wrapper"]

_TAG_BITS: Final = 128
_MAX_PIN_BYTES: Final = 256
_AES_BITS: Final = 256
_DESCRIPTOR: Final = "fd:"
_GONE: Final = (
    cryptoki.SessionHandleInvalid, cryptoki.SessionClosed, cryptoki.UserNotLoggedIn,
    cryptoki.KeyHandleInvalid, cryptoki.ObjectHandleInvalid, cryptoki.DeviceRemoved,
    cryptoki.TokenNotPresent,
)  # fmt: skip
_NOT_OPENED: Final = (
    # SoftHSM says CKR_GENERAL_ERROR for a tag that does not fit; others are exact.
    cryptoki.GeneralError, cryptoki.EncryptedDataInvalid, cryptoki.EncryptedDataLenRange,
    cryptoki.SignatureInvalid, cryptoki.DataInvalid,
)  # fmt: skip
_PIN: Final = (
    cryptoki.PinIncorrect, cryptoki.PinLocked, cryptoki.PinExpired, cryptoki.PinInvalid,
    cryptoki.PinLenRange, cryptoki.UserPinNotInitialized,
)  # fmt: skip


class Pkcs11Wrapper:
    """A `DataKeyWrapper` whose key is on a token.

    Args:
        module: the PKCS#11 library of the token's maker.
        token: the token's label.
        key: the key's label.
        pin_file: a private file with the PIN, or ``fd:N`` for an inherited descriptor.

    Raises:
        Unavailable: ``kek.pkcs11_module``, ``kek.token_missing``, ``kek.key_missing``,
            ``kek.pkcs11_failed``, ``kek.unreadable``.
        Refused: ``kek.pin_refused``, ``kek.key_unfit``, ``kek.mode_too_wide`` and others
            of `private_file`.
    """

    def __init__(self, module: Path, token: str, key: str, pin_file: str) -> None:
        self._module, self._token, self._label = module, token, key
        self._pin = _read_pin(pin_file)
        name = "\0".join((token, key)).encode()
        self._id = f"pkcs11:{hashlib.sha256(name).hexdigest()[:16]}"
        self._lock = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        with self._lock:
            self._told(lambda: None)

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`; from the labels of token and key."""
        return self._id

    def wrap_key(self, key: bytes, bound: bytes) -> bytes:
        """As `DataKeyWrapper.wrap_key`: ``nonce (12) || ciphertext || tag (16)``."""
        nonce = os.urandom(NONCE_BYTES)
        options = _gcm(nonce, bound)
        with self._lock:
            return nonce + bytes(self._told(lambda: self._key.encrypt(key, **options)))

    def unwrap_key(self, wrapped: bytes, bound: bytes) -> bytes:
        """As `DataKeyWrapper.unwrap_key`."""
        options = _gcm(wrapped[:NONCE_BYTES], bound)
        ciphertext = wrapped[NONCE_BYTES:]
        if len(ciphertext) != DATA_KEY_BYTES + _TAG_BITS // 8:
            raise NotOpened

        def decrypt() -> Any:
            try:
                return self._key.decrypt(ciphertext, **options)
            except _NOT_OPENED:
                raise NotOpened from None

        with self._lock:
            return bytes(self._told(decrypt))

    def close(self) -> None:
        """Log out and close the session."""
        with self._lock:
            session, self._session, self._key = self._session, None, None
            if session is not None:
                _close(session)

    def _told(self, act: Callable[[], Any]) -> Any:
        """Act; open again what has gone, and turn errors into ours."""
        try:
            try:
                if self._key is None:
                    self._open()
                return act()
            except _GONE:
                self._reopen()
                return act()
        except _PIN as error:
            raise Refused(
                "kek.pin_refused",
                f"the token does not take the PIN ({type(error).__name__})",
                where=self._token,
                hint="it is not tried again, since tokens lock: check the PIN first",
            ) from None
        except cryptoki.NoSuchToken:
            raise Unavailable(
                "kek.token_missing",
                "the PKCS#11 module knows no such token",
                where=self._token,
                hint="check that the HSM is connected, and kek.pkcs11_token in broker.yaml",
            ) from None
        except cryptoki.NoSuchKey:
            raise Unavailable(
                "kek.key_missing",
                f"the token holds no AES key {self._label!r}",
                where=self._token,
                hint="make an AES-256 key there, sensitive and not extractable",
            ) from None
        except cryptoki.PKCS11Error as error:
            raise Unavailable(
                "kek.pkcs11_failed",
                f"the HSM did not do it ({type(error).__name__})",
                where=self._token,
                hint="see the HSM's own log",
            ) from None

    def _reopen(self) -> None:
        session, self._session, self._key = self._session, None, None
        if session is not None:
            _close(session)
        self._open()

    def _open(self) -> None:
        token = _library(self._module).get_token(token_label=self._token)
        try:
            session = token.open(user_pin=self._pin)
        except cryptoki.UserAlreadyLoggedIn:
            session = token.open()  # a login counts for all sessions of a process
        try:
            key = session.get_key(
                object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=self._label
            )
            _require_fit(key, self._label)
        except BaseException:
            _close(session)
            raise
        self._session, self._key = session, key


def _gcm(nonce: bytes, bound: bytes) -> dict[str, Any]:
    return {
        "mechanism": Mechanism.AES_GCM,
        "mechanism_param": GCMParams(nonce, bound, _TAG_BITS),
    }


def _library(module: Path) -> Any:
    try:
        return pkcs11.lib(str(module))
    except cryptoki.PKCS11Error:
        raise Unavailable(
            "kek.pkcs11_module",
            "cannot be loaded as a PKCS#11 module",
            where=str(module),
            hint="name the library that the HSM's maker installed",
        ) from None


def _require_fit(key: Any, label: str) -> None:
    unfit = []
    if key.key_length != _AES_BITS:
        unfit.append("is not AES-256")
    if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
        unfit.append("can be taken out of the token")
    if unfit:
        raise Refused(
            "kek.key_unfit",
            f"the key {label!r} {' and '.join(unfit)}",
            hint="make an AES-256 key with CKA_SENSITIVE and without CKA_EXTRACTABLE",
        )


def _close(session: Any) -> None:
    try:
        session.close()
    except cryptoki.PKCS11Error:
        return  # it has gone already


def _read_pin(source: str) -> str:
    hint = "put the PIN into a file with mode 0600, or hand it over by a descriptor (fd:N)"
    if source.startswith(_DESCRIPTOR):
        try:
            with os.fdopen(int(source.removeprefix(_DESCRIPTOR)), "rb") as pipe:
                raw = pipe.read(_MAX_PIN_BYTES + 1)
        except (ValueError, OSError):
            raise Unavailable(
                "kek.unreadable", "the PIN's descriptor cannot be read", where=source, hint=hint
            ) from None
    else:
        raw = read_private(Path(source), _MAX_PIN_BYTES, "the PIN", hint=hint)
    try:
        pin = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        pin = ""
    if not pin or len(raw) > _MAX_PIN_BYTES:
        error: SealserveError = Refused(
            "kek.pin_malformed", "holds no PIN of 1 to 256 bytes of UTF-8", where=source
        )
        raise error from None
    return pin
