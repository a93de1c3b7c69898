"""The model server as a child: ready, renewed, stopped, or failed."""

from __future__ import annotations

import datetime as dt
import signal
import sys
import time
from pathlib import Path

import pytest

from sealserve.attestation.ratls import TlsIdentity
from sealserve.errors import Unavailable
from sealserve.guest import server_process
from sealserve.guest.server_process import ServerProcess

SOON = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def identity(mark: bytes) -> TlsIdentity:
    return TlsIdentity(b"KEY " + mark + b"\n", b"CERTIFICATE " + mark + b"\n", SOON)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the server's place: tells its ports, or does as its flags say."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, time\n"
        "flags = dict(f.removeprefix('--').partition('=')[::2] for f in sys.argv[5:])\n"
        "if 'fail' in flags: sys.exit(4)\n"
        "if 'model_provenance' in flags:\n"
        "    open(flags['copy'] + '.signers', 'w').write(open(flags['model_provenance']).read())\n"
        "if 'stubborn' in flags: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(flags['copy'], 'w').write(open(flags['tls_identity_file']).read())\n"
        "os.write(int(flags['ready_fd']), b'{\"grpc\": 1, \"rest\": 2}\\n')\n"
        "while True:\n"
        "    time.sleep(0.02)\n"
        "    open(flags['copy'], 'w').write(open(flags['tls_identity_file']).read())\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path / "copy"


def _eventually(path: Path, content: str) -> bool:
    for _ in range(500):
        if path.exists() and path.read_text() == content:
            return True
        time.sleep(0.01)
    return False


def test_the_server_reads_its_identity_from_memory_and_sees_it_renewed(stand_in: Path) -> None:
    with ServerProcess(Path("/mnt"), identity(b"one"), (f"--copy={stand_in}",)) as server:
        assert server.ports == {"grpc": 1, "rest": 2}
        assert server.exit_status() is None
        assert _eventually(stand_in, "KEY one\nCERTIFICATE one\n")
        server.renew(identity(b"2"))
        assert _eventually(stand_in, "KEY 2\nCERTIFICATE 2\n")
    assert server.exit_status() == -signal.SIGTERM
    server.stop()


def test_no_flag_of_the_operators_takes_the_place_of_the_owners_signers(stand_in: Path) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    flags = (f"--copy={stand_in}", "--model_provenance=/dev/null")
    with ServerProcess(Path("/mnt"), identity(b"x"), flags, signers=b"the owner's"):
        assert stand_in.with_name("copy.signers").read_text() == "the owner's"
    with ServerProcess(Path("/mnt"), identity(b"x"), flags):
        assert stand_in.with_name("copy.signers").read_text() == ""
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_server_that_does_not_start_is_reported(stand_in: Path) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Unavailable) as caught:
        ServerProcess(Path("/mnt"), identity(b"x"), ("--fail",))
    assert caught.value.code == "guest.server_failed"
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_server_that_ignores_sigterm_is_killed(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_STOP_SECONDS", 0.3)
    flags = (f"--copy={stand_in}", "--stubborn")
    with ServerProcess(Path("/mnt"), identity(b"x"), flags) as server:
        pass
    assert server.exit_status() == -signal.SIGKILL
