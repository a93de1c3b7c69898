"""The audit chain: what verify finds when somebody edits the database."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading

import pytest

from sealserve.broker.audit import GENESIS, AuditLog
from sealserve.broker.config import StoreConfig
from sealserve.broker.directory import Broker
from sealserve.broker.store import Store
from sealserve.errors import Refused

_LINES = 7


@pytest.fixture
def log(broker: Broker) -> AuditLog:
    for number in range(_LINES):
        broker.audit.append({"event": "release", "note": f"number {number}"})
    return broker.audit


def _edit(broker: Broker, *statements: str, number: int = 0) -> None:
    with sqlite3.connect(broker.root / "broker.db") as connection:
        for statement in statements:
            values = {"n": number} if ":n" in statement else {}
            assert connection.execute(statement, values).rowcount != 0, statement
    connection.close()


def _hash_again(broker: Broker, *, head_too: bool) -> None:
    """Recompute each line's own hash, as a forger would who knows the format."""
    with sqlite3.connect(broker.root / "broker.db") as connection:
        rows = connection.execute("SELECT sequence, line FROM audit_lines ORDER BY 1").fetchall()
        for sequence, line in rows:
            digest = hashlib.sha256(line.encode()).hexdigest()
            connection.execute(
                "UPDATE audit_lines SET sha256 = ? WHERE sequence = ?", (digest, sequence)
            )
        if head_too:
            connection.execute("UPDATE audit_head SET count = ?, sha256 = ?", (len(rows), digest))
    connection.close()


def test_an_untouched_chain_is_whole(log: AuditLog) -> None:
    head = log.verify()
    lines = list(log.lines())
    assert head.count == len(lines) == log.length() == _LINES
    assert head.sha256 == hashlib.sha256(lines[-1].encode()).hexdigest()
    assert json.loads(lines[0])["previous"] == GENESIS
    assert list(log.lines(last=2)) == lines[-2:]


def test_a_line_is_canonical_json(log: AuditLog) -> None:
    for line in log.lines():
        entry = json.loads(line)
        assert line == json.dumps(entry, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("number", [1, 4, _LINES])
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        ("UPDATE audit_lines SET line = replace(line, 'number', 'Number') WHERE sequence = :n",
         "audit.line_changed"),
        ("UPDATE audit_lines SET sha256 = '0' || substr(sha256, 2) || 'x' WHERE sequence = :n",
         "audit.line_changed"),
    ],
)  # fmt: skip
def test_a_changed_line_is_found(
    broker: Broker, log: AuditLog, edit: str, code: str, number: int
) -> None:
    _edit(broker, edit, number=number)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == code
    assert caught.value.where == f"line {number}"


def test_a_changed_line_with_a_matching_hash_is_found(broker: Broker, log: AuditLog) -> None:
    _edit(broker, "UPDATE audit_lines SET line = replace(line, 'number', 'x') WHERE sequence = 3")
    _hash_again(broker, head_too=True)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert (caught.value.code, caught.value.where) == ("audit.order_broken", "line 4")


@pytest.mark.parametrize("number", [1, 4])
def test_a_removed_line_is_found(broker: Broker, log: AuditLog, number: int) -> None:
    _edit(broker, "DELETE FROM audit_lines WHERE sequence = :n", number=number)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == "audit.line_missing"


def test_a_removed_line_with_the_rest_renumbered_is_found(broker: Broker, log: AuditLog) -> None:
    _edit(
        broker,
        "DELETE FROM audit_lines WHERE sequence = 4",
        "UPDATE audit_lines SET sequence = -sequence WHERE sequence > 4",
        "UPDATE audit_lines SET sequence = -sequence - 1 WHERE sequence < 0",
    )
    _hash_again(broker, head_too=True)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert (caught.value.code, caught.value.where) == ("audit.order_broken", "line 4")


def test_two_swapped_lines_are_found(broker: Broker, log: AuditLog) -> None:
    _edit(
        broker,
        "UPDATE audit_lines SET sequence = -3 WHERE sequence = 2",
        "UPDATE audit_lines SET sequence = 2 WHERE sequence = 3",
        "UPDATE audit_lines SET sequence = 3 WHERE sequence = -3",
    )
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == "audit.order_broken"


@pytest.mark.parametrize("kept", [0, 1, _LINES - 1])
def test_a_cut_off_end_is_found(broker: Broker, log: AuditLog, kept: int) -> None:
    _edit(broker, "DELETE FROM audit_lines WHERE sequence > :n", number=kept)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == "audit.truncated"


def test_a_missing_head_is_found(broker: Broker, log: AuditLog) -> None:
    _edit(broker, "DELETE FROM audit_head")
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == "audit.truncated"


def test_a_line_that_is_no_json_is_found(broker: Broker, log: AuditLog) -> None:
    _edit(broker, "UPDATE audit_lines SET line = 'nonsense' WHERE sequence = 2")
    _hash_again(broker, head_too=True)
    with pytest.raises(Refused) as caught:
        log.verify()
    assert caught.value.code == "audit.order_broken"


def test_parallel_writers_of_two_processes_make_one_chain(broker: Broker) -> None:
    second = Store.open(StoreConfig(), broker.root)  # its own connections and lock
    logs = [broker.audit, AuditLog(second)]

    def write(log: AuditLog) -> None:
        for _ in range(25):
            log.append({"event": "release"})

    threads = [threading.Thread(target=write, args=(log,)) for log in logs * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert broker.audit.verify().count == 100


def test_a_line_is_part_of_the_transaction_it_speaks_of(broker: Broker) -> None:
    from sealserve.broker.audit import append

    def fail() -> None:
        with broker.store.writing() as session:
            append(session, {"event": "secret.put"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert broker.audit.verify().count == 0
