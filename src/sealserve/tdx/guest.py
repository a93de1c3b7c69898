"""This machine as a TDX guest: its quotes and its registers.

The ways to them are :mod:`~sealserve.tdx.configfs` and
:mod:`~sealserve.tdx.qgs` for quotes, :mod:`~sealserve.tdx.rtmr` for registers.

Rules this module keeps:

* Nothing is read or extended before it is known that this is a TDX guest, and
  a real one or an allowed simulation.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from sealserve.errors import Unavailable
from sealserve.tdx.attributes import read_attribute
from sealserve.tdx.configfs import PROVIDER, SIMULATED_PROVIDER, ConfigfsProvider
from sealserve.tdx.evidence import QuoteProvider
from sealserve.tdx.rtmr import Registers

__all__ = [
    "BOOT_ID",
    "PROVIDER",
    "SIMULATED_PROVIDER",
    "TdxGuest",
    "read_boot_id",
]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TdxGuest:
    """This machine as a TDX guest.

    Args:
        sysfs: where sysfs is mounted; a simulated TD is a copy of that tree.
        allow_simulation: accept a simulated TD.
        provider: the way to quotes; configfs-tsm below ``sysfs`` if none is given.
        sleep: how to wait between attempts, in seconds.
    """

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        allow_simulation: bool = False,
        *,
        provider: QuoteProvider | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._provider: QuoteProvider = provider or ConfigfsProvider(
            sysfs, allow_simulation=allow_simulation, sleep=sleep
        )
        self._registers = Registers(sysfs)

    @property
    def simulated(self) -> bool:
        """Whether this is a SIMULATED TD.

        Raises:
            Unavailable: ``tdx.no_configfs``, ``tdx.no_provider``,
                ``tdx.permission`` or ``tdx.sysfs``.
            Refused: ``tdx.provider`` for a provider that is not TDX, and
                ``tdx.simulation_denied`` unless simulation is allowed.
        """
        return self._provider.simulated

    def quote(self, report_data: bytes) -> bytes:
        """Make a quote. On hardware this takes about a second.

        Args:
            report_data: what the quote shall speak for, exactly 64 bytes.

        Returns:
            The quote as the quoting service made it; it states ``report_data``.

        Raises:
            InputError: ``tdx.report_data_length``.
            Unavailable: ``tdx.quote_failed`` after all attempts, and as
                :attr:`simulated`.
            Refused: as :attr:`simulated`.
        """
        return self._provider.collect(report_data).quote

    def read_rtmr(self, index: int) -> bytes:
        """As :meth:`Registers.read_rtmr <sealserve.tdx.rtmr.Registers.read_rtmr>`."""
        self._require_tdx()
        return self._registers.read_rtmr(index)

    def read_mrtd(self) -> bytes:
        """As :meth:`Registers.read_mrtd <sealserve.tdx.rtmr.Registers.read_mrtd>`."""
        self._require_tdx()
        return self._registers.read_mrtd()

    def extend_rtmr3(self, digest: bytes) -> None:
        """As :meth:`Registers.extend_rtmr3 <sealserve.tdx.rtmr.Registers.extend_rtmr3>`."""
        self._require_tdx()
        self._registers.extend_rtmr3(digest)

    def _require_tdx(self) -> None:
        """Raise unless this is a TDX guest, and a real one or an allowed simulation."""
        _ = self.simulated


def read_boot_id(path: Path = BOOT_ID) -> bytes:
    """The kernel's random id of this boot, 16 bytes.

    Raises:
        Unavailable: ``tdx.no_boot_id``.
    """
    try:
        return uuid.UUID(read_attribute(path).decode("ascii").strip()).bytes
    except (OSError, ValueError):
        raise Unavailable(
            "tdx.no_boot_id",
            "the kernel's boot id cannot be read",
            where=str(path),
            hint="mount /proc",
        ) from None
