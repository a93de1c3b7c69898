"""Quotes by configfs-tsm, the kernel's common interface (Linux 6.7 and newer).

Rules this module keeps:

* One directory for one request, with a name nobody else has, and always removed.
* A configfs write is committed when the file is closed, where its error is
  lost; so the ``generation`` counter must go from 0 to 1. Anything else means
  that the answer may belong to another request, and so does a quote that
  states other report data.
* What a crashed process left behind is removed if it was ours beyond doubt:
  our name, our user, our process-id namespace, and a process that is no more.
* A simulated TD is recognised by its provider text and refused unless the
  caller allows it.

Sources: Linux ``Documentation/ABI/testing/configfs-tsm-report``; Intel TDX
GHCI, "GetQuote".
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path

from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.tdx.attributes import read_attribute, write_attribute
from sealserve.tdx.evidence import (
    PassingTrouble,
    TdxEvidence,
    ask_again,
    check_answer,
    check_report_data,
)
from sealserve.tdx.quote import MAX_QUOTE_BYTES

__all__ = ["PROVIDER", "REPORTS", "SIMULATED_PROVIDER", "ConfigfsProvider"]

PROVIDER = "tdx_guest"
SIMULATED_PROVIDER = "tdx_guest_SIMULATION"
REPORTS = Path("kernel/config/tsm/report")
"""Below sysfs: where requests are made."""

# What the kernel answers while the quoting service is busy, interrupted, slow
# or has failed once. Everything else will not go away by asking again.
_PASSING = frozenset({errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EIO})
# PID namespace, process id, its start time, chance.
_NAME = re.compile(r"sealserve-([0-9]{1,20})-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{16}")
_MAX_LEFTOVERS = 1024  # entries looked at; the rest is left for the next start


class ConfigfsProvider:
    """The kernel's evidence provider.

    Args:
        sysfs: where sysfs is mounted; a simulated TD is a copy of that tree.
        allow_simulation: accept a simulated TD.
        sleep: how to wait between attempts, in seconds.
        proc: where procfs is mounted.
    """

    name = "configfs"

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        *,
        allow_simulation: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        proc: Path = Path("/proc"),
    ) -> None:
        self._reports = sysfs / REPORTS
        self._allow_simulation = allow_simulation
        self._sleep = sleep
        self._proc = proc

    @cached_property
    def simulated(self) -> bool:
        """Whether this is a SIMULATED TD.

        Raises:
            Unavailable: ``tdx.no_configfs``, ``tdx.no_provider``,
                ``tdx.permission``, ``tdx.sysfs`` or ``tdx.quote_failed``.
            Refused: ``tdx.provider`` for a provider that is not TDX, and
                ``tdx.simulation_denied`` unless simulation is allowed.
        """
        self._remove_leftovers()
        return ask_again(self._identify, sleep=self._sleep, where=str(self._reports))

    def collect(self, report_data: bytes) -> TdxEvidence:
        """Make a quote for 64 bytes. On hardware this takes about a second.

        Raises:
            InputError: ``tdx.report_data_length``.
            Unavailable: ``tdx.quote_failed`` after all attempts, and as
                :attr:`simulated`.
            Refused: ``quote.*`` for an answer that is no TDX quote, and as
                :attr:`simulated`.
        """
        check_report_data(report_data)
        _ = self.simulated
        return ask_again(
            lambda: self._ask(report_data), sleep=self._sleep, where=str(self._reports)
        )

    def _identify(self) -> bool:
        with self._request() as request:
            return self._check_provider(request)

    def _ask(self, report_data: bytes) -> TdxEvidence:
        with self._request() as request:
            # Each directory has its provider; a driver may have been replaced.
            self._check_provider(request)
            try:
                before = _generation(request)
                write_attribute(request / "inblob", report_data)
                quote = read_attribute(request / "outblob", MAX_QUOTE_BYTES + 1)
                after = _generation(request)
            except OSError as error:
                raise _failure(error, request) from None
        if (before, after) != (0, 1):
            raise PassingTrouble(
                f"generation went from {before} to {after}: the request was not ours alone"
            )
        # The kernel does not look at the quoting service's status word, so an
        # empty or cut-off answer arrives as a success.
        check_answer(quote, report_data, where=str(self._reports))
        return TdxEvidence(quote)

    @contextmanager
    def _request(self) -> Iterator[Path]:
        """A configfs directory of our own for one request."""
        path = self._reports / self._new_name()
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
            text = read_attribute(request / "provider").decode("ascii", "replace").strip()
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

    def _new_name(self) -> str:
        started = self._started(os.getpid()) or "0"
        return f"sealserve-{self._namespace()}-{os.getpid()}-{started}-{secrets.token_hex(8)}"

    def _remove_leftovers(self) -> None:
        """Best effort: nothing of it may stand in the way of a request."""
        with suppress(OSError), os.scandir(self._reports) as entries:
            for entry in islice(entries, _MAX_LEFTOVERS):
                # It may go away at any moment: another of us cleans up too.
                with suppress(OSError):
                    if self._is_leftover(entry):
                        Path(entry.path).rmdir()

    def _is_leftover(self, entry: os.DirEntry[str]) -> bool:
        found = _NAME.fullmatch(entry.name)
        if found is None or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
        namespace, pid, started = found.groups()
        # Another namespace's process ids say nothing here, and without a start
        # time a process id may have been given to somebody else.
        if "0" in (namespace, started) or namespace != self._namespace():
            return False
        return self._started(int(pid)) != started

    def _namespace(self) -> str:
        try:
            return str((self._proc / "self/ns/pid").stat().st_ino)
        except OSError:
            return "0"

    def _started(self, pid: int) -> str | None:
        """Start time of a process in clock ticks; ``None`` if there is no such process."""
        try:
            text = read_attribute(self._proc / str(pid) / "stat").decode("ascii", "replace")
        except OSError:
            return None
        # Field 22; the second one, a name, may itself hold blanks and brackets.
        fields = text.rpartition(")")[2].split()
        return fields[19] if len(fields) > 19 else None


def _generation(request: Path) -> int:
    text = read_attribute(request / "generation")
    try:
        return int(text)
    except ValueError:
        raise Unavailable(
            "tdx.sysfs", "the generation counter is not a number", where=str(request)
        ) from None


def _failure(error: OSError, path: Path) -> SealserveError | PassingTrouble:
    if error.errno in _PASSING:
        return PassingTrouble(f"{errno.errorcode[error.errno or 0]} ({error.strerror})")
    if error.errno in (errno.EPERM, errno.EACCES):
        return Unavailable(
            "tdx.permission",
            "a quote cannot be asked for as this user",
            where=str(path.parent),
            hint="run as root",
        )
    if error.errno == errno.ENXIO:
        return Unavailable(
            "tdx.no_provider",
            "configfs-tsm is here, but no evidence provider",
            where=str(path),
            hint="load the tdx_guest driver: modprobe tdx_guest",
        )
    return Unavailable("tdx.sysfs", f"the kernel refused: {error.strerror}", where=str(path))
