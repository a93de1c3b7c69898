"""Signed checkpoints and exports: what a reader finds with the public document alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from sealserve.broker.audit import AuditLog
from sealserve.broker.audit_chain import GENESIS, ChainHead
from sealserve.broker.audit_export import check, verify_file
from sealserve.broker.checkpointer import Checkpointer
from sealserve.broker.config import AuditConfig
from sealserve.broker.directory import Broker, create, open_broker
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.tables import AuditCheckpointRow, AuditHeadRow, AuditLineRow
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.logs import make_log
from tests.broker.conftest import BOTH_STORES

_LINES = 7
_SIGNED_AT = 4


def _grow(log: AuditLog, lines: int) -> None:
    for number in range(lines):
        log.append({"event": "release", "note": f"number {number}"})


@pytest.fixture
def log(broker: Broker) -> AuditLog:
    """A chain of seven lines, signed at the fourth."""
    _grow(broker.audit, _SIGNED_AT)
    broker.audit.checkpoint(broker.audit_signer())
    _grow(broker.audit, _LINES - _SIGNED_AT)
    return broker.audit


@pytest.fixture
def export(broker: Broker, log: AuditLog, tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    assert log.export(path, broker.audit_signer()).count == _LINES
    return path


def _code(act: Callable[[], object]) -> str:
    with pytest.raises(SealserveError) as caught:
        act()
    return caught.value.code


def _rewrite(broker: Broker, forge: Callable[[dict[str, Any]], None]) -> None:
    """Write the whole chain anew after a change, as who owns the database can."""
    with broker.store.writing() as session:
        end = GENESIS
        rows = session.scalars(select(AuditLineRow).order_by(AuditLineRow.sequence)).all()
        for row in rows:
            entry = json.loads(row.line)
            forge(entry)
            row.line = json.dumps({**entry, "previous": end}, sort_keys=True, separators=(",", ":"))
            row.sha256 = end = hashlib.sha256(row.line.encode()).hexdigest()
        session.execute(update(AuditHeadRow).values(sha256=end))


@BOTH_STORES
def test_a_checkpoint_is_an_ed25519_signature_over_canonical_json(
    broker: Broker, log: AuditLog
) -> None:
    (mark,) = log.checkpoints()
    document = mark.to_dict()
    signature = base64.b64decode(document.pop("signature"))
    assert document["count"] == _SIGNED_AT
    assert document["sha256"] == hashlib.sha256(list(log.lines())[3].encode()).hexdigest()
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    published = json.loads((broker.root / "broker.json").read_text())["audit_key"]
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(published))
    key.verify(signature, text)
    with pytest.raises(InvalidSignature):
        key.verify(signature, text.replace(b"4", b"5", 1))
    assert log.verify().count == _LINES


@BOTH_STORES
def test_a_chain_that_was_wholly_rewritten_is_found_by_its_checkpoint(
    broker: Broker, log: AuditLog
) -> None:
    def forge(entry: dict[str, Any]) -> None:
        if entry["sequence"] == 2:
            entry["note"] = "nothing happened"

    _rewrite(broker, forge)
    assert AuditLog(broker.store).verify().count == _LINES  # without checkpoints it is perfect
    assert _code(log.verify) == "audit.checkpoint_mismatch"
    assert _code(lambda: log.export(Path("never"), broker.audit_signer())) == (
        "audit.checkpoint_mismatch"
    )


@BOTH_STORES
def test_nothing_is_signed_over_a_broken_chain(broker: Broker, log: AuditLog) -> None:
    with broker.store.writing() as session:
        session.execute(delete(AuditLineRow).where(AuditLineRow.sequence == 6))
    assert _code(lambda: log.checkpoint(broker.audit_signer())) == "audit.line_missing"
    assert len(log.checkpoints()) == 1


@BOTH_STORES
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signature": bytes(64)}, "audit.checkpoint_invalid"),
        ({"signature": b"short"}, "audit.checkpoint_invalid"),
        ({"time": "2020-01-01T00:00:00.000+00:00"}, "audit.checkpoint_invalid"),
        ({"sha256": "00" * 32}, "audit.checkpoint_invalid"),
        ({"sequence": 5}, "audit.checkpoint_invalid"),
    ],
)
def test_a_changed_checkpoint_is_found(
    broker: Broker, log: AuditLog, change: dict[str, Any], code: str
) -> None:
    with broker.store.writing() as session:
        session.execute(update(AuditCheckpointRow).values(**change))
    assert _code(log.verify) == code


@BOTH_STORES
def test_a_cut_off_end_is_found_by_a_checkpoint_or_a_known_head(
    broker: Broker, log: AuditLog
) -> None:
    known = log.verify()

    def cut(kept: int) -> None:
        with broker.store.writing() as session:
            session.execute(delete(AuditLineRow).where(AuditLineRow.sequence > kept))
            last = session.get_one(AuditLineRow, kept)
            session.execute(update(AuditHeadRow).values(count=kept, sha256=last.sha256))

    cut(_SIGNED_AT + 1)  # behind the last checkpoint: only a known head shows it
    assert log.verify().count == _SIGNED_AT + 1
    assert _code(lambda: log.verify(known)) == "audit.truncated"
    cut(_SIGNED_AT - 1)
    assert _code(log.verify) == "audit.truncated"


def test_a_known_head_that_is_another_is_found(log: AuditLog) -> None:
    true = log.end_at(3)
    assert true is not None
    assert log.verify(true).count == _LINES
    assert log.verify(ChainHead(0, GENESIS)).count == _LINES
    assert _code(lambda: log.verify(ChainHead(3, "00" * 32))) == "audit.head_differs"


@BOTH_STORES
def test_a_second_checkpoint_at_one_place_changes_nothing(broker: Broker, log: AuditLog) -> None:
    assert log.unsigned() == _LINES - _SIGNED_AT
    signer = broker.audit_signer()
    ends = {log.checkpoint(signer, now=datetime.now(UTC)) for _ in range(3)}
    assert len(ends) == 1
    assert [mark.count for mark in log.checkpoints()] == [_SIGNED_AT, _LINES]
    assert log.unsigned() == 0


def test_an_empty_chain_has_no_checkpoint_and_can_be_exported(
    broker: Broker, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    assert broker.audit.checkpoint(broker.audit_signer()).count == 0
    assert broker.audit.export(path, broker.audit_signer()).count == 0
    assert broker.audit.checkpoints() == []
    assert verify_file(path, broker.identity).head == ChainHead(0, GENESIS)


# --- the export, offline ------------------------------------------------------------


@BOTH_STORES
def test_an_export_holds_the_exact_lines_and_verifies(
    broker: Broker, log: AuditLog, export: Path
) -> None:
    lines = export.read_text().splitlines()
    assert [line for line in lines if '"sequence"' in line] == list(log.lines())
    assert [next(iter(json.loads(line))) for line in lines if '"sequence"' not in line] == [
        "checkpoint", "checkpoint", "end",
    ]  # fmt: skip
    assert export.stat().st_mode & 0o777 == 0o600
    found = verify_file(export, BrokerIdentity.load(broker.root / "broker.json"))
    assert (found.head, found.checkpoints) == (log.verify(), 2)


def test_any_one_line_removed_doubled_or_swapped_is_found(broker: Broker, export: Path) -> None:
    lines = export.read_text().splitlines()
    assert len(lines) == _LINES + 3
    for number in range(len(lines)):
        cut, rest = lines[:number], lines[number + 1 :]
        mangled = {"doubled": [*cut, lines[number], lines[number], *rest]}
        if '"checkpoint"' not in lines[number]:
            mangled["removed"] = [*cut, *rest]
        if rest:
            mangled["swapped"] = [*cut, rest[0], lines[number], *rest[1:]]
        for what, forged in mangled.items():
            # A checkpoint more or fewer, all of them genuine, tells nothing false.
            same = what == "doubled" and '"checkpoint"' in lines[number]
            if same:
                assert check(forged, broker.identity).head.count == _LINES
                continue
            with pytest.raises(Refused) as caught:
                check(forged, broker.identity)
            assert caught.value.code.startswith("audit."), (what, number)


def test_an_export_cut_anywhere_is_found(broker: Broker, export: Path) -> None:
    raw = export.read_bytes()
    for end in range(0, len(raw) - 1, 37):
        export.write_bytes(raw[:end])
        assert _code(lambda: verify_file(export, broker.identity)) == "audit.truncated"


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_an_export_with_any_byte_changed_is_found(
    broker: Broker, export: Path, data: st.DataObject
) -> None:
    raw = bytearray(export.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    forged = export.with_name("forged.jsonl")
    forged.write_bytes(raw)
    with pytest.raises((Refused, InputError)) as caught:
        verify_file(forged, broker.identity)
    assert caught.value.code.startswith("audit.")


def test_an_older_export_is_whole_and_only_a_later_one_shows_it(
    broker: Broker, log: AuditLog, export: Path, tmp_path: Path
) -> None:
    _grow(log, 2)
    later = tmp_path / "later.jsonl"
    head = log.export(later, broker.audit_signer())
    old = verify_file(export, broker.identity)  # honest, and old: this file alone cannot say so
    assert verify_file(later, broker.identity, expect=old.head).head == head
    assert _code(lambda: verify_file(export, broker.identity, expect=head)) == "audit.truncated"
    other = ChainHead(old.head.count, "00" * 32)
    assert _code(lambda: verify_file(later, broker.identity, expect=other)) == "audit.head_differs"
    assert verify_file(later, broker.identity, expect=ChainHead(0, GENESIS)).head == head


def test_another_brokers_export_is_refused(export: Path, tmp_path: Path) -> None:
    other = create(tmp_path / "other", name="other")
    assert _code(lambda: verify_file(export, other)) == "audit.checkpoint_invalid"


def test_a_checkpoint_of_another_broker_with_the_same_audit_key_is_refused(
    broker: Broker, log: AuditLog, export: Path, tmp_path: Path
) -> None:
    other = create(tmp_path / "other", name="other")
    posing = other.model_copy(update={"audit_key": broker.identity.audit_key})
    posing.__dict__.pop("audit_public_key", None)
    assert _code(lambda: verify_file(export, posing)) == "audit.checkpoint_invalid"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "audit.truncated"),
        (b"\xff\n", "audit.export_malformed"),
        (b"x" * ((1 << 20) + 1), "audit.export_malformed"),
        (b"{}\n", "audit.order_broken"),
        (b"[" * 5000 + b"\n", "audit.order_broken"),
        (b'{"end":{}}\n', "audit.checkpoint_malformed"),
        (b'{"end":[}\n', "audit.checkpoint_malformed"),
        (b'{"end":{},"more":1}\n', "audit.checkpoint_malformed"),
        (b'{"checkpoint":' + b"[" * 5000 + b"\n", "audit.checkpoint_malformed"),
    ],
)
def test_what_is_no_export(broker: Broker, tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "no-export"
    path.write_bytes(content)
    assert _code(lambda: verify_file(path, broker.identity)) == code


def test_an_absent_export_is_said_so(broker: Broker, tmp_path: Path) -> None:
    assert _code(lambda: verify_file(tmp_path / "absent", broker.identity)) == "file.unreadable"


@pytest.mark.parametrize("place", [lambda p: p / "absent" / "a.jsonl", lambda p: p])
def test_an_export_to_nowhere_leaves_nothing(
    broker: Broker, log: AuditLog, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Unavailable) as caught:
        log.export(place(tmp_path), broker.audit_signer())
    assert caught.value.code == "file.unwritable"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["", "7", "7:xyz", "-1:" + "0" * 64, "7:" + "G" * 64])
def test_a_head_that_is_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        ChainHead.parse(text, where="--expect-head")
    assert (caught.value.code, caught.value.where) == ("audit.head_malformed", "--expect-head")


def test_a_head_survives_its_text() -> None:
    head = ChainHead(12, "ab" * 32)
    assert ChainHead.parse(str(head), where="here") == head


def test_identity_and_database_of_different_audit_keys_do_not_open(
    broker_root: Path, tmp_path: Path
) -> None:
    other = create(tmp_path / "other", name="other")
    path = broker_root / "broker.json"
    document = {**json.loads(path.read_text()), "audit_key": other.audit_key}
    path.write_text(json.dumps(document))
    assert _code(lambda: open_broker(broker_root)) == "broker.key_mismatch"


# --- while a broker serves ------------------------------------------------------------


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_serving_broker_signs_after_lines_and_when_it_stops(broker: Broker) -> None:
    often = AuditConfig(checkpoint_lines=5, checkpoint_seconds=3600)
    log = make_log(io.StringIO())
    with Checkpointer(broker.audit, broker.audit_signer(), often, log):
        _grow(broker.audit, 5)
        _wait(lambda: broker.audit.unsigned() == 0)
        _grow(broker.audit, 2)
    assert [mark.count for mark in broker.audit.checkpoints()] == [5, 7]


def test_a_serving_broker_signs_after_a_time(broker: Broker) -> None:
    seldom = AuditConfig(checkpoint_lines=1000, checkpoint_seconds=1)
    with Checkpointer(broker.audit, broker.audit_signer(), seldom, make_log(io.StringIO())):
        _grow(broker.audit, 1)
        _wait(lambda: broker.audit.unsigned() == 0)


def test_a_broken_chain_is_reported_and_not_signed(broker: Broker, log: AuditLog) -> None:
    with broker.store.writing() as session:
        session.execute(delete(AuditLineRow).where(AuditLineRow.sequence == 6))
    stream = io.StringIO()
    with Checkpointer(broker.audit, broker.audit_signer(), AuditConfig(), make_log(stream)):
        pass
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert (line["event"], line["code"]) == ("audit chain not signed", "audit.line_missing")
    assert len(log.checkpoints()) == 1
