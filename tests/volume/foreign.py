"""Volumes as the original's scripts make them: by cryptsetup itself, but without device-mapper."""

from __future__ import annotations

import os
from pathlib import Path

from sealserve.volume.tls_files import make_tls_files
from tests.volume.conftest import MARKER, tool

PASSPHRASE = b'Intel says: \xc3\xa4 "quoted" $pass word'
CIPHER = ("-s", "512", "-c", "aes-xts-plain64")
QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
MIB = 1 << 20
_SHIFT = 32 * MIB  # room for the header, as `reencrypt` wants it; the segment begins at half


def original_tree(root: Path) -> Path:
    """The files of tdx-tf-serving-ppml: a model beside its frozen graph, and a TLS config."""
    model = root / "model" / "resnet"
    (model / "1" / "variables").mkdir(parents=True)
    (model / "1" / "saved_model.pb").write_bytes(MARKER * 99)
    (model / "1" / "variables" / "data").write_bytes(os.urandom(700_001))
    (model / "resnet.pb").write_bytes(os.urandom(9000))
    _make_ssl_config(root / "ssl_configure")
    (root / "ssl_configure" / "ssl.cfg").chmod(0o600)
    (root / "run me.sh").write_text("#!/bin/sh\n")
    (root / "run me.sh").chmod(0o755)
    (root / "ssl_configure" / "to the model").symlink_to("../model/resnet/resnet.pb")
    if os.geteuid() == 0:
        os.chown(root / "run me.sh", 1000, 1000)
    return root


def _make_ssl_config(directory: Path) -> None:
    """As ``generate_ssl_config.sh`` writes it: PEM with all of its base64 in one line."""
    made = make_tls_files("grpc.tf.service.com", directory)

    def one_line(path: Path) -> str:
        begin, *body, end = path.read_text().strip().splitlines()
        return f"{begin}\\n{''.join(body)}\\n{end}"

    made.config.write_text(
        f"server_key: '{one_line(made.key)}'\n"
        f"server_cert: '{one_line(made.certificate)}'\n"
        "client_verify: false\n"
    )


def filesystem(path: Path, source: Path | None, size: int = 12 * MIB, *more: str) -> Path:
    """What ``mkfs.ext4`` makes in the original's scripts: with a journal."""
    given = ("-d", str(source)) if source else ()
    tool("mkfs.ext4", "-q", "-F", *given, *more, str(path), f"{size >> 10}k")
    return path


def encrypted(
    inside: Path, path: Path, *options: str, passphrase: bytes = PASSPHRASE, version: int = 2
) -> Path:
    """A filesystem inside a LUKS volume; LUKS1 by conversion of its header."""
    path.write_bytes(inside.read_bytes() + bytes(_SHIFT))
    key = path.with_suffix(".key")
    key.write_bytes(passphrase)
    tool(
        "cryptsetup", "reencrypt", "--encrypt", "--type=luks2", "--disable-locks", "-q", *CIPHER,
        f"--reduce-device-size={_SHIFT}", f"--key-file={key}", *(options or QUICK), str(path),
    )  # fmt: skip
    if version == 1:
        tool("cryptsetup", "convert", "--type=luks1", "-q", "--disable-locks", str(path))
    os.truncate(path, _SHIFT // 2 + inside.stat().st_size)
    return path
