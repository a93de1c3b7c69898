"""Add a release to a policy file without touching its other lines.

Rules this module keeps: comments, order and spelling of the file stay; the
result is read back and is the old policy with one release more, or nothing is
changed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import yaml

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy, Release
from sealserve.errors import InputError
from sealserve.files import read_limited, write_atomically

__all__ = ["append_release"]

_RELEASES: Final = "releases"


def append_release(path: Path, release: Release) -> Policy:
    """Add a release to a policy file.

    Args:
        path: a policy file; replaced whole.
        release: with a label that is not in it.

    Returns:
        The policy as it is now.

    Raises:
        InputError: ``policy.malformed``, ``policy.cannot_append``,
            ``file.too_large``.
        Unavailable: ``file.unreadable``, ``file.unwritable``.
    """
    old = policy_file.load(path)
    if release.label in (each.label for each in old.releases):
        raise InputError(
            "policy.cannot_append",
            f"there is a release {release.label!r} in it already",
            where=str(path),
            hint="give another --label",
        )
    new = replace(old, releases=(*old.releases, release))
    raw = read_limited(path, policy_file.MAX_POLICY_BYTES)
    content = _inserted(raw.decode(), release).encode()
    if not _reads_as(content, new):
        raise InputError(
            "policy.cannot_append",
            "its releases are not written as a list with one `- label:` for each",
            where=str(path),
            hint="write a new file with --output, or add the release by hand",
        )
    write_atomically(path, content)
    return new


def _inserted(text: str, release: Release) -> str:
    """The text with the release behind the last one; whether that is right is seen afterwards."""
    root = yaml.compose(text, yaml.SafeLoader)
    entries = {key.value: value for key, value in root.value} if root else {}
    found = entries.get(_RELEASES)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if found is None:
        return "".join([*lines, f"{_RELEASES}:\n", *_written(release, 0)])
    if not isinstance(found, yaml.SequenceNode) or not found.value:
        return text
    last = found.value[-1]
    at = max(_last_line(node) for _, node in last.value) + 1
    indent = last.start_mark.column - len("- ")
    return "".join([*lines[:at], *_written(release, indent), *lines[at:]])


def _last_line(node: yaml.Node) -> int:
    return int(node.end_mark.line)


def _written(release: Release, indent: int) -> list[str]:
    fields = {name: value for name, value in asdict(release).items() if value is not None}
    lines = yaml.safe_dump([fields], sort_keys=False, width=200).splitlines(keepends=True)
    return [" " * max(indent, 0) + line for line in lines]


def _reads_as(content: bytes, wanted: Policy) -> bool:
    try:
        return policy_file.parse(content) == wanted
    except InputError:
        return False
