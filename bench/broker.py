"""How many full releases a broker makes in a second, and how long one takes.

A real broker process (TLS, SQLite with durable audit) on loopback, asked by
simulated TDs in this process: challenge, quote, verification, appraisal, audit
line on disk, HPKE. The clients' work is part of the figures and runs on the same
cores.

Example: .venv/bin/python bench/broker.py --releases 300 --clients 4
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from sealserve.attestation import policy_file
from sealserve.attestation.policy import PlatformFlags, Policy, Release
from sealserve.broker.client import request_release
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import create, open_broker
from sealserve.broker.identity import BrokerIdentity
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd

RESOURCE = "models/bench"
BOOT_ID = bytes(16)


def main() -> None:
    """Make a broker, load it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=300)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        platform = SimulatedPlatform.create(place / "platform", datetime.now(UTC))
        identity = _make_broker(place / "broker", platform)
        process, address = _start(place)
        try:
            request(address, identity, platform)  # the first one pays for imports
            seconds, each = _load(address, identity, platform, options.releases, options.clients)
        finally:
            process.terminate()
            process.wait()
    each.sort()
    percentiles = statistics.quantiles(each, n=100)
    print(f"{len(each) / seconds:.0f} releases/s ({options.clients} clients, {len(each)} releases)")
    print(f"p50 {percentiles[49] * 1e3:.1f} ms, p99 {percentiles[98] * 1e3:.1f} ms")


def request(address: str, identity: BrokerIdentity, platform: SimulatedPlatform) -> float:
    """One full release on a connection of its own; its seconds."""
    start = time.perf_counter()
    released = request_release(
        address, identity, RESOURCE, SoftwareTd(platform).quote, BOOT_ID, timeout=30
    )
    assert len(released.secret) == 32
    return time.perf_counter() - start


def _make_broker(root: Path, platform: SimulatedPlatform) -> BrokerIdentity:
    identity = create(root, name="bench")
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


def _start(place: Path) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable, "-m", "sealserve", "broker", "serve", str(place / "broker"),
        "--listen", "127.0.0.1:0", "--ready-fd", "1",
        "--collateral", str(place / "platform" / COLLATERAL_FILE),
        "--simulation-anchor", str(place / "platform" / ANCHOR_FILE),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


def _load(
    address: str, identity: BrokerIdentity, platform: SimulatedPlatform, releases: int, clients: int
) -> tuple[float, list[float]]:
    each: list[float] = []

    def client() -> None:
        each.extend(request(address, identity, platform) for _ in range(releases // clients))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, each


if __name__ == "__main__":
    main()
