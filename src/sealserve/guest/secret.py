"""``sealserve get-secret``: one secret, for an attested guest's script.

Rules this module keeps: the secret goes to one descriptor and is wiped; a
terminal gets none unless it is asked for; nothing else is written there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sealserve.address import Address
from sealserve.broker.client import request_release
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import InputError, Unavailable
from sealserve.guest.evidence import quotes_of
from sealserve.tdx.detect import Choice, find
from sealserve.tdx.guest import TdxGuest, read_boot_id

__all__ = ["SecretRequest", "write_secret"]


@dataclass(frozen=True, slots=True)
class SecretRequest:
    """What to ask whom for; nothing of it is secret.

    Attributes:
        name: the resource.
        broker: where the broker listens.
        identity: its public document: whom to believe.
        version: of the secret, where two are live; 0 for the current one.
        provider: the way to evidence.
        sysfs: the root of the kernel's TDX interfaces.
        allow_simulation: accept a simulated TD below ``sysfs``.
    """

    name: str
    broker: Address
    identity: BrokerIdentity
    version: int = 0
    provider: Choice = Choice.AUTO
    sysfs: Path = Path("/sys")
    allow_simulation: bool = False


def write_secret(request: SecretRequest, descriptor: int, *, terminal: bool = False) -> None:
    """Attest, get the secret, and write its bytes to a descriptor: no newline, nothing else.

    Args:
        request: what to ask whom for.
        descriptor: usually 1; asked to be no terminal.
        terminal: let it be one.

    Raises:
        InputError: ``secret.to_terminal``, ``resource.name_invalid``.
        Refused, Unavailable: as `request_release`; ``guest.evidence_unsupported``,
            ``tsm.*``; ``secret.unwritten``.
    """
    if os.isatty(descriptor) and not terminal:
        raise InputError(
            "secret.to_terminal",
            "a terminal would show the secret and keep it",
            hint="pipe it to the program that needs it, or say --terminal",
        )
    found = find(request.provider, request.sysfs, allow_simulation=request.allow_simulation)
    td = TdxGuest(request.sysfs, request.allow_simulation, provider=quotes_of(found.provider))
    released = request_release(
        str(request.broker),
        request.identity,
        request.name,
        td.quote,
        read_boot_id(),
        secret_version=request.version,
    )
    try:
        rest = memoryview(released.secret)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        rest.release()
    except OSError as error:
        raise Unavailable(
            "secret.unwritten", f"nobody takes the secret: {error.strerror}"
        ) from None
    finally:
        released.wipe()
