"""Bad input of every kind, from many clients at once, slow ones among them.

The right error each time, nothing kept of it, no worker lost. ``make soak`` sends 10,000.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.serving.conftest import OWNER_NAME, make_pair, ssl_config
from tests.serving.hostile import BODY_SECONDS, GOOD, GRPC, LIMIT, REST, SLOW, Door, Grpc
from tests.serving.processes import process
from tests.soak import SOAK, times

CLIENTS = 4
"""Threads that send; each holds a few slow clients open beside."""

SLOW_AT_ONCE = 6
AT_ONCE = 160


def usage(pid: int) -> dict[str, int]:
    """Memory in KiB, descriptors and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = next(line for line in status if line.startswith("VmRSS")).split()[1]
    return {
        "rss": int(memory),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
        "threads": len(os.listdir(f"/proc/{pid}/task")),  # noqa: PTH208
    }


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Door]]:
    place = tmp_path_factory.mktemp("bad")
    owner = make_pair(OWNER_NAME)
    (place / "ssl.cfg").write_text(ssl_config(owner))
    (place / "access.yaml").write_text('{"predict": "any"}')
    names = ("affine", "trap_counter")
    first = "model_version_policy { specific { versions: 1 } }"
    entries = (
        f'config {{ name: "{name}" base_path: "{models / name}" {first} }}' for name in names
    )
    (place / "models.config").write_text(f"model_config_list {{ {' '.join(entries)} }}")
    with process(
        place / "log",
        f"--model_config_file={place / 'models.config'}",
        f"--ssl_config_file={place / 'ssl.cfg'}",
        f"--access_file={place / 'access.yaml'}",
        "--port=0",
        "--rest_api_port=0",
        f"--max_request_bytes={LIMIT}",
        f"--rest_api_timeout_in_ms={BODY_SECONDS * 1000}",
    ) as (child, ports):
        yield child.pid, Door(ports, owner.certificate, OWNER_NAME)
        unexpected = [
            line
            for line in map(json.loads, (place / "log").read_text().splitlines())
            if line["event"] == "unexpected"
        ]
        assert unexpected == []


class Client:
    """Sends what is wrong, in an order of its own, and keeps slow clients open meanwhile."""

    def __init__(self, door: Door, seed: int) -> None:
        self.door = door
        self.wrong: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._slow: list[contextlib.ExitStack] = []

    def send(self, count: int) -> None:
        kinds = [*GRPC, *REST]
        with self.door.channel() as channel, contextlib.closing(self.door.http()) as connection:
            for _ in range(count):
                if self._random.random() < 0.05:
                    self._another_slow_one()
                kind = self._random.choice(kinds)
                got = kind.send(channel) if isinstance(kind, Grpc) else kind.send(connection)
                if got != kind.status:
                    self.wrong[f"{type(kind).__name__} {kind.what}: {got}"] += 1
        for each in self._slow:
            each.close()

    def _another_slow_one(self) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(self._random.choice(SLOW)(self.door))
        self._slow.append(stack)
        if len(self._slow) > SLOW_AT_ONCE:
            self._slow.pop(0).close()


def send(door: Door, count: int, seed: int) -> Counter[str]:
    clients = [Client(door, seed + number) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda client: client.send(count // CLIENTS), clients):
            pass
    return sum((client.wrong for client in clients), Counter())


def test_each_kind_gets_its_error(served: tuple[int, Door]) -> None:
    _, door = served
    with door.channel() as channel, contextlib.closing(door.http()) as connection:
        got = [(kind, kind.send(channel)) for kind in GRPC]
        got += [(kind, kind.send(connection)) for kind in REST]
    assert [(kind.what, status) for kind, status in got if status != kind.status] == []


def test_nothing_is_left_of_many_at_once(served: tuple[int, Door]) -> None:
    pid, door = served
    all_workers_answer(door)
    assert send(door, times(1500, 100), seed=1) == Counter()
    begin = settled(pid)
    assert send(door, times(10_000, 100), seed=2) == Counter()
    all_workers_answer(door)
    end = settled(pid)
    print(f"before {begin}, after {end}")
    assert end["fds"] <= begin["fds"] + 2
    # What ever was there at once, and no more: gRPC keeps the threads that it has made.
    slow = 3 * CLIENTS * (SLOW_AT_ONCE + 1)
    assert end["threads"] <= 40 + AT_ONCE + slow
    if SOAK:
        assert end["rss"] <= 1.1 * begin["rss"]


def settled(pid: int) -> dict[str, int]:
    """What a process takes once it has noticed that its clients have gone."""
    before: dict[str, int] = {}
    deadline = time.monotonic() + 30
    while (now := usage(pid))["fds"] != before.get("fds") and time.monotonic() < deadline:
        before = now
        time.sleep(0.5)
    return now


def all_workers_answer(door: Door) -> None:
    """More calls at once than there are workers and slow clients, and each is answered."""
    with door.channel() as channel:
        ask: Callable[..., grpc.Future] = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict"
        ).future
        for call in [ask(GOOD, timeout=30) for _ in range(AT_ONCE)]:
            assert call.result()
    answers: list[int] = []

    def rest() -> None:
        with contextlib.closing(door.http()) as connection:
            connection.request("POST", "/v1/models/affine:predict", b'{"instances": [1]}')
            answers.append(connection.getresponse().status)

    threads = [threading.Thread(target=rest) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 32
