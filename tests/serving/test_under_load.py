"""Certificates, versions, configuration and replicas change while clients ask: nothing fails.

Both fronts are asked over TLS, by several connections each, from a process of its own
(`load`). ``make soak`` makes each change 20 times.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealserve.files import write_atomically
from sealserve.wire.serving import api_pb2
from tests.children import Child
from tests.conftest import ROOT
from tests.serving.conftest import OWNER_NAME, Pair, certificate_shown, make_pair, ssl_config
from tests.serving.processes import process
from tests.soak import times

_ADMIN = "only for this test"
_PATIENCE = 60.0


@dataclass
class Asked:
    """Clients at work, and what they have told so far."""

    child: subprocess.Popen[str]
    requests: int = 0
    failures: list[str] = field(default_factory=list)

    def look(self) -> dict[str, Any]:
        """What happened since the last look."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        told: dict[str, Any] = json.loads(self.child.stdout.readline())
        self.requests += told["grpc"] + told["rest"]
        self.failures += told["failures"]
        return told

    def until(self, enough: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for a look that shows it."""
        deadline = time.monotonic() + _PATIENCE
        while not enough(self.look()):
            assert time.monotonic() < deadline, self.failures[:5]
            time.sleep(0.05)

    def some(self) -> None:
        """Let both fronts answer, over connections that are new."""
        self.look()
        seen = {"grpc": 0, "rest": 0, "connections": 0}
        deadline = time.monotonic() + _PATIENCE
        while min(seen.values()) < 20:
            assert time.monotonic() < deadline, (seen, self.failures[:5])
            time.sleep(0.05)
            told = self.look()
            seen = {key: count + told[key] for key, count in seen.items()}


@contextmanager
def load(roots: Path, *replicas: dict[str, int]) -> Iterator[Asked]:
    settings = {
        "grpc": [ports["grpc"] for ports in replicas],
        "rest": [ports["rest"] for ports in replicas],
        "roots": str(roots),
        "name": OWNER_NAME,
        "connections": 3,
        "renew": 10,
    }
    with Child(
        [sys.executable, "-m", "tests.serving.load", json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        try:
            asked = Asked(child)
            asked.some()
            yield asked
            asked.look()
        finally:
            child.kill()
    print(f"{asked.requests} requests, {len(asked.failures)} failed")
    assert asked.failures == []


@dataclass(frozen=True)
class Place:
    """A server's files."""

    directory: Path
    models: Path
    authority: Pair

    @property
    def roots(self) -> Path:
        return self.directory / "roots.pem"

    @property
    def config(self) -> Path:
        return self.directory / "models.config"

    @property
    def base(self) -> Path:
        return self.directory / "first"

    def add(self, base: str, version: int) -> None:
        """Put a version there, whole at once."""
        aside = self.directory / "aside"
        shutil.copytree(self.models / "affine" / "1", aside)
        (self.directory / base).mkdir(exist_ok=True)
        aside.rename(self.directory / base / str(version))

    def entries(self, **models: str) -> str:
        places = {name: self.directory / base for name, base in models.items()}
        listed = (f'config {{ name: "{name}" base_path: "{p}" }}' for name, p in places.items())
        return f"model_config_list {{ {' '.join(listed)} }}"

    def renew(self) -> Pair:
        """Give the server a new key and certificate."""
        pair = make_pair(OWNER_NAME, self.authority)
        write_atomically(self.directory / "ssl.cfg", ssl_config(pair).encode())
        return pair

    def flags(self, *more: str) -> Sequence[str]:
        return (
            f"--model_config_file={self.config}",
            "--model_config_file_poll_wait_seconds=1",
            f"--model_root={self.directory}",
            f"--ssl_config_file={self.directory / 'ssl.cfg'}",
            f"--access_file={self.directory / 'access.yaml'}",
            *more,
        )

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    authority = make_pair("authority", authority=True)
    place = Place(tmp_path_factory.mktemp("load"), models, authority)
    for base in ("first", "second"):
        place.add(base, 1)
    write_atomically(place.config, place.entries(m="first").encode())
    place.roots.write_bytes(authority.certificate)
    place.renew()
    digest = hashlib.sha256(_ADMIN.encode()).hexdigest()
    keys = [{"name": "boss", "sha256": digest, "roles": ["admin"]}]
    (place.directory / "access.yaml").write_text(json.dumps({"predict": "any", "api_keys": keys}))
    return place


@pytest.fixture(scope="module")
def ports(place: Place) -> Iterator[dict[str, int]]:
    """A server that the tests of this file change one after another."""
    log = place.directory / "log"
    with process(log, *place.flags("--port=0", "--rest_api_port=0")) as (_, ports):
        yield ports


def test_no_request_fails_while_certificates_are_renewed(
    place: Place, ports: dict[str, int]
) -> None:
    with load(place.roots, ports) as asked:
        for _ in range(times(20, 1)):
            new = place.renew()
            for port in ports.values():
                assert certificate_shown(port, OWNER_NAME) == new.der
            asked.some()


def test_no_request_fails_while_versions_are_swapped(place: Place, ports: dict[str, int]) -> None:
    with load(place.roots, ports) as asked:
        for version in range(2, 2 + times(20, 1)):
            place.add("first", version)
            asked.until(lambda told, new=version: told["versions"] == [new])
            shutil.rmtree(place.base / str(version - 1))
    unloaded = [line["version"] for line in place.log() if line["event"] == "model_unloaded"]
    assert len(unloaded) >= times(20, 1) - 1


def test_no_request_fails_while_the_configuration_is_reloaded(
    place: Place, ports: dict[str, int]
) -> None:
    """By the file, which adds and moves models, and by the administrator's call."""
    with load(place.roots, ports) as asked, admin(place, ports) as reload:
        for turn in range(times(20, 1)):
            before = len([1 for line in place.log() if line["event"] == "config_reloaded"])
            moved = {"m": "second" if turn % 2 == 0 else "first", "more": "first"}
            write_atomically(place.config, place.entries(**moved).encode())
            asked.until(
                lambda _, seen=before: (
                    len([1 for line in place.log() if line["event"] == "config_reloaded"]) > seen
                )
            )
            asked.some()
            reload(place, m="first" if turn % 2 == 0 else "second")
            asked.some()
        reload(place, m="first")


@contextmanager
def admin(place: Place, ports: dict[str, int]) -> Iterator[Callable[..., None]]:
    credentials = grpc.ssl_channel_credentials(place.authority.certificate)
    options = [("grpc.ssl_target_name_override", OWNER_NAME)]
    with grpc.secure_channel(f"127.0.0.1:{ports['grpc']}", credentials, options) as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")

        def reload(place: Place, **models: str) -> None:
            request = api_pb2.ReloadConfigRequest()
            for name, base in models.items():
                request.config.model_config_list.config.add(
                    name=name, base_path=str(place.directory / base)
                )
            metadata = [("authorization", f"Bearer {_ADMIN}")]
            call(request.SerializeToString(), timeout=60, metadata=metadata)

        yield reload


def test_no_request_fails_when_one_of_two_replicas_gets_sigterm(
    place: Place, ports: dict[str, int]
) -> None:
    def second(at: dict[str, int]) -> Any:
        flags = place.flags(f"--port={at['grpc']}", f"--rest_api_port={at['rest']}")
        return process(place.directory / "second.log", *flags)

    with second({"grpc": 0, "rest": 0}) as (child, again), load(place.roots, ports, again) as asked:
        end(child)
        asked.some()
        for _ in range(times(20, 1) - 1):
            with second(again) as (child, _):
                time.sleep(2)  # the clients find it again
                asked.some()
                end(child)
                asked.some()


def end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
