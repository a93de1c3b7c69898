"""What a broker bears: releases in a second, patience under load, memory, a flood.

    make bench-broker [BENCH_ARGS="--releases N --challenges N --seconds N"]

One real broker process (TLS, SQLite, every audit line on the disk before its
answer) on loopback, asked by simulated TDs of this process. The clients' work
(HPKE keys, quotes, TLS) runs on the same cores and is part of every figure. In one run:

* rate: as many full releases as 4 guests can get, each on a connection of its own;
* paced: full releases at 50 a second, and how long each takes;
* flood: what a good guest waits while another address sends requests that are
  refused, by the broker or by its transport's own guard, as fast as it can;
* memory: the broker's resident set after very many challenges.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from sealserve.attestation import policy_file
from sealserve.attestation.policy import PlatformFlags, Policy, Release
from sealserve.broker.client import request_release
from sealserve.broker.config import BrokerConfig, LimitsConfig
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import create, open_broker
from sealserve.broker.identity import SERVER_NAME, BrokerIdentity
from sealserve.broker.protocol import CHALLENGE_METHOD, RELEASE_METHOD
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker import v1_pb2

RESOURCE = "models/bench"
BOOT_ID = bytes(16)
GUESTS = 4
PACE = 50.0
FLOODERS = 4


@dataclass(frozen=True)
class Bench:
    """The running broker and who asks it."""

    identity: BrokerIdentity
    platform: SimulatedPlatform
    pid: int
    port: int

    def release(self, host: str = "127.0.0.1") -> float:
        """One full release on a connection of its own; its seconds."""
        td = SoftwareTd(self.platform)
        start = time.perf_counter()
        released = request_release(
            f"{host}:{self.port}", self.identity, RESOURCE, td.quote, BOOT_ID, timeout=30
        )
        assert len(released.secret) == 32
        return time.perf_counter() - start

    @contextlib.contextmanager
    def channel(self, host: str = "127.0.0.1") -> Iterator[grpc.Channel]:
        """A connection for calls without a guest behind them."""
        credentials = grpc.ssl_channel_credentials(self.identity.certificate.encode())
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        with grpc.secure_channel(f"{host}:{self.port}", credentials, options) as channel:
            yield channel


def main() -> None:
    """Make a broker, load it in four ways, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=600)
    parser.add_argument("--challenges", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the paced and flooded runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, _running(Path(scratch)) as bench:
        bench.release()  # the first one pays for imports
        _rate(bench, options.releases)
        _show("paced", f"{PACE:g} releases/s", _paced(bench, options.seconds, PACE))
        _flood(bench, options.seconds)
        _memory(bench, options.challenges)


def _rate(bench: Bench, releases: int) -> None:
    start = time.perf_counter()
    with ThreadPoolExecutor(GUESTS) as guests:
        each = list(guests.map(lambda _: bench.release(), range(releases)))
    rate = releases / (time.perf_counter() - start)
    _show("rate", f"{rate:.0f} releases/s, {GUESTS} guests", each)


def _paced(bench: Bench, seconds: float, pace: float, host: str = "127.0.0.1") -> list[float]:
    """Releases begun on a fixed beat, whether or not the earlier ones are done."""
    start = time.perf_counter()
    with ThreadPoolExecutor(32) as guests:
        asked = []
        for beat in range(int(seconds * pace)):
            time.sleep(max(0.0, start + beat / pace - time.perf_counter()))
            asked.append(guests.submit(bench.release, host))
        return [each.result() for each in asked]


def _flood(bench: Bench, seconds: float) -> None:
    calm = _paced(bench, seconds / 2, 5.0, "[::1]")
    done = threading.Event()
    refused = [0] * FLOODERS
    bad = v1_pb2.ReleaseRequest(resource=RESOURCE, nonce=bytes(32), boot_id=BOOT_ID)
    raw = bad.SerializeToString()

    def flood(number: int) -> None:
        with bench.channel() as channel:
            call = channel.unary_unary(RELEASE_METHOD)
            while not done.is_set():
                with contextlib.suppress(grpc.RpcError):
                    call(raw, timeout=10)
                refused[number] += 1

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(FLOODERS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        flooded = _paced(bench, seconds, 5.0, "[::1]")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    _show("calm", "a good guest alone, 5 a second", calm)
    _show("flood", f"the same beside {sum(refused) / seconds:.0f} refused requests/s", flooded)


def _memory(bench: Bench, challenges: int) -> None:
    raw = v1_pb2.ChallengeRequest(resource=RESOURCE).SerializeToString()
    before = _resident(bench.pid)

    def ask(count: int) -> None:
        with bench.channel() as channel:
            call = channel.unary_unary(CHALLENGE_METHOD)
            for _ in range(count):
                # Beyond its share of the table a peer is turned away; that is an answer too.
                with contextlib.suppress(grpc.RpcError):
                    call(raw, timeout=30)

    _in_threads(lambda: ask(challenges // GUESTS))
    print(
        f"memory  {_resident(bench.pid):.0f} MB resident after {challenges} challenges"
        f" ({before:.0f} MB before)"
    )


def _in_threads(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(GUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _show(name: str, what: str, each: list[float]) -> None:
    percentiles = statistics.quantiles(each, n=100)
    print(
        f"{name:<7} {what}: p50 {percentiles[49] * 1e3:.1f} ms, p99 {percentiles[98] * 1e3:.1f} ms"
        f" ({len(each)} releases)",
        flush=True,
    )


@contextlib.contextmanager
def _running(place: Path) -> Iterator[Bench]:
    platform = SimulatedPlatform.create(place / "platform", datetime.now(UTC))
    identity = _make_broker(place / "broker", platform)
    command = [
        sys.executable, "-m", "sealserve", "broker", "serve", str(place / "broker"),
        "--listen", "[::]:0", "--ready-fd", "1",
        "--collateral", str(place / "platform" / COLLATERAL_FILE),
        "--simulation-anchor", str(place / "platform" / ANCHOR_FILE),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        yield Bench(identity, platform, process.pid, int(address.rpartition(":")[2]))
    finally:
        process.terminate()
        process.wait()


def _make_broker(root: Path, platform: SimulatedPlatform) -> BrokerIdentity:
    # What is measured is the broker, not its limits: all guests come from one address.
    most = 1_000_000
    limits = LimitsConfig(
        peer_calls_per_second=most,
        peer_burst=most,
        resource_releases_per_second=most,
        resource_burst=most,
    )
    identity = create(root, name="bench", chosen=BrokerConfig(limits=limits))
    report = SoftwareTd(platform).report
    registers = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    policy = Policy(
        releases=(
            Release(label="bench", **{name: getattr(report, name).hex() for name in registers}),
        ),
        platform_flags=PlatformFlags(dynamic_platform=True, cached_keys=True, smt=True),
        simulation="allowed",
    )
    with open_broker(root) as broker:
        broker.put_secret(
            RESOURCE,
            seal_for(identity, os.urandom(32)),
            record=os.urandom(4096),
            owner_public_key=b"",
            policy=policy_file.dump(policy).encode(),
        )
    return identity


if __name__ == "__main__":
    main()
