"""The owner's key pair: Ed25519, it signs volume records and nothing else.

The private key never leaves the owner's machine. Everyone who opens a volume
gets the public key by a way of their own (image, policy), never from the host.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealserve.certificates import key_pem
from sealserve.errors import InputError
from sealserve.files import make_directory, read_limited, require_absent, write_atomically

__all__ = ["PRIVATE_NAME", "PUBLIC_NAME", "init_owner", "load_owner_key", "load_owner_public"]

PRIVATE_NAME: Final = "owner.key"
PUBLIC_NAME: Final = "owner.pub"
_MAX_PEM: Final = 4096


def init_owner(directory: Path) -> tuple[Path, Path]:
    """Make a key pair in a directory, which is created if it is not there.

    Args:
        directory: gets ``owner.key`` (PKCS #8 PEM, mode 0600) and ``owner.pub``.

    Returns:
        The two paths, private key first.

    Raises:
        InputError: ``file.exists`` if either file is there: a lost owner key means
            that no volume can be renewed, so it is never overwritten.
        Unavailable: ``file.unwritable``.
    """
    private, public = directory / PRIVATE_NAME, directory / PUBLIC_NAME
    make_directory(directory, mode=0o700)
    require_absent(private)
    require_absent(public)
    key = Ed25519PrivateKey.generate()
    private_pem = key_pem(key)
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomically(private, private_pem, mode=0o600, replace=False)
    write_atomically(public, public_pem, replace=False)
    return private, public


def load_owner_key(path: Path) -> Ed25519PrivateKey:
    """Read an owner's private key.

    Raises:
        InputError: ``owner.key_malformed``; ``owner.key_exposed`` when others may read the file.
        Unavailable: ``file.unreadable``.
    """
    pem = read_limited(path, _MAX_PEM)
    if path.stat().st_mode & 0o077:
        raise InputError(
            "owner.key_exposed",
            "others may read or change this private key",
            where=str(path),
            hint=f"chmod 600 {path}",
        )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            "owner.key_malformed",
            "not an Ed25519 private key in PEM form",
            where=str(path),
            hint="`sealserve owner init DIR` makes one",
        )
    return key


def load_owner_public(path: Path) -> Ed25519PublicKey:
    """Read an owner's public key.

    Raises:
        InputError: ``owner.public_malformed``.
        Unavailable: ``file.unreadable``.
    """
    pem = read_limited(path, _MAX_PEM)
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            "owner.public_malformed", "not an Ed25519 public key in PEM form", where=str(path)
        )
    return key
