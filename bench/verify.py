"""How long it takes to judge one quote: each verifier, both together, and the appraisal.

And what that does to the rest of a process: how late a thread wakes up that
sleeps two milliseconds at a time, while eight others have forged quotes
refused as fast as they can, which is what a flooded broker does.

All of it in one process and one run, in turns, so that the ratios hold even
where the milliseconds do not; processor time leaves out what a busy machine
took away. Real quotes are used where the published test
vectors are at hand, simulated ones always.

Example: .venv/bin/python bench/verify.py --rounds 500
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sealserve.attestation import policy_file
from sealserve.attestation.anchor import INTEL, Anchor
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verifier import Verifier
from sealserve.errors import SealserveError
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import report_of
from sealserve.tdx.eventlog import RuntimeEvent, replay

VECTORS = Path(
    os.environ.get("SEALSERVE_VECTORS", Path(__file__).parent.parent.parent / "shared" / "vectors")
)
REAL = (
    ("real, version 4", "dcap-qvl/tdx_quote", datetime(2025, 7, 1, tzinfo=UTC)),
    ("real, version 5", "dcap-qvl/tdx_quote_td15ex", datetime(2026, 10, 20, tzinfo=UTC)),
)
THREADS = 8  # as many as a broker has
NAP = 0.002
EVENTS = (
    RuntimeEvent("broker", bytes(32)),
    RuntimeEvent("volume", bytes(48)),
    RuntimeEvent("sealed"),
)


def main() -> None:
    """Measure and print one table for each kind of quote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5, help="of each flood")
    options = parser.parse_args()
    rounds = options.rounds
    now = datetime.now(UTC)
    platform = SimulatedPlatform.new(now)
    anchor = Anchor.simulation(platform.pki.root_der)
    collateral = platform.collateral(now - timedelta(hours=1))
    for name, body_type in (("simulated, version 4", None), ("simulated, version 5", 4)):
        quote = platform.quote(report_of(), body_type=body_type)
        _report(name, quote, collateral, anchor, now, rounds)
    for name, vector, day in REAL:
        path = VECTORS / vector
        if path.exists():
            documents = path.with_name(f"{path.name}_collateral.json").read_bytes()
            _report(name, path.read_bytes(), documents, INTEL, day, rounds)

    print("a thread beside verifications")
    _flood(platform, Collateral.from_json(collateral), anchor, now, options.seconds)


def _flood(
    platform: SimulatedPlatform,
    collateral: Collateral,
    anchor: Anchor,
    now: datetime,
    seconds: float,
) -> None:
    forged = bytearray(platform.quote(report_of()))
    forged[636] ^= 1  # in the signature: all certificates are checked before it
    one = Verifier(anchor)
    for name, verifiers in (
        ("nothing beside it", []),
        ("one verifier, 8 threads", [one] * THREADS),
        ("8 verifiers, 8 threads", [Verifier(anchor) for _ in range(THREADS)]),
    ):
        done = threading.Event()
        refused = [0] * THREADS

        def work(number: int, verifier: Verifier, done: threading.Event, count: list[int]) -> None:
            while not done.is_set():
                with contextlib.suppress(SealserveError):
                    verifier.verify(bytes(forged), collateral, now)
                count[number] += 1

        threads = [
            threading.Thread(target=work, args=(number, verifier, done, refused))
            for number, verifier in enumerate(verifiers)
        ]
        for thread in threads:
            thread.start()
        late = _lateness(seconds)
        done.set()
        for thread in threads:
            thread.join()
        cuts = statistics.quantiles(late, n=100)
        print(
            f"  {name:<24} p50 {cuts[49] * 1e3:6.2f} ms   p99 {cuts[98] * 1e3:6.2f} ms late   "
            f"{sum(refused) / seconds:5.0f} quotes refused a second"
        )


def _lateness(seconds: float) -> list[float]:
    late = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        time.sleep(NAP)
        late.append(time.perf_counter() - start - NAP)
    return late


def _report(
    name: str, quote: bytes, documents: bytes, anchor: Anchor, now: datetime, rounds: int
) -> None:
    collateral = Collateral.from_json(documents)
    primary = LibraryVerifier(anchor)
    td = primary.verify(quote, collateral, now)
    policy = policy_file.from_report(
        td.report, label="bench", events=("sealed",), server_platform=True, simulation=td.simulated
    )
    second, both = ReferenceVerifier(anchor), Verifier(anchor, require_both=True)
    jobs: dict[str, Callable[[], object]] = {
        "primary verifier": lambda: primary.verify(quote, collateral, now),
        "reference verifier": lambda: second.verify(quote, collateral, now),
        "both": lambda: both.verify(quote, collateral, now),
        "appraise": lambda: appraise(policy, td, EVENTS, now=now),
        "replay of the event log": lambda: replay(EVENTS),
        "read the collateral": lambda: Collateral.from_json(documents),
    }
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    busy: dict[str, list[float]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job, work in jobs.items():
            start, thread_start = time.perf_counter(), time.thread_time()
            work()
            seconds[job].append(time.perf_counter() - start)
            busy[job].append(time.thread_time() - thread_start)
    base = statistics.median(seconds["primary verifier"])
    print(f"{name} ({len(quote)} B, collateral {len(documents)} B, {rounds} rounds)")
    for job, each in seconds.items():
        cuts, cpu = (statistics.quantiles(times, n=100) for times in (each, busy[job]))
        print(
            f"  {job:<24} p50 {cuts[49] * 1e3:6.3f} ms   p99 {cuts[98] * 1e3:6.3f} ms   "
            f"processor p50 {cpu[49] * 1e3:6.3f} ms   p99 {cpu[98] * 1e3:6.3f} ms   "
            f"{cuts[49] / base:5.2f} x primary"
        )


if __name__ == "__main__":
    main()
