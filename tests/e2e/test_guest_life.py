"""How a guest goes down, and what it leaves: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.broker.directory import open_broker
from sealserve.broker.leases import Leases
from sealserve.demo import story
from tests.e2e.conftest import Flow

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


class Guest:
    """One more guest, in a simulated TD of its own."""

    def __init__(self, flow: Flow, name: str, *options: str) -> None:
        self.state = flow.directory / "cloud" / f"state-{name}"
        command = story.guest_up("cloud/models.seal", name, flow.ports, grpc=0, rest=0)
        self.log = (flow.directory / f"logs/{name}-guest.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sealserve", *command, *options],
            cwd=flow.directory,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        (self.fuse_file,) = {
            Path(command.decode()).name
            for pid in self.family()
            for command in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"/sealserve-volume-" in command
        }

    def family(self) -> set[int]:
        """The guest's process and all its descendants."""
        return _descendants(self.process.pid) | {self.process.pid}

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in Path(self.log.name).read_text().splitlines()]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


@pytest.fixture
def guest(flow: Flow, request: pytest.FixtureRequest) -> Iterator[Guest]:
    name = f"life-{request.node.name}"[:40]
    story.start_td(flow.runner, name, "Boot a TD")
    guest = Guest(flow, name)
    yield guest
    guest.close()


def _descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(_descendants(int(c)) for c in children))


def _traces(guest: Guest, family: set[int]) -> list[str]:
    """What is left of a guest: mounts, FUSE files, loop devices over them, processes."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [line for line in mounts if str(guest.state) in line or guest.fuse_file in line]
    loops = Path("/sys/block").glob("loop*/loop/backing_file")
    left += [text for loop in loops if guest.fuse_file in (text := loop.read_text())]
    return left + [f"process {pid}" for pid in family if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(guest: Guest, family: set[int]) -> list[str]:
    left: list[str] = []
    for _ in range(300):
        left = _traces(guest, family)
        if not left:
            break
        time.sleep(0.1)
    return left


def test_sigterm_closes_everything_in_order(guest: Guest) -> None:
    family = guest.family()
    assert len(family) == 3, "the guest, the volume's process and the server"
    assert _traces(guest, set())
    guest.process.send_signal(signal.SIGTERM)
    assert guest.process.wait(60) == 0
    assert _gone(guest, family) == []
    events = [line["event"] for line in guest.lines()]
    assert events.index("stopping") < events.index("draining") < events.index("stopped")
    assert not any(guest.state.glob("volume-*"))


def test_every_line_of_a_simulated_guests_log_says_so(guest: Guest) -> None:
    guest.process.send_signal(signal.SIGTERM)
    guest.process.wait(60)
    lines = guest.lines()
    assert len(lines) > 5
    quiet = [line for line in lines if "SIMULATION" not in json.dumps(line)]
    assert quiet == []


def test_a_killed_guest_takes_its_volume_and_its_server_with_it(guest: Guest) -> None:
    family = guest.family()
    os.kill(guest.process.pid, signal.SIGKILL)
    guest.process.wait(10)
    assert _gone(guest, family) == []


def test_a_dead_server_takes_the_guest_down(guest: Guest) -> None:
    family = guest.family()
    (server,) = [
        pid for pid in family if b"--ready_fd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(server, signal.SIGKILL)
    assert guest.process.wait(60) == 4
    assert _gone(guest, family) == []
    assert "[guest.server_died]" in Path(guest.log.name).read_text()


def test_a_td_serves_once_a_boot(flow: Flow, guest: Guest) -> None:
    """RTMR3 tells one story: a second start in the same TD is refused."""
    guest.process.send_signal(signal.SIGTERM)
    guest.process.wait(60)
    name = guest.state.name.removeprefix("state-")
    outcome = flow.run(*story.guest_up("cloud/models.seal", name, flow.ports), expect=3)
    assert "[guest.already_measured]" in outcome.stderr


def test_a_revoked_lease_stops_the_guest_and_closes_its_volume(flow: Flow) -> None:
    flow.run(
        "secret", "put", "models/short", "--broker", "broker",
        "--sealed-key", "owner/models.key.sealed", "--record", "owner/models.record.json",
        "--owner-pub", "owner/owner.pub", "--policy", "owner/release-policy.yaml", "--lease", "8",
    )  # fmt: skip
    story.start_td(flow.runner, "leased", "Boot a TD")
    guest = Guest(flow, "leased", "--resource", "models/short")
    try:
        family = guest.family()
        while not any(line["event"] == "lease renewed" for line in guest.lines()):
            assert guest.process.poll() is None
            time.sleep(0.1)
        with open_broker(flow.directory / "broker") as broker:
            leases = Leases(broker.store)
            (lease,) = leases.list(resource="models/short")
            leases.revoke(lease.id, by="a test")
        assert guest.process.wait(60) == 3
        assert _gone(guest, family) == []
        assert "[guest.lease_revoked]" in Path(guest.log.name).read_text()
    finally:
        guest.close()
