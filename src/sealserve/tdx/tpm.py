"""Three commands of a TPM 2.0: define, write and read an NV index as the owner.

That is all an Azure guest needs of its vTPM, so it is spoken here directly:
bytes to ``/dev/tpmrm0``, bytes back, without a TPM software stack. The owner's
authorisation is the empty password, as Azure delivers its vTPMs.

Source: TCG TPM 2.0 Library, part 2 (structures) and part 3 (commands). All
integers are big-endian.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from sealserve.errors import InputError, Unavailable
from sealserve.tdx.evidence import PassingTrouble

__all__ = ["DEVICE", "NvIndex", "Transmit", "device_transmit"]

DEVICE = Path("/dev/tpmrm0")

Transmit = Callable[[bytes], bytes]
"""Sends one command and gives the whole response."""

_MAX_RESPONSE = 4096
_CHUNK = 512  # bytes in one NV command; every PC Client TPM takes that many
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_OWNER = 0x40000001
# A password session with an empty password: its handle, no nonce, no attributes, no secret.
_EMPTY_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
_HEADER = struct.Struct(">HII")  # tag, size, command or response code
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")

_NV_DEFINE_SPACE = 0x0000012A
_NV_WRITE = 0x00000137
_NV_READ = 0x0000014E
_NV_READ_PUBLIC = 0x00000169

_SHA256 = 0x000B
_OWNER_WRITE, _OWNER_READ, _NO_LOCKOUT = 1 << 1, 1 << 17, 1 << 25

_RC_NV_DEFINED = 0x14C
_RC_FIRST_HANDLE = 0x18B  # TPM_RC_HANDLE for the first handle: no such index
_PASSING = frozenset({0x908, 0x90A, 0x920, 0x922})  # yielded, testing, NV rate, retry


class NvIndex:
    """One NV index of a TPM, used with the owner's empty authorisation.

    Args:
        transmit: the way to the TPM.
        index: its handle (``0x01400001``).
    """

    def __init__(self, transmit: Transmit, index: int) -> None:
        self._transmit = transmit
        self._index = index

    def size(self) -> int | None:
        """Bytes it holds; ``None`` if it is not defined.

        Raises:
            Unavailable: ``tdx.tpm`` or ``tdx.tpm_refused``.
            InputError: ``tdx.tpm_malformed``.
            PassingTrouble: the TPM is busy.
        """
        body = self._run(
            _NV_READ_PUBLIC, _U32.pack(self._index), b"", sessions=False, allow=_RC_FIRST_HANDLE
        )
        if body is None:
            return None
        public = _sized(body, 0)
        if len(public) < 12 or _U32.unpack_from(public)[0] != self._index:
            raise _malformed("the public area of another NV index")
        # Index, hash algorithm, attributes, then a policy of its own length.
        policy = _sized(public, 10)
        return int(_U16.unpack(_exactly(public[12 + len(policy) :], _U16.size))[0])

    def define(self, size: int) -> None:
        """Make it, for the owner to write and read; one that is there already is left alone.

        Raises:
            Unavailable, InputError, PassingTrouble: as :meth:`size`.
        """
        attributes = _OWNER_WRITE | _OWNER_READ | _NO_LOCKOUT
        public = struct.pack(">IHIHH", self._index, _SHA256, attributes, 0, size)
        parameters = _U16.pack(0) + _U16.pack(len(public)) + public
        self._run(_NV_DEFINE_SPACE, _U32.pack(_OWNER), parameters, allow=_RC_NV_DEFINED)

    def write(self, data: bytes) -> None:
        """Write from its beginning.

        Raises:
            Unavailable, InputError, PassingTrouble: as :meth:`size`.
        """
        for offset in range(0, len(data), _CHUNK):
            part = data[offset : offset + _CHUNK]
            parameters = _U16.pack(len(part)) + part + _U16.pack(offset)
            self._run(_NV_WRITE, struct.pack(">II", _OWNER, self._index), parameters)

    def read(self, size: int) -> bytes:
        """Its first ``size`` bytes.

        Raises:
            Unavailable, InputError, PassingTrouble: as :meth:`size`.
        """
        content = b""
        while len(content) < size:
            wanted = min(_CHUNK, size - len(content))
            body = self._run(
                _NV_READ,
                struct.pack(">II", _OWNER, self._index),
                struct.pack(">HH", wanted, len(content)),
            )
            part = _sized(body or b"", 0)
            if len(part) != wanted:
                raise _malformed(f"{len(part)} bytes of an NV index, {wanted} were asked for")
            content += part
        return content

    def _run(
        self,
        command: int,
        handles: bytes,
        parameters: bytes,
        *,
        sessions: bool = True,
        allow: int = 0,
    ) -> bytes | None:
        """The parameters of the response; ``None`` for the response code that is allowed."""
        rest = handles + (_EMPTY_PASSWORD if sessions else b"") + parameters
        tag = _SESSIONS if sessions else _NO_SESSIONS
        response = self._transmit(_HEADER.pack(tag, _HEADER.size + len(rest), command) + rest)
        if len(response) < _HEADER.size:
            raise _malformed(f"{len(response)} bytes")
        answered, size, code = _HEADER.unpack_from(response)
        if size != len(response):
            raise _malformed(f"{len(response)} bytes that say they are {size}")
        if code in _PASSING:
            raise PassingTrouble(f"the TPM answered {code:#x}")
        if code and code == allow:
            return None
        if code:
            raise Unavailable(
                "tdx.tpm_refused",
                f"the TPM refused command {command:#x} on NV index {self._index:#x}: {code:#x}",
                hint="the owner's authorisation must be empty, as Azure delivers its vTPMs",
            )
        if answered != tag:
            raise _malformed(f"tag {answered:#x}")
        body = response[_HEADER.size :]
        if not sessions:
            return body
        (length,) = _U32.unpack(_exactly(body[: _U32.size], _U32.size))
        return _exactly(body[_U32.size : _U32.size + length], length)


def device_transmit(device: Path = DEVICE) -> Transmit:
    """The kernel's TPM device, opened for each command.

    Raises:
        Unavailable: ``tdx.tpm``, when it is used.
        PassingTrouble: when it is used and the device is busy.
    """

    def transmit(command: bytes) -> bytes:
        try:
            file = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.write(file, command) != len(command):
                    raise OSError(errno.EIO, "short write")
                return os.read(file, _MAX_RESPONSE)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EINTR, errno.ETIME):
                raise PassingTrouble(f"the TPM device: {error.strerror}") from None
            raise Unavailable(
                "tdx.tpm",
                f"the TPM cannot be used: {error.strerror}",
                where=str(device),
                hint="run as root, on a guest with a vTPM",
            ) from None

    return transmit


def _sized(data: bytes, at: int) -> bytes:
    """A field that stands behind its u16 length."""
    (size,) = _U16.unpack(_exactly(data[at : at + _U16.size], _U16.size))
    start = at + _U16.size
    return _exactly(data[start : start + size], size)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise _malformed(f"{len(data)} bytes where {size} belong")
    return data


def _malformed(message: str) -> InputError:
    return InputError("tdx.tpm_malformed", f"the TPM answered {message}")
