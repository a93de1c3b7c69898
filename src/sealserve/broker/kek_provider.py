"""Which key-encryption key a broker has, and which it has after `rekey`.

Rules this module keeps:

* `broker rekey` writes the new configuration beside the old one before it
  commits, and puts it in its place afterwards. Whoever finds both asks the
  database which of them holds.
* A broker that serves meanwhile takes up the new key when the old one opens
  nothing any more; it never wraps under a key that the database has left.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from sealserve.broker import config_file
from sealserve.broker.config import KekConfig
from sealserve.broker.config_file import CONFIG_FILE, MAX_CONFIG_BYTES
from sealserve.broker.kek_file import FileKek
from sealserve.broker.keys import DataKeyWrapper, Envelope, KeyEncryptionKey, prove
from sealserve.broker.store import Store
from sealserve.errors import Refused, Unavailable
from sealserve.files import read_limited, stamp_of, sync_path

__all__ = ["NEXT_CONFIG", "CurrentKek", "make_kek", "open_kek", "settle"]

NEXT_CONFIG: Final = f"{CONFIG_FILE}.next"
"""The configuration that holds once `rekey` has committed."""


def open_kek(config: KekConfig, root: Path) -> KeyEncryptionKey:
    """Open the configured key.

    Args:
        config: which one.
        root: the broker's directory; a key file stands in it.

    Raises:
        Unavailable, Refused: ``kek.*``.
    """
    match config.provider:
        case "file":
            return FileKek.load(root / config.file)
        case "pkcs11":
            return Envelope(_pkcs11(config))
        case "vault":
            from sealserve.broker.kek_vault import VaultWrapper

            wrapper = VaultWrapper(
                config.vault_url,
                config.vault_mount,
                config.vault_key,
                Path(config.vault_token_file),
                ca_file=Path(config.vault_ca_file) if config.vault_ca_file else None,
                namespace=config.vault_namespace,
                timeout_seconds=config.timeout_seconds,
            )
            return Envelope(wrapper)


def make_kek(config: KekConfig, root: Path) -> KeyEncryptionKey:
    """The key of a new broker: a new file, or what HSM or Vault hold already.

    Raises:
        Unavailable, Refused: ``kek.*``: also if it does not give back what it wrapped.
    """
    if config.provider == "file":
        return FileKek.create(root / config.file)
    kek = open_kek(config, root)
    try:
        prove(kek)
    except BaseException:
        kek.close()
        raise
    return kek


def settle(root: Path, store: Store) -> None:
    """Finish a `rekey` that committed and was then interrupted.

    Raises:
        Unavailable, Refused, InputError: as `open_kek` and `config_file.parse`.
    """
    staged = root / NEXT_CONFIG
    if not staged.exists():
        return
    try:
        raw = read_limited(staged, MAX_CONFIG_BYTES)
        kek = open_kek(config_file.parse(raw, where=str(staged)).kek, root)
    except Unavailable as error:
        if error.code == "file.unreadable":
            return  # `rekey` itself has just finished
        raise
    try:
        if kek.id == store.kek_id():
            staged.replace(root / CONFIG_FILE)
            sync_path(root)
    except FileNotFoundError:
        return
    finally:
        kek.close()


class CurrentKek:
    """The `KeyEncryptionKey` under which the database is wrapped now.

    Args:
        root: the broker's directory.
        config: as it was read there.
        store: the database.

    Raises:
        Unavailable, Refused: ``kek.*``.
    """

    def __init__(self, root: Path, config: KekConfig, store: Store) -> None:
        self._root, self._store = root, store
        self._lock = threading.Lock()
        self._stamp = stamp_of(root / CONFIG_FILE)
        self._config = config
        self._kek = open_kek(config, root)
        self._left: list[KeyEncryptionKey] = []

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`; looks whether the configuration was replaced."""
        kek = self._kek
        if stamp_of(self._root / CONFIG_FILE) != self._stamp:
            self._follow(kek)
        return self._kek.id

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.wrap`."""
        return self._kek.wrap(plaintext, name=name, version=version)

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.unwrap`."""
        kek = self._kek
        try:
            return kek.unwrap(wrapped, name=name, version=version)
        except Refused as error:
            if error.code != "kek.unwrap_failed" or not self._follow(kek):
                raise
        return self._kek.unwrap(wrapped, name=name, version=version)

    def close(self) -> None:
        """As `KeyEncryptionKey.close`."""
        with self._lock:
            for kek in (*self._left, self._kek):
                kek.close()
            self._left.clear()

    def _follow(self, used: KeyEncryptionKey) -> bool:
        """Take up the key that is configured now; whether it is another than ``used``."""
        with self._lock:
            if self._kek is not used:
                return True  # another thread did it
            settle(self._root, self._store)
            stamp = stamp_of(self._root / CONFIG_FILE)
            config = config_file.load(self._root).kek
            self._stamp = stamp
            if config == self._config:
                return False
            # Others may be at work with the old one: it is closed at the end.
            self._kek, old = open_kek(config, self._root), self._kek
            self._config = config
            self._left.append(old)
            return True


def _pkcs11(config: KekConfig) -> DataKeyWrapper:
    try:
        from sealserve.broker.kek_pkcs11 import Pkcs11Wrapper
    except ModuleNotFoundError:
        raise Unavailable(
            "kek.driver_missing",
            "the driver for PKCS#11 is not installed",
            hint="pip install 'sealserve[broker,pkcs11]'",
        ) from None
    return Pkcs11Wrapper(
        Path(config.pkcs11_module), config.pkcs11_token, config.pkcs11_key, config.pkcs11_pin_file
    )
