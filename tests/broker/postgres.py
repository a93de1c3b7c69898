"""A PostgreSQL of the tests' own: Debian's server, on a UNIX socket, gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

_ROLE = "sealserve"
_PORT = 5432  # names the socket in a directory of its own; nothing listens on TCP


def find_bin() -> Path | None:
    """Where the server's programs are: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One server; a context manager that stops it and removes its files."""

    def __init__(self, programs: Path) -> None:
        self._bin = programs
        # A socket's path has at most 107 bytes: not below pytest's long directories.
        self._place = Path(tempfile.mkdtemp(prefix="sealserve-pg-"))
        self._numbers = itertools.count()
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            shutil.chown(self._place, "nobody", "nogroup")
        self._run("initdb", "--auth=trust", f"--username={_ROLE}", "--no-sync", "--no-locale",
                  "--encoding=UTF8", "--pgdata", self._data)  # fmt: skip
        self.start()

    @property
    def _data(self) -> str:
        return str(self._place / "data")

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._place)

    def start(self) -> None:
        settings = {
            "listen_addresses": "''",
            "unix_socket_directories": self._place,
            "port": _PORT,
            "shared_buffers": "16MB",
            "max_connections": 60,
            "autovacuum": "off",
            "fsync": "off",  # processes die in these tests, machines do not
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        log = str(self._place / "log")
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: ``fast`` ends sessions in order, ``immediate`` is a crash."""
        if (self._place / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    def freeze(self) -> None:
        """Let every process of the server stand still: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        postmaster = int((self._place / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"b{next(self._numbers)}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://{_ROLE}@/{name}?host={self._place}"

    def dsn(self, database: str) -> str:
        """What psycopg connects by."""
        return f"host={self._place} port={_PORT} user={_ROLE} dbname={database}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
        # The server inherits its outputs: a pipe would never end.
        with (self._place / "output").open("ab") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
                cwd="/", timeout=60, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            )  # fmt: skip
        assert done.returncode == 0, (self._place / "output").read_text()
