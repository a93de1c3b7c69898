"""The guest side of TDX on Linux: quotes by configfs-tsm, registers by sysfs.

Rules this module keeps:

* One directory for one request, with a name nobody else has, and always removed.
* A configfs write is committed when the file is closed, where its error is
  lost; so the ``generation`` counter is read before and after, and anything
  but one step means that the answer may belong to another request.
* Passing trouble (a busy or slow quoting service, a short answer) is retried a
  bounded number of times; everything else is an error at once.
* A simulated TD is recognised by its provider text and refused unless the
  caller allows it.

Sources: Linux ``Documentation/ABI/testing/configfs-tsm-report`` and
``sysfs-devices-virtual-misc-tdx_guest``; Intel TDX GHCI, "GetQuote".
"""

from __future__ import annotations

import errno
import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx.quote import MAX_QUOTE_BYTES, MIN_QUOTE_BYTES

__all__ = [
    "BOOT_ID",
    "PROVIDER",
    "SIMULATED_PROVIDER",
    "TdxGuest",
    "read_boot_id",
]

PROVIDER = "tdx_guest"
SIMULATED_PROVIDER = "tdx_guest_SIMULATION"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_REPORT_DATA_BYTES = 64
_REGISTER_BYTES = 48
_ATTEMPTS = 6
_FIRST_PAUSE = 0.05  # seconds, doubled after each attempt: 1.5 s in all
# What the kernel answers while the quoting service is busy, interrupted, slow
# or has failed once. Everything else will not go away by asking again.
_PASSING = frozenset({errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EIO})
_SMALL_FILE = 4096


class _Passing(Exception):
    """Trouble that asking again may cure; the text says what it was."""


class TdxGuest:
    """This machine as a TDX guest.

    Args:
        sysfs: where sysfs is mounted; a simulated TD is a copy of that tree.
        allow_simulation: accept a simulated TD.
        sleep: how to wait between attempts, in seconds.
    """

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        allow_simulation: bool = False,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reports = sysfs / "kernel/config/tsm/report"
        self._measurements = sysfs / "class/misc/tdx_guest/measurements"
        self._allow_simulation = allow_simulation
        self._sleep = sleep

    @cached_property
    def simulated(self) -> bool:
        """Whether this is a SIMULATED TD.

        Raises:
            Unavailable: ``tdx.no_configfs``, ``tdx.no_provider``,
                ``tdx.permission`` or ``tdx.sysfs``.
            Refused: ``tdx.provider`` for a provider that is not TDX, and
                ``tdx.simulation_denied`` unless simulation is allowed.
        """
        with self._request() as request:
            return self._check_provider(request)

    def quote(self, report_data: bytes) -> bytes:
        """Make a quote. On hardware this takes about a second.

        Args:
            report_data: what the quote shall speak for, exactly 64 bytes.

        Returns:
            The quote as the quoting service made it.

        Raises:
            InputError: ``tdx.report_data_length``.
            Unavailable: ``tdx.quote_failed`` after all attempts, and as
                :attr:`simulated`.
            Refused: as :attr:`simulated`.
        """
        if len(report_data) != _REPORT_DATA_BYTES:
            raise InputError(
                "tdx.report_data_length",
                f"report data has {_REPORT_DATA_BYTES} bytes, this {len(report_data)}",
            )
        pause, trouble = _FIRST_PAUSE, ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._sleep(pause)
                pause *= 2
            try:
                with self._request() as request:
                    self._check_provider(request)
                    return _ask(request, report_data)
            except _Passing as passing:
                trouble = str(passing)
        raise Unavailable(
            "tdx.quote_failed",
            f"no quote after {_ATTEMPTS} attempts; the last one ended with: {trouble}",
            where=str(self._reports),
            hint="check the quote generation service (QGS) on the host and its vsock port",
        )

    def read_rtmr(self, index: int) -> bytes:
        """Read run-time measurement register 0, 1, 2 or 3 (48 bytes).

        Raises:
            InputError: ``tdx.rtmr_index``.
            Unavailable: ``tdx.no_rtmr``, and as :attr:`simulated`.
            Refused: as :attr:`simulated`.
        """
        if index not in range(4):
            raise InputError("tdx.rtmr_index", f"there is no RTMR{index}, only 0 to 3")
        return self._read_register(f"rtmr{index}:sha384")

    def read_mrtd(self) -> bytes:
        """Read the measurement of the TD's initial memory (48 bytes).

        Raises:
            Unavailable: ``tdx.no_rtmr``, and as :attr:`simulated`.
            Refused: as :attr:`simulated`.
        """
        return self._read_register("mrtd:sha384")

    def extend_rtmr3(self, digest: bytes) -> None:
        """Extend RTMR3; nothing can undo it until the TD ends.

        Args:
            digest: 48 bytes; the register becomes ``SHA384(old || digest)``.

        Raises:
            InputError: ``tdx.digest_length``.
            Unavailable: ``tdx.no_rtmr`` or ``tdx.extend_failed``, and as
                :attr:`simulated`.
            Refused: as :attr:`simulated`.
        """
        if len(digest) != _REGISTER_BYTES:
            raise InputError(
                "tdx.digest_length", f"an RTMR is extended by 48 bytes, not {len(digest)}"
            )
        self._require_tdx()
        path = self._measurements / "rtmr3:sha384"
        try:
            # One write at offset 0: the kernel takes exactly 48 bytes or nothing.
            _write(path, digest)
        except FileNotFoundError:
            raise _no_rtmr(path) from None
        except OSError as error:
            raise Unavailable(
                "tdx.extend_failed",
                f"RTMR3 was not extended: {error.strerror}",
                where=str(path),
                hint="extending needs root, and a kernel that lets RTMR3 be written (6.16)",
            ) from None

    def _require_tdx(self) -> None:
        """Raise unless this is a TDX guest, and a real one or an allowed simulation."""
        _ = self.simulated

    def _read_register(self, name: str) -> bytes:
        self._require_tdx()
        path = self._measurements / name
        try:
            value = _read(path, _SMALL_FILE)
        except FileNotFoundError:
            raise _no_rtmr(path) from None
        except OSError as error:
            raise Unavailable(
                "tdx.sysfs", f"cannot be read: {error.strerror}", where=str(path)
            ) from None
        if len(value) != _REGISTER_BYTES:
            raise Unavailable(
                "tdx.sysfs", f"holds {len(value)} bytes, a register has 48", where=str(path)
            )
        return value

    @contextmanager
    def _request(self) -> Iterator[Path]:
        """A configfs directory of our own for one request."""
        path = self._reports / f"sealserve-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            path.mkdir()
        except FileNotFoundError:
            raise Unavailable(
                "tdx.no_configfs",
                "this machine has no configfs-tsm",
                where=str(self._reports),
                hint="run inside a TDX guest with Linux 6.7 or newer, CONFIG_TDX_GUEST_DRIVER, "
                "and configfs mounted on /sys/kernel/config",
            ) from None
        except PermissionError:
            raise Unavailable(
                "tdx.permission",
                "a quote cannot be asked for as this user",
                where=str(self._reports),
                hint="run as root",
            ) from None
        except OSError as error:
            raise _failure(error, path) from None
        try:
            yield path
        finally:
            # A directory that stays behind costs kernel memory, no more: it
            # must not hide the result or the error of the request.
            with suppress(OSError):
                path.rmdir()

    def _check_provider(self, request: Path) -> bool:
        try:
            text = _read(request / "provider", _SMALL_FILE).decode("ascii", "replace").strip()
        except OSError as error:
            raise _failure(error, request / "provider") from None
        if text == SIMULATED_PROVIDER:
            if not self._allow_simulation:
                raise Refused(
                    "tdx.simulation_denied",
                    "this is a SIMULATION of a TDX guest",
                    where=str(self._reports),
                    hint="simulated guests are for tests and demos and must be allowed explicitly",
                )
            return True
        if text != PROVIDER:
            raise Refused(
                "tdx.provider",
                f"the evidence provider of this machine is {text[:64]!r}, not {PROVIDER!r}",
                where=str(self._reports),
                hint="sealserve runs in TDX guests only",
            )
        return False


def read_boot_id(path: Path = BOOT_ID) -> bytes:
    """The kernel's random id of this boot, 16 bytes.

    Raises:
        Unavailable: ``tdx.no_boot_id``.
    """
    try:
        return uuid.UUID(_read(path, _SMALL_FILE).decode("ascii").strip()).bytes
    except (OSError, ValueError):
        raise Unavailable(
            "tdx.no_boot_id",
            "the kernel's boot id cannot be read",
            where=str(path),
            hint="mount /proc",
        ) from None


def _ask(request: Path, report_data: bytes) -> bytes:
    try:
        before = _generation(request)
        _write(request / "inblob", report_data)
        quote = _read(request / "outblob", MAX_QUOTE_BYTES + 1)
        after = _generation(request)
    except OSError as error:
        raise _failure(error, request) from None
    if after != before + 1:
        raise _Passing(f"generation went from {before} to {after}: the request was not ours alone")
    # The kernel does not look at the quoting service's status word, so an
    # empty or cut-off answer arrives as a success.
    if len(quote) < MIN_QUOTE_BYTES:
        raise _Passing(f"an answer of {len(quote)} bytes, too short for a quote")
    if len(quote) > MAX_QUOTE_BYTES:
        raise Unavailable(
            "tdx.quote_failed",
            f"the quoting service answered with more than {MAX_QUOTE_BYTES} bytes",
            where=str(request),
        )
    return quote


def _generation(request: Path) -> int:
    text = _read(request / "generation", _SMALL_FILE)
    try:
        return int(text)
    except ValueError:
        raise Unavailable(
            "tdx.sysfs", "the generation counter is not a number", where=str(request)
        ) from None


def _failure(error: OSError, path: Path) -> Exception:
    if error.errno in _PASSING:
        return _Passing(f"{errno.errorcode[error.errno or 0]} ({error.strerror})")
    if error.errno == errno.ENXIO:
        return Unavailable(
            "tdx.no_provider",
            "configfs-tsm is here, but no evidence provider",
            where=str(path),
            hint="load the tdx_guest driver: modprobe tdx_guest",
        )
    return Unavailable("tdx.sysfs", f"the kernel refused: {error.strerror}", where=str(path))


def _no_rtmr(path: Path) -> Unavailable:
    return Unavailable(
        "tdx.no_rtmr",
        "this kernel does not show the TD's measurement registers",
        where=str(path),
        hint="Linux 6.16 or newer is needed; run-time measurements have no other way",
    )


def _read(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes; sizes that sysfs reports mean nothing."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while limit > 0 and (part := os.read(file, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(file)


def _write(path: Path, data: bytes) -> None:
    """All of ``data`` in one write: an attribute takes it whole or not."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.EIO, "short write")
    finally:
        os.close(file)
