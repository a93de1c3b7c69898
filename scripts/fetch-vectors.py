#!/usr/bin/env python3
"""Fetch the public test vectors named in tests/vectors_manifest.json.

Each file comes from its public repository at a fixed commit and is kept only
if its SHA-256 is the manifest's. Files that are there already are left alone.
Needs nothing but Python.

    scripts/fetch-vectors.py [DIRECTORY]     default: ../shared/vectors
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "tests" / "vectors_manifest.json"
LIMIT = 4 << 20
TIMEOUT = 30


def main(arguments: list[str]) -> int:
    """Fetch what is missing; 0 if all are there and right."""
    directory = Path(arguments[0]) if arguments else ROOT.parent / "shared" / "vectors"
    fetched = 0
    for entry in json.loads(MANIFEST.read_text())["files"]:
        target = directory / entry["file"]
        if target.exists() and digest_of(target.read_bytes()) == entry["sha256"]:
            continue
        address = raw_address(entry)
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310 - https
                content = answer.read(LIMIT)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            print(f"fetch-vectors: cannot reach {address}: {reason}", file=sys.stderr)
            return 1
        if digest_of(content) != entry["sha256"]:
            print(f"fetch-vectors: {address} is not the file of the manifest", file=sys.stderr)
            return 1
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(target)
        fetched += 1
        print(f"fetched {entry['file']}")
    print(f"all vectors are in {directory} ({fetched} new)")
    return 0


def raw_address(entry: dict[str, str]) -> str:
    """Where GitHub serves one file of one commit."""
    base = entry["repository"].replace("https://github.com/", "https://raw.githubusercontent.com/")
    return f"{base}/{entry['commit']}/{entry['path']}"


def digest_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
