"""The guest's root filesystem: this Python, this package and the programs it calls.

Everything stands at the path it has on the host, so nothing has to be told where
it is; only the Python packages come together in `SITE`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SITE = Path("/site")
MODULES = Path("/modules")

_STANDARD_LIBRARY = ("stdlib", "platstdlib")
TOOL_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# Parts of the standard library that nothing in the guest imports; half of its size.
_LEFT_OUT_DIRECTORIES = re.compile(
    r"test|tests|idlelib|tkinter|ensurepip|lib2to3|turtledemo|pydoc_data|config-.*|"
    r"site-packages|dist-packages|__pycache__"
)
_LEFT_OUT_FILES = re.compile(r"_(test|tkinter|sqlite3|curses).*\.so")


class Initramfs:
    """A root filesystem in the making."""

    def __init__(self) -> None:
        self._entries: dict[Path, Path | bytes | str] = {}  # a file, its content, or a link
        self._programs: set[Path] = set()
        for name in ("/bin", "/sbin", "/lib", "/lib64"):
            if Path(name).is_symlink():
                self._entries[Path(name)] = str(Path(name).readlink())

    def add_content(self, target: Path, content: bytes) -> None:
        """A file that the host does not have."""
        self._entries[target] = content

    def add_tool(self, name: str) -> None:
        """A program from the host's PATH; FileNotFoundError when it has none."""
        found = shutil.which(name, path=TOOL_PATH)
        if found is None:
            raise FileNotFoundError(name)
        self._add_binary(Path(found))

    def add_python(self) -> Path:
        """The interpreter and its standard library; returns the interpreter's path."""
        python = Path(sys.executable).resolve()
        self._add_binary(python)
        for library in {Path(sysconfig.get_path(name)).resolve() for name in _STANDARD_LIBRARY}:
            self.add_tree(library, library)
        return python

    def add_distributions(self, *names: str) -> None:
        """Installed Python distributions with all that they require."""
        wanted, done = list(names), set()
        while wanted:
            found = metadata.distribution(wanted.pop())
            name = canonicalize_name(found.metadata["Name"])
            if name in done:
                continue
            done.add(name)
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    self._add_file(Path(str(found.locate_file(file))), SITE / file)
            needs = map(Requirement, found.requires or ())
            wanted += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]

    def add_tree(self, source: Path, target: Path) -> None:
        """A directory with what is in it, but for the parts that no guest needs."""
        for directory, below, names in os.walk(source):
            below[:] = [name for name in below if not _LEFT_OUT_DIRECTORIES.fullmatch(name)]
            inside = target / Path(directory).relative_to(source)
            for name in names:
                if not _LEFT_OUT_FILES.fullmatch(name):
                    self._add_file(Path(directory, name), inside / name)

    def write(self, file: IO[bytes]) -> None:
        """Write a cpio archive of format "newc".

        As in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
        """
        self._add_libraries()
        made: set[Path] = set()
        for target, source in self._entries.items():
            for parent in reversed(target.parents[:-1]):
                if parent not in made and parent not in self._entries:
                    made.add(parent)
                    _write_entry(file, parent, stat.S_IFDIR | 0o755, b"")
            if isinstance(source, str):
                _write_entry(file, target, stat.S_IFLNK | 0o777, source.encode())
            elif isinstance(source, bytes):
                _write_entry(file, target, stat.S_IFREG | 0o755, source)
            else:
                # Python takes a .pyc only beside a source of the time written in it.
                when = int(source.stat().st_mtime)
                _write_entry(file, target, stat.S_IFREG | 0o755, source.read_bytes(), when)
        _write_entry(file, Path("/TRAILER!!!"), 0, b"")

    def _add_file(self, source: Path, target: Path) -> None:
        self._entries[target] = source
        if source.suffix == ".py":
            compiled = Path(importlib.util.cache_from_source(str(source)))
            if compiled.exists():
                self._entries[target.parent / "__pycache__" / compiled.name] = compiled
        elif ".so" in source.name:
            self._programs.add(source)

    def _add_binary(self, path: Path) -> None:
        self._entries[path.parent.resolve() / path.name] = path.resolve()
        self._programs.add(path)

    def _add_libraries(self) -> None:
        listing = subprocess.run(
            ["ldd", *sorted(self._programs)], capture_output=True, text=True, check=False
        ).stdout
        for name in set(re.findall(r"(/\S+) \(0x", listing)):
            library = Path(name)
            self._entries.setdefault(library.parent.resolve() / library.name, library.resolve())


def _write_entry(file: IO[bytes], target: Path, mode: int, content: bytes, when: int = 0) -> None:
    name = str(target).lstrip("/").encode() + b"\0"
    #           inode, mode, uid, gid, links, mtime, size, 4 device numbers, name size, checksum
    fields = (0, mode, 0, 0, 1, when, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    file.write(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
