"""The process that closes a kernel mount when its holder is gone.

Device-mapper devices outlive the process that set them up. Started
only by `sealserve.volume.mount`. Arguments: an inherited descriptor, the reading end of a pipe
whose writing end the holder has, and the mount point. The holder that closes in
order removes the mount's state first; then there is nothing to do here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import structlog

from sealserve import logs
from sealserve.errors import SealserveError
from sealserve.volume import state as states
from sealserve.volume.takedown import take_down

__all__ = ["Keeper", "main"]


class Keeper:
    """The holder's side."""

    def __init__(self, mountpoint: Path) -> None:
        """Start the process."""
        reader, self._lifeline = os.pipe()
        command = [sys.executable, "-P", "-m", "sealserve.volume.keeper", str(reader)]
        try:
            self._process = subprocess.Popen(
                [*command, str(mountpoint)],
                pass_fds=[reader],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(reader)

    def close(self) -> None:
        """Let it end; the mount's state is gone."""
        os.close(self._lifeline)
        self._process.wait()


def main(arguments: list[str]) -> int:
    """Wait for the holder's end.

    Args:
        arguments: as the module says.

    Returns:
        The exit status; 1 when something could not be taken down.
    """
    # A signal to the holder's group is for the holder to answer.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lifeline, mountpoint = int(arguments[0]), Path(arguments[1])
    os.read(lifeline, 1)
    if states.abandoned(mountpoint) is None:
        return 0
    logs.configure(program="sealserve volume")
    log = structlog.get_logger("sealserve.volume.keeper")
    try:
        take_down(mountpoint)
    except SealserveError as error:
        log.error("volume_left_open", mountpoint=str(mountpoint), error=str(error))
        return 1
    log.warning("volume_closed", mountpoint=str(mountpoint), reason="its holder is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
