"""A token in SoftHSM2, for tests; configured by SOFTHSM2_CONF for the whole process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MODULES = tuple(
    Path(place)
    for place in (
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
    )
)
TOKEN = "broker"
KEY = "sealserve kek"
PIN = "PLANTED-PIN-2468"


def find_module() -> Path | None:
    """Where Debian and others keep the library."""
    return next((module for module in MODULES if module.exists()), None)


def make_token(module: Path, place: Path) -> None:
    """A token with one fit key, a second one, one that is extractable and a short one."""
    tokens = place / "tokens"
    tokens.mkdir()
    (place / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(place / "softhsm2.conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", TOKEN]
    subprocess.run(
        [*command, "--so-pin", "12345678", "--pin", PIN], check=True, capture_output=True
    )
    import pkcs11
    from pkcs11 import Attribute, KeyType, MechanismFlag

    flags = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
    with (
        pkcs11.lib(str(module)).get_token(token_label=TOKEN).open(user_pin=PIN, rw=True) as session
    ):
        for label, bits, extractable in (
            (KEY, 256, False), ("second", 256, False), ("open", 256, True), ("short", 128, False),
        ):  # fmt: skip
            session.generate_key(
                KeyType.AES, bits, label=label, store=True, capabilities=flags,
                template={Attribute.SENSITIVE: not extractable, Attribute.EXTRACTABLE: extractable},
            )  # fmt: skip
