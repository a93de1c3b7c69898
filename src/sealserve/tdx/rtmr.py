"""The TD's measurement registers by sysfs (Linux 6.16 and newer).

Rules this module keeps:

* An extension is believed only when the register holds what it must hold then:
  ``SHA384(old || digest)``. Another writer in between is therefore noticed.
* Where the kernel does not show the registers, the feature is refused with its
  reason; there is no other way to them, and none is made up.

Source: Linux ``Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest``.
"""

from __future__ import annotations

import errno
from pathlib import Path

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx.attributes import read_attribute, write_attribute
from sealserve.tdx.eventlog import extend

__all__ = ["MEASUREMENTS", "REGISTER_BYTES", "Registers"]

MEASUREMENTS = Path("class/misc/tdx_guest/measurements")
"""Below sysfs: where the kernel shows the registers."""
REGISTER_BYTES = 48


class Registers:
    """MRTD and RTMR0 to RTMR3 of this TD.

    Args:
        sysfs: where sysfs is mounted.
    """

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._directory = sysfs / MEASUREMENTS

    @property
    def available(self) -> bool:
        """Whether the kernel shows the registers."""
        return self._directory.is_dir()

    def read_rtmr(self, index: int) -> bytes:
        """Read run-time measurement register 0, 1, 2 or 3 (48 bytes).

        Raises:
            InputError: ``tdx.rtmr_index``.
            Unavailable: ``tdx.no_rtmr`` or ``tdx.sysfs``.
        """
        if index not in range(4):
            raise InputError("tdx.rtmr_index", f"there is no RTMR{index}, only 0 to 3")
        return self._read(f"rtmr{index}:sha384")

    def read_mrtd(self) -> bytes:
        """Read the measurement of the TD's initial memory (48 bytes).

        Raises:
            Unavailable: ``tdx.no_rtmr`` or ``tdx.sysfs``.
        """
        return self._read("mrtd:sha384")

    def extend_rtmr3(self, digest: bytes) -> None:
        """Extend RTMR3; nothing can undo it until the TD ends.

        Args:
            digest: 48 bytes; the register becomes ``SHA384(old || digest)``.

        Raises:
            InputError: ``tdx.digest_length``.
            Unavailable: ``tdx.no_rtmr``, ``tdx.sysfs`` or ``tdx.extend_failed``.
            Refused: ``tdx.extend_mismatch`` if the register then holds
                something else.
        """
        if len(digest) != REGISTER_BYTES:
            raise InputError(
                "tdx.digest_length",
                f"an RTMR is extended by {REGISTER_BYTES} bytes, not {len(digest)}",
            )
        expected = extend(self.read_rtmr(3), digest)
        path = self._directory / "rtmr3:sha384"
        try:
            # One write at offset 0: the kernel takes exactly 48 bytes or nothing.
            write_attribute(path, digest)
        except FileNotFoundError:
            raise _no_rtmr(path) from None
        except OSError as error:
            raise Unavailable(
                "tdx.extend_failed",
                f"RTMR3 was not extended: {error.strerror}",
                where=str(path),
                hint="extending needs root, and a kernel that lets RTMR3 be written (6.16)",
            ) from None
        actual = self.read_rtmr(3)
        if actual != expected:
            raise Refused(
                "tdx.extend_mismatch",
                f"RTMR3 holds {actual.hex()[:16]}... after the extension, not "
                f"{expected.hex()[:16]}...",
                where=str(path),
                hint="another process extends RTMR3 too, or the kernel did not: reboot the TD "
                "and let one process measure",
            )

    def _read(self, name: str) -> bytes:
        path = self._directory / name
        try:
            value = read_attribute(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise _no_rtmr(path) from None
            raise Unavailable(
                "tdx.sysfs", f"cannot be read: {error.strerror}", where=str(path)
            ) from None
        if len(value) != REGISTER_BYTES:
            raise Unavailable(
                "tdx.sysfs",
                f"holds {len(value)} bytes, a register has {REGISTER_BYTES}",
                where=str(path),
            )
        return value


def _no_rtmr(path: Path) -> Unavailable:
    return Unavailable(
        "tdx.no_rtmr",
        "this kernel does not show the TD's measurement registers",
        where=str(path),
        hint="Linux 6.16 or newer is needed; run-time measurements have no other way",
    )
