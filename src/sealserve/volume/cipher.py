"""AES-256-XTS over disk sectors, as dm-crypt's ``aes-xts-plain64`` does it.

Rules this module keeps:

* The tweak of a sector is its number counted in units of 512 bytes, little
  endian, whatever the sector size (kernel: ``drivers/md/crypt``, plain64).
* Work is done in place, so that plaintext and ciphertext exist once.
* OpenSSL's EVP interface is called directly: `cryptography` makes a new cipher
  object for each sector, which costs more than the sector itself (measured:
  2.3 GB/s against 0.9). Where libcrypto cannot be loaded by itself,
  `cryptography` does the work; the results are the same bytes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import threading
from typing import Final, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sealserve.errors import InternalError

__all__ = ["XTS_KEY_SIZE", "SectorCipher", "sector_cipher", "wipe"]

XTS_KEY_SIZE: Final = 64
"""Bytes: two AES-256 keys."""

_TWEAK_UNIT: Final = 512


class SectorCipher(Protocol):
    """A keyed cipher over sectors of one size; safe to use from several threads."""

    def decrypt(self, buffer: bytearray, offset: int) -> None:
        """Decrypt whole sectors in place; ``offset`` is the first one's byte address."""

    def encrypt(self, buffer: bytearray, offset: int) -> None:
        """Encrypt whole sectors in place; ``offset`` is the first one's byte address."""

    def close(self) -> None:
        """Forget the key. The object must not be used afterwards."""


def sector_cipher(
    key: bytes | bytearray, sector_size: int, *, portable: bool = False
) -> SectorCipher:
    """Make a cipher.

    Args:
        key: `XTS_KEY_SIZE` bytes; the caller wipes its own copy.
        sector_size: 512 (keyslot areas) or 4096 (our segments).
        portable: use `cryptography` even where libcrypto can be loaded.
    """
    if len(key) != XTS_KEY_SIZE or sector_size not in (512, 4096):
        raise InternalError("volume.cipher_misused", "key or sector size that XTS does not take")
    library = None if portable else _load_libcrypto()
    return _Evp(library, key, sector_size) if library else _Portable(key, sector_size)


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer that held a secret."""
    buffer[:] = bytes(len(buffer))


def _load_libcrypto() -> ctypes.PyDLL | None:
    # PyDLL keeps the interpreter lock during a call: a sector takes about a
    # microsecond, letting go of the lock and taking it again costs as much.
    if sys.byteorder != "little":  # `_Evp` writes the tweak as a machine number
        return None
    for name in ("libcrypto.so.3", ctypes.util.find_library("crypto")):
        try:
            library = ctypes.PyDLL(name) if name else None
            if library is not None:
                return _declare(library)
        except (OSError, AttributeError):
            continue
    return None


def _declare(library: ctypes.PyDLL) -> ctypes.PyDLL:
    # Of the functions called for every sector only the results are declared:
    # converting each argument anew would cost a third of the speed, so they get
    # ready-made ctypes objects.
    pointer = ctypes.c_void_p
    library.EVP_CIPHER_CTX_new.restype = pointer
    library.EVP_CIPHER_CTX_free.argtypes = [pointer]
    library.EVP_CIPHER_CTX_free.restype = None
    library.EVP_aes_256_xts.restype = pointer
    for function in (library.EVP_CipherInit_ex, library.EVP_CipherUpdate):
        function.restype = ctypes.c_int
    return library


class _Evp:
    """libcrypto through ctypes: one context per direction, re-tweaked for each sector."""

    def __init__(self, library: ctypes.PyDLL, key: bytes | bytearray, sector_size: int) -> None:
        self._library = library
        self._sector_size = sector_size
        self._tweak = (ctypes.c_uint64 * 2)()
        self._written = ctypes.c_int()
        self._lock = threading.Lock()
        own = bytearray(key)
        memory = (ctypes.c_char * len(own)).from_buffer(own)
        xts = ctypes.c_void_p(library.EVP_aes_256_xts())
        self._contexts: dict[int, ctypes.c_void_p] = {}
        for direction in (0, 1):
            self._contexts[direction] = context = ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
            ready = library.EVP_CipherInit_ex(context, xts, None, memory, None, direction)
            if ready != 1:
                raise InternalError("volume.cipher_failed", "OpenSSL refused the XTS key")
        wipe(own)

    def decrypt(self, buffer: bytearray, offset: int) -> None:
        self._crypt(buffer, offset, 0)

    def encrypt(self, buffer: bytearray, offset: int) -> None:
        self._crypt(buffer, offset, 1)

    def close(self) -> None:
        with self._lock:
            while self._contexts:  # freeing a context also cleanses its key schedule
                self._library.EVP_CIPHER_CTX_free(self._contexts.popitem()[1])

    def _crypt(self, buffer: bytearray, offset: int, direction: int) -> None:
        size, length = self._sector_size, len(buffer)
        _require_whole_sectors(offset, length, size)
        if length == 0:
            return
        # Bound to locals: this loop runs for every 4 KiB that is read.
        initialise, update = self._library.EVP_CipherInit_ex, self._library.EVP_CipherUpdate
        tweak, written = ctypes.byref(self._tweak), ctypes.byref(self._written)
        memory = ctypes.c_char.from_buffer(buffer)  # keeps the buffer where it is
        start = ctypes.addressof(memory)
        sector, step = ctypes.c_void_p(), size // _TWEAK_UNIT
        with self._lock:
            context, number = self._contexts[direction], self._tweak
            number[0] = offset // _TWEAK_UNIT
            for at in range(start, start + length, size):
                sector.value = at
                if (
                    initialise(context, None, None, None, tweak, -1) != 1
                    or update(context, sector, written, sector, size) != 1
                ):
                    raise InternalError("volume.cipher_failed", "OpenSSL failed on a sector")
                number[0] += step


class _Portable:
    """The same through `cryptography`."""

    def __init__(self, key: bytes | bytearray, sector_size: int) -> None:
        self._algorithm = algorithms.AES(bytes(key))
        self._sector_size = sector_size

    def decrypt(self, buffer: bytearray, offset: int) -> None:
        self._crypt(buffer, offset, encrypt=False)

    def encrypt(self, buffer: bytearray, offset: int) -> None:
        self._crypt(buffer, offset, encrypt=True)

    def close(self) -> None:
        del self._algorithm

    def _crypt(self, buffer: bytearray, offset: int, *, encrypt: bool) -> None:
        size = self._sector_size
        _require_whole_sectors(offset, len(buffer), size)
        for at in range(0, len(buffer), size):
            tweak = ((offset + at) // _TWEAK_UNIT).to_bytes(16, "little")
            cipher = Cipher(self._algorithm, modes.XTS(tweak))
            worker = cipher.encryptor() if encrypt else cipher.decryptor()
            buffer[at : at + size] = worker.update(bytes(buffer[at : at + size]))


def _require_whole_sectors(offset: int, length: int, size: int) -> None:
    if offset % size or length % size:
        raise InternalError("volume.cipher_misused", "not whole sectors")
