"""The one tree of errors that sealserve raises on purpose.

Rules this module keeps:

* Every error carries a *stable code* (``"tcb.out_of_date"``): lower case, a
  family and a name, never renamed once released. Scripts match on the code;
  the sentence beside it may be improved at any time. ``docs/errors.md`` lists
  them all and a test compares that list with the source.
* Every error says what happened, where, and what to do next. No error text
  ever carries key bytes, tensors or other secrets.
* The class says *who has to act*, and so decides the process's exit status:

  ==================  ====  ==================================================
  class               exit  meaning
  ==================  ====  ==================================================
  ``InputError``         2  what the user or a peer gave is malformed
  ``Refused``            3  well-formed, but not trusted: the answer is no
  ``Unavailable``        4  a device, program, package, peer or file is missing
  ``InternalError``     70  sealserve itself is wrong; please report it
  ==================  ====  ==================================================
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = ["InputError", "InternalError", "Refused", "SealserveError", "Unavailable"]

_CODE = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*(?:\.[a-z0-9]+(?:_[a-z0-9]+)*)+")


class SealserveError(Exception):
    """Base of every error raised on purpose.

    Args:
        code: stable dotted code, family first (``"quote.too_large"``).
        message: one sentence: what happened, with the value that was wrong.
        where: the file, address, flag or field at fault, if there is one.
        hint: what the reader should do next, if it is not obvious.
    """

    exit_status: ClassVar[int] = 1

    def __init__(
        self, code: str, message: str, *, where: str | None = None, hint: str | None = None
    ) -> None:
        if not _CODE.fullmatch(code):
            raise ValueError(f"not an error code: {code!r}")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.message}{advice} [{self.code}]"

    def to_dict(self) -> dict[str, str]:
        """The error as a JSON object, for ``--json`` and structured logs."""
        fields = {
            "code": self.code,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
        }
        return {name: value for name, value in fields.items() if value is not None}


class InputError(SealserveError):
    """A file, flag, message or document is malformed, too large or out of range."""

    exit_status = 2


class Refused(SealserveError):
    """A trust decision came out as no: nothing was released, opened or sent."""

    exit_status = 3


class Unavailable(SealserveError):
    """Something this operation needs is not here: a device, program, package or peer."""

    exit_status = 4


class InternalError(SealserveError):
    """An invariant of sealserve's own was broken."""

    exit_status = 70
