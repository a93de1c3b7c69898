"""The KEK in HashiCorp Vault's or OpenBao's transit engine, by its HTTP API.

Rules this module keeps:

* Two calls are made, as documented for both products: ``POST /v1/MOUNT/encrypt/KEY``
  and ``/decrypt/KEY``, with `associated_data`; the key is an AEAD key of transit.
* TLS with the named CA only; plain HTTP to this machine only. Everything has one
  deadline and a size limit. Nothing is tried twice.
* The token comes from a private file, read anew for each call, so that an agent
  can renew it. It stands in no error; what Vault says is shown cut and plain.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import ssl
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from sealserve.broker.keys import DATA_KEY_BYTES, NotOpened
from sealserve.broker.private_file import read_private
from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.https import Answer, TooLarge, Unreachable, exchange, trust

__all__ = ["VaultWrapper"]

_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_TOKEN_BYTES: Final = 4096
_CIPHERTEXT: Final = re.compile(r"vault:v[1-9][0-9]{0,8}:[A-Za-z0-9+/=]{16,900}")
_TOKEN: Final = re.compile(rb"[!-~]+")
_OK: Final = 200
_REDIRECTS: Final = (301, 302, 307, 308)


class VaultWrapper:
    """A `DataKeyWrapper` that asks a transit engine.

    Args:
        url: ``https://HOST:PORT``; http for this machine only.
        mount: where the engine is mounted, usually ``transit``.
        key: the key's name there.
        token_file: a private file with the token.
        ca_file: certificates to believe; None for the system's.
        namespace: Vault's or OpenBao's namespace, or empty.
        timeout_seconds: for one call, everything included.

    Raises:
        Unavailable: ``kek.ca_file_unusable``.
    """

    def __init__(
        self,
        url: str,
        mount: str,
        key: str,
        token_file: Path,
        *,
        ca_file: Path | None = None,
        namespace: str = "",
        timeout_seconds: float = 5.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._mount, self._key = mount.strip("/"), key
        self._token_file = token_file
        self._namespace = namespace
        self._timeout = timeout_seconds
        self._tls = _trusted(ca_file) if urlsplit(url).scheme == "https" else None
        name = "\0".join((namespace, self._mount, key)).encode()
        self._id = f"vault:{hashlib.sha256(name).hexdigest()[:16]}"

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`; from namespace, mount and key, not the address."""
        return self._id

    def wrap_key(self, key: bytes, bound: bytes) -> bytes:
        """As `DataKeyWrapper.wrap_key`; Vault's own form of ciphertext."""
        data = self._ask("encrypt", {"plaintext": _text(key), "associated_data": _text(bound)})
        ciphertext = data.get("ciphertext")
        if not isinstance(ciphertext, str) or not _CIPHERTEXT.fullmatch(ciphertext):
            raise self._malformed()
        return ciphertext.encode()

    def unwrap_key(self, wrapped: bytes, bound: bytes) -> bytes:
        """As `DataKeyWrapper.unwrap_key`."""
        ciphertext = wrapped.decode("ascii", "replace")
        if not _CIPHERTEXT.fullmatch(ciphertext):
            raise NotOpened
        data = self._ask("decrypt", {"ciphertext": ciphertext, "associated_data": _text(bound)})
        return self._key_of(data)

    def close(self) -> None:
        """Nothing is held open."""

    def _key_of(self, data: dict[str, Any]) -> bytes:
        try:
            key = base64.b64decode(data["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise self._malformed() from None
        if len(key) != DATA_KEY_BYTES:
            raise self._malformed()
        return key

    def _ask(self, act: str, request: dict[str, str]) -> dict[str, Any]:
        path = f"/v1/{quote(self._mount)}/{act}/{quote(self._key, safe='')}"
        headers = {
            "X-Vault-Token": self._token(),
            "X-Vault-Request": "true",
            "Content-Type": "application/json",
        }
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        try:
            answer = exchange(
                "POST",
                self._url + path,
                tls=self._tls,
                limit=_MAX_ANSWER_BYTES,
                deadline=time.monotonic() + self._timeout,
                headers=headers,
                body=json.dumps(request).encode(),
            )
        except TooLarge:
            raise self._malformed() from None
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                "kek.vault_unproven",
                f"its TLS certificate is not trusted: {error.verify_message}",
                where=self._url,
                hint="name Vault's CA in kek.vault_ca_file of broker.yaml",
            ) from None
        except Unreachable as error:
            raise Unavailable(
                "kek.vault_unreachable",
                f"Vault gives no answer: {error}",
                where=self._url,
                hint="check that it runs and can be reached; nothing is released meanwhile",
            ) from None
        return self._data(act, answer)

    def _data(self, act: str, answer: Answer) -> dict[str, Any]:
        if answer.status != _OK:
            raise self._refusal(act, answer)
        document = _document(answer.body)
        data = document.get("data") if document else None
        if not isinstance(data, dict):
            raise self._malformed()
        return data

    def _refusal(self, act: str, answer: Answer) -> Exception:
        said = _first_error(answer.body)
        match answer.status:
            case 400 if act == "decrypt":
                return NotOpened()
            case 400:
                return self._no(Refused, "kek.vault_bad_request", f"Vault refuses to {act}{said}")
            case 403:
                return self._no(
                    Refused,
                    "kek.vault_denied",
                    f"Vault's token may not {act} with this key",
                    "give it a policy with update on transit/encrypt/KEY and decrypt/KEY,"
                    " and check that it has not ended",
                )
            case 404:
                return self._no(
                    Unavailable,
                    "kek.vault_not_found",
                    f"Vault has no transit engine at {self._mount!r}",
                    "check kek.vault_mount and kek.vault_namespace in broker.yaml",
                )
            case 503:
                return self._no(
                    Unavailable,
                    "kek.vault_sealed",
                    "Vault is sealed or in maintenance",
                    "unseal it",
                )
            case status if status in _REDIRECTS:
                return self._no(
                    Unavailable,
                    "kek.vault_redirects",
                    "Vault sends us to another node, and redirects are not followed",
                    "name the active node, or let standby nodes forward requests",
                )
            case status:
                return self._no(
                    Unavailable,
                    "kek.vault_failed",
                    f"Vault answers with HTTP status {status}{said}",
                )

    def _no(
        self, kind: type[SealserveError], code: str, message: str, hint: str | None = None
    ) -> SealserveError:
        return kind(code, message, where=self._url, hint=hint)

    def _malformed(self) -> SealserveError:
        return self._no(
            Unavailable,
            "kek.vault_answer_malformed",
            "the answer is not of the transit engine's API",
            "check kek.vault_url: something else may answer there",
        )

    def _token(self) -> str:
        raw = read_private(
            self._token_file,
            _MAX_TOKEN_BYTES,
            "Vault's token",
            hint="let Vault's agent write it there, with mode 0600",
        ).strip()
        if len(raw) > _MAX_TOKEN_BYTES or not _TOKEN.fullmatch(raw):
            raise Refused("kek.token_malformed", "holds no token", where=str(self._token_file))
        return raw.decode()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _first_error(body: bytes) -> str:
    """What Vault says, cut and without anything that a terminal would obey."""
    errors = (_document(body) or {}).get("errors")
    if not isinstance(errors, list) or not errors or not isinstance(errors[0], str):
        return ""
    return ": " + "".join(c if c.isprintable() else " " for c in errors[0])[:200]


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return trust(ca_file)
    except OSError as error:
        raise Unavailable(
            "kek.ca_file_unusable",
            f"no certificates can be read: {error.strerror or type(error).__name__}",
            where=str(ca_file),
            hint="kek.vault_ca_file names certificates in PEM",
        ) from None
