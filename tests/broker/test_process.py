"""The broker as a process: ready line, SIGTERM, kill -9, and options that cannot be."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sealserve.address import Address
from sealserve.broker.admin_client import AdminClient
from sealserve.broker.client import Released, request_release, request_renewal
from sealserve.broker.config import AdminConfig, BrokerConfig
from sealserve.broker.config_file import render
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import create, open_broker
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker.admin import v1_pb2
from tests.broker import vault
from tests.broker.admin import Person
from tests.broker.conftest import BOOT_ID, RESOURCE, policy_for, utc_now
from tests.broker.operation.pages import get
from tests.children import Child

KEY = b"PLANTED-KEY" + bytes(range(53))


@dataclass
class Process:
    """A broker directory with one secret, and the process that serves it."""

    root: Path
    platform: SimulatedPlatform
    arguments: list[str]
    running: subprocess.Popen[bytes] | None = None
    address: str = ""
    stderr: Path = field(default=Path())
    ready: dict[str, str] = field(default_factory=dict)

    def start(self, program: Sequence[str] = (sys.executable, "-m", "sealserve")) -> None:
        read_end, write_end = os.pipe()
        self.stderr = self.root.parent / "stderr"
        with self.stderr.open("ab") as log:
            self.running = subprocess.Popen(
                [*program, *self.arguments, "--ready-fd", str(write_end)],
                pass_fds=(write_end,),
                stderr=log,
            )
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            line = ready.readline()
        assert line, self.stderr.read_text()
        self.ready = json.loads(line)
        self.address = self.ready["address"]

    def stop(self) -> None:
        assert self.running is not None
        self.running.send_signal(signal.SIGTERM)
        assert self.running.wait(20) == 0

    def ask(self) -> bytes:
        return bytes(self.release().secret)

    def release(self) -> Released:
        td = SoftwareTd(self.platform)
        return request_release(
            self.address, self._identity, RESOURCE, td.quote, BOOT_ID, timeout=20
        )

    def renew(self, lease: str) -> int:
        td = SoftwareTd(self.platform)
        asked = (self.address, self._identity, lease, RESOURCE, td.quote, BOOT_ID)
        return request_renewal(*asked, timeout=20)

    @property
    def _identity(self) -> BrokerIdentity:
        return BrokerIdentity.load(self.root / "broker.json")

    def audit(self) -> list[dict[str, Any]]:
        with open_broker(self.root) as broker:
            broker.audit.verify()
            return [json.loads(line) for line in broker.audit.lines()]


@pytest.fixture
def process(tmp_path: Path, platform: SimulatedPlatform) -> Iterator[Process]:
    root = tmp_path / "broker"
    identity = create(root, name="test broker")
    with open_broker(root) as broker:
        broker.put_secret(
            RESOURCE, seal_for(identity, KEY),
            record=b"", owner_public_key=b"", policy=policy_for(SoftwareTd(platform)),
        )  # fmt: skip
    (tmp_path / "collateral.json").write_bytes(platform.collateral(utc_now() - timedelta(hours=1)))
    (tmp_path / "anchor.der").write_bytes(platform.pki.root_der)
    arguments = [
        "broker", "serve", str(root), "--listen", "127.0.0.1:0",
        "--collateral", str(tmp_path / "collateral.json"),
        "--simulation-anchor", str(tmp_path / "anchor.der"),
    ]  # fmt: skip
    made = Process(root, platform, arguments)
    yield made
    if made.running is not None and made.running.poll() is None:
        made.running.kill()
        made.running.wait()


def test_a_broker_serves_until_sigterm_and_says_simulation(process: Process) -> None:
    process.start()
    assert process.ask() == KEY
    assert process.running is not None
    pid = process.running.pid
    for name in ("cmdline", "environ"):
        assert b"PLANTED" not in Path(f"/proc/{pid}/{name}").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert any(line.split()[:6] == ["Max", "core", "file", "size", "0", "0"] for line in limits)
    process.running.send_signal(signal.SIGTERM)
    assert process.running.wait(20) == 0
    lines = [json.loads(line) for line in process.stderr.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["listening", "release", "stopping", "stopped"]
    assert all("SIMULATION" in line["anchor"] for line in lines)
    assert [entry["event"] for entry in process.audit()] == ["secret.put", "release"]
    assert not list(process.root.glob("*-wal"))  # the database was closed properly


def test_a_broker_is_administered_while_it_serves_and_signs_when_it_stops(
    process: Process, tmp_path: Path
) -> None:
    alice = Person.make("alice", tmp_path)
    with open_broker(process.root) as broker:
        alice.add_to(broker, "admin")
        identity = broker.identity
    chosen = BrokerConfig(admin=AdminConfig(listen="127.0.0.1:0"))
    (process.root / "broker.yaml").write_bytes(render(chosen))
    process.start()
    admin = Address.parse(process.ready["admin"], where="ready")
    with AdminClient(admin, identity, alice.identity, timeout=20) as client:
        assert process.ask() == KEY
        (lease,) = client.perform(v1_pb2.LeaseListRequest())["leases"]
        assert client.perform(v1_pb2.LeaseRevokeRequest(lease=lease["id"]))["state"] == "revoked"
        client.perform(v1_pb2.SecretDisableRequest(secret=RESOURCE, version=1))
        with pytest.raises(SealserveError):
            process.ask()
    process.stop()
    with open_broker(process.root) as broker:
        assert broker.audit.unsigned() == 0
        assert broker.audit.checkpoints()[-1].head == broker.audit.verify()


def test_the_store_survives_kill_9_during_releases(process: Process) -> None:
    """Every secret that arrived has its audit line, and the chain is whole, each time."""
    arrived = 0
    for round_number in range(3):
        process.start()
        received: list[bytes] = []

        def ask_on(received: list[bytes] = received) -> None:
            with contextlib.suppress(SealserveError):
                while True:
                    received.append(process.ask())

        threads = [threading.Thread(target=ask_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(received) < 3 + round_number:
            time.sleep(0.005)
        assert process.running is not None
        process.running.kill()
        process.running.wait()
        for thread in threads:
            thread.join()
        assert set(received) == {KEY}
        arrived += len(received)
        entries = process.audit()
        written = sum(entry.get("verdict") == "released" for entry in entries)
        assert written >= arrived
        # At most what was in flight (one a thread) was written and not received.
        assert written - arrived <= 2 * (round_number + 1)


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--listen", "nowhere", "address.malformed"),
        ("--listen", "192.0.2.1:0", "broker.listen_failed"),
        ("--collateral", "absent.json", "file.unreadable"),
        ("--simulation-anchor", "absent.der", "file.unreadable"),
        ("--simulation-anchor", "collateral.json", "chain.anchor_malformed"),
    ],
)
def test_options_that_cannot_be_are_named(
    process: Process, option: str, value: str, code: str
) -> None:
    position = process.arguments.index(option) + 1
    if value == "collateral.json":
        value = str(process.root.parent / value)
    process.arguments[position] = value
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", *process.arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in (2, 3, 4)
    assert f"[{code}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_refused(process: Process) -> None:
    process.start()
    position = process.arguments.index("--listen") + 1
    second = [*process.arguments]
    second[position] = process.address
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", *second],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == Unavailable.exit_status
    assert "[broker.listen_failed]" in done.stderr


def test_the_ready_line_may_go_to_stdout(process: Process) -> None:
    command = [sys.executable, "-m", "sealserve", *process.arguments, "--ready-fd", "1"]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        process.address = json.loads(running.stdout.readline())["address"]
        try:
            assert process.ask() == KEY
            running.send_signal(signal.SIGTERM)
            assert running.stdout.read() == b""
            assert running.wait(20) == 0
        finally:
            running.kill()


def test_a_closed_ready_descriptor_is_refused(process: Process) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", *process.arguments, "--ready-fd", "77"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == Unavailable.exit_status
    assert "[broker.ready_fd_closed]" in done.stderr


def test_the_page_runs_beside_the_broker(process: Process) -> None:
    """Configured in broker.yaml; it counts what the process decides, and goes when it goes."""
    (process.root / "broker.yaml").write_text(
        'admin:\n  page_socket: "s"\n  page_listen: "127.0.0.1:0"\n'
    )
    process.start()
    assert process.ask() == KEY
    page = process.root / "s"
    shown, metrics = get(page).text, get(page, "/metrics").text
    assert "Last releases" in shown
    assert "PLANTED" not in shown + metrics
    assert 'sealserve_broker_releases_total{code="released",verdict="released"} 1.0' in metrics
    assert "sealserve_broker_nonces 1.0" in metrics
    listening = json.loads(process.stderr.read_text().splitlines()[0])
    assert listening["page_socket"] == str(page)
    _, _, port = listening["page"].rpartition(":")
    identity = BrokerIdentity.load(process.root / "broker.json")
    tls = ssl.create_default_context(cadata=identity.certificate)
    tls.check_hostname = False
    with pytest.raises((OSError, http.client.HTTPException)):
        get(int(port), tls=tls)  # nobody is registered
    assert process.running is not None
    process.running.send_signal(signal.SIGTERM)
    assert process.running.wait(20) == 0
    assert not page.exists()
    assert "PLANTED" not in process.stderr.read_text()


def test_a_page_that_cannot_be_keeps_the_broker_from_starting(process: Process) -> None:
    (process.root / "broker.yaml").write_text('admin:\n  page_socket: "kek"\n')
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", *process.arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == Refused.exit_status
    assert "[page.socket_in_use]" in done.stderr
    assert (process.root / "kek").is_file()


def test_traces_are_made_if_a_collector_is_named(process: Process) -> None:
    """A collector that is away costs no release and does not keep the broker from stopping."""
    (process.root / "broker.yaml").write_text('telemetry:\n  otlp_endpoint: "http://127.0.0.1:1"\n')
    process.start()
    assert process.ask() == KEY
    assert process.running is not None
    process.running.send_signal(signal.SIGTERM)
    assert process.running.wait(30) == 0
    lines = [json.loads(line) for line in process.stderr.read_text().splitlines()]
    assert {"listening", "release", "stopped"} <= {line["event"] for line in lines}
    (warning,) = [line for line in lines if line["event"] == "traces not sent"]
    assert set(warning) - {"program", "anchor"} == {"event", "source", "level", "timestamp"}


def test_a_broker_with_vault_shows_neither_token_nor_secret(
    process: Process, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(vault.TOKEN)
    with vault.running() as double:
        command = [
            sys.executable, "-m", "sealserve", "broker", "rekey", str(process.root),
            "--kek", "vault", "--kek-set", f"vault_url={double.url}",
            "--kek-set", "vault_key=sealserve", "--kek-set", f"vault_token_file={token}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        process.start()
        assert process.ask() == KEY
        assert process.running is not None
        proc = Path(f"/proc/{process.running.pid}")
        places = {name: (proc / name).read_bytes() for name in ("cmdline", "environ")}
        places |= {str(path): path.read_bytes() for path in process.root.iterdir()}
        double.mode = "sealed"
        with pytest.raises(Unavailable):
            process.ask()
        double.mode = "well"
        assert process.ask() == KEY
        process.stop()
    places["log"] = process.stderr.read_bytes()
    assert any(name.endswith("-wal") for name in places)
    for name, content in places.items():
        for planted in (b"PLANTED", vault.TOKEN.encode(), KEY[11:27]):
            assert planted not in content, name
    assert b"kek.vault_sealed" in places["log"]
