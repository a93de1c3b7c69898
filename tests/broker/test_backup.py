"""Backup and restore: from either database into either, nothing secret, nothing older."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from sealserve.broker import backup as backups
from sealserve.broker.administration import Administration
from sealserve.broker.audit_chain import ChainHead
from sealserve.broker.backup import backup, restore
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import open_broker
from sealserve.broker.kek_provider import NEXT_CONFIG
from sealserve.broker.leases import Leases
from sealserve.broker.principals import local_caller
from sealserve.broker.rekey import rekey
from sealserve.broker.tables import AuditLineRow, ChallengeRow
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.conftest import BOTH_STORES, RESOURCE, World, policy_for
from tests.broker.postgres import Postgres

Members = dict[str, bytes]


def _restored(world: World, made: Path, root: Path, store_url: str | None) -> None:
    """Restore, put the key file back, and compare what there is."""
    manifest, _ = restore(made, root, store_url=store_url)
    assert not (root / "kek").exists()
    with pytest.raises(Unavailable) as caught:
        open_broker(root)
    assert caught.value.code == "kek.unreadable"
    shutil.copy2(world.broker.root / "kek", root / "kek")
    with open_broker(root) as again:
        assert again.store.secret(RESOURCE, 1, again.kek) == world.key
        assert again.store.resources() == world.broker.store.resources()
        assert again.store.secrets() == world.broker.store.secrets()
        assert Leases(again.store).list() == Leases(world.broker.store).list()
        assert again.audit.verify(manifest.head).count == manifest.audit_count + 1
        last = json.loads(next(iter(again.audit.lines(last=1))))
        assert (last["event"], last["backup_head"]) == ("broker.restore", str(manifest.head))
    assert sorted(path.name for path in root.parent.iterdir() if path.name.startswith(".")) == []


@BOTH_STORES
def test_what_was_backed_up_is_restored(
    world: World, tmp_path: Path, postgres: Postgres, store_kind: str
) -> None:
    assert bytes(world.ask().secret) == world.key
    made = tmp_path / "backup"
    backup(world.broker.root, made)
    assert made.stat().st_mode & 0o777 == 0o600
    own = postgres.new_database() if store_kind == "postgresql" else None
    _restored(world, made, tmp_path / "own" / "broker", own)
    other = "sqlite:///other.db" if store_kind == "postgresql" else postgres.new_database()
    (tmp_path / "other").mkdir()
    _restored(world, made, tmp_path / "other", other)


def test_nothing_secret_is_in_a_backup(world: World, tmp_path: Path) -> None:
    world.ask()
    made = tmp_path / "backup"
    backup(world.broker.root, made)
    content = made.read_bytes()
    kek = (world.broker.root / "kek").read_bytes()
    for planted in (
        b"PLANTED-KEY",
        world.key[11:27],
        kek,
        kek[:16],
        world.broker.tls_private_key(),
    ):
        assert planted not in content
    with tarfile.open(made) as archive:  # an ordinary archive, for ordinary tools
        assert archive.getnames() == ["manifest.json", "broker.json", "broker.yaml", "broker.db"]
    with world.broker.store.reading() as session:
        nonces = list(session.scalars(select(ChallengeRow.nonce)))
    assert not any(nonce in content for nonce in nonces)


def test_a_destroyed_secret_is_not_in_a_later_backup(world: World, tmp_path: Path) -> None:
    with world.broker.store.reading() as session:
        wrapped = (
            session.connection()
            .exec_driver_sql("SELECT wrapped FROM secrets WHERE id = 'models/other'")
            .scalar()
        )
    assert isinstance(wrapped, bytes)
    backup(world.broker.root, tmp_path / "before")
    assert wrapped in (tmp_path / "before").read_bytes()
    request = v1_pb2.SecretDestroyRequest(secret="models/other", version=1)
    Administration(world.broker).perform(local_caller(), request)
    backup(world.broker.root, tmp_path / "after")
    assert wrapped not in (tmp_path / "after").read_bytes()


@BOTH_STORES
def test_a_backup_made_under_load_is_of_one_moment(world: World, tmp_path: Path) -> None:
    stop, errors = threading.Event(), []

    def ask_on() -> None:
        while not stop.is_set():
            try:
                world.ask()
            except SealserveError as error:
                errors.append(error)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        heads = [backup(world.broker.root, tmp_path / f"{n}").head for n in range(3)]
    finally:
        stop.set()
        thread.join()
    assert errors == []
    end = world.broker.audit.verify()
    for head in heads:  # each is a place that the chain went through
        assert world.broker.audit.end_at(head.count) == head
    assert end.count >= heads[-1].count


def test_an_older_backup_is_refused(world: World, tmp_path: Path) -> None:
    first = backup(world.broker.root, tmp_path / "old")
    world.ask()
    second = backup(world.broker.root, tmp_path / "new")
    with pytest.raises(Refused) as caught:
        restore(tmp_path / "old", tmp_path / "r", expect=second.head)
    assert caught.value.code == "audit.truncated"
    assert not (tmp_path / "r").exists()
    with pytest.raises(Refused) as another:
        restore(tmp_path / "new", tmp_path / "r", expect=ChainHead(first.audit_count, "0" * 64))
    assert another.value.code == "audit.head_differs"
    (tmp_path / "r").mkdir()  # an empty directory is as good as none
    restore(tmp_path / "new", tmp_path / "r", expect=first.head)


def test_a_broken_chain_is_not_backed_up(world: World, tmp_path: Path) -> None:
    with world.broker.store.writing() as session:
        session.execute(delete(AuditLineRow).where(AuditLineRow.sequence == 1))
    with pytest.raises(Refused) as caught:
        backup(world.broker.root, tmp_path / "b")
    assert caught.value.code == "audit.line_missing"
    assert list(tmp_path.glob("*b*/*")) == list(tmp_path.glob("broker/*"))


def test_places_that_are_taken_stay_as_they_are(
    world: World, tmp_path: Path, postgres: Postgres
) -> None:
    backup(world.broker.root, tmp_path / "b")
    content = (tmp_path / "b").read_bytes()
    with pytest.raises(InputError) as caught:
        backup(world.broker.root, tmp_path / "b")
    assert caught.value.code == "file.exists"
    assert (tmp_path / "b").read_bytes() == content
    with pytest.raises(InputError) as taken:
        restore(tmp_path / "b", world.broker.root)
    assert taken.value.code == "broker.directory_exists"
    url = postgres.new_database()
    restore(tmp_path / "b", tmp_path / "one", store_url=url)
    with pytest.raises(Refused) as used:
        restore(tmp_path / "b", tmp_path / "two", store_url=url)
    assert used.value.code == "broker.database_in_use"
    assert not (tmp_path / "two").exists()
    (world.broker.root / NEXT_CONFIG).touch()
    with pytest.raises(Refused) as running:
        backup(world.broker.root, tmp_path / "c")
    assert running.value.code == "backup.rekey_running"


def test_a_backup_goes_with_the_key_it_was_made_under(world: World, tmp_path: Path) -> None:
    root = world.broker.root
    made = backup(root, tmp_path / "b")
    rekey(root, "file")
    after = backup(root, tmp_path / "c")
    assert made.kek_id != after.kek_id
    restore(tmp_path / "b", tmp_path / "r")
    shutil.copy2(root / "kek", tmp_path / "r")  # the old key, which `rekey` left there
    with open_broker(tmp_path / "r") as again:
        assert again.kek.id == made.kek_id
        assert again.store.secret(RESOURCE, 1, again.kek) == world.key


def _members(made: Path) -> Members:
    with tarfile.open(made) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def _write(members: Members, path: Path, form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    return lambda members: {**members, name: change(members[name])}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda _: {}, {"backup.malformed"}),
        (lambda m: dict(reversed(m.items())), {"backup.malformed"}),
        (lambda m: {f"../{k}": v for k, v in m.items()}, {"backup.malformed"}),
        (lambda m: {k: v for k, v in m.items() if k != "broker.db"}, {"backup.malformed"}),
        (_changed("manifest.json", lambda _: b"{}"), {"backup.malformed"}),
        (_changed("manifest.json", lambda raw: raw + b" " * 70_000), {"backup.malformed"}),
        (_changed("broker.db", lambda raw: raw[:-1] + b"\xff"), {"backup.damaged"}),
        (_changed("broker.yaml", lambda raw: raw + b"\n"), {"backup.damaged"}),
        (_changed("broker.json", lambda raw: raw[:-2]), {"backup.damaged"}),
    ],
)
def test_a_changed_backup_makes_nothing(
    world: World, tmp_path: Path, change: Callable[[Members], Members], codes: set[str]
) -> None:
    backup(world.broker.root, tmp_path / "b")
    _write(change(_members(tmp_path / "b")), tmp_path / "bad")
    with pytest.raises(SealserveError) as caught:
        restore(tmp_path / "bad", tmp_path / "r")
    assert caught.value.code in codes
    assert not (tmp_path / "r").exists()
    assert not list(tmp_path.glob(".r-*"))


def test_a_backup_put_together_with_fitting_digests_is_held_to_its_chain(
    world: World, tmp_path: Path
) -> None:
    backup(world.broker.root, tmp_path / "old")
    world.ask()
    backup(world.broker.root, tmp_path / "new")
    old, new = _members(tmp_path / "old"), _members(tmp_path / "new")
    manifest, older = json.loads(new["manifest.json"]), json.loads(old["manifest.json"])
    manifest["files"]["broker.db"] = older["files"]["broker.db"]
    mixed = {**new, "broker.db": old["broker.db"], "manifest.json": json.dumps(manifest).encode()}
    _write(mixed, tmp_path / "mixed")
    with pytest.raises(Refused) as caught:
        restore(tmp_path / "mixed", tmp_path / "r")
    assert caught.value.code == "backup.mismatch"
    stranger = json.loads(old["manifest.json"])
    stranger["broker"] = "0" * 64
    _write({**old, "manifest.json": json.dumps(stranger).encode()}, tmp_path / "other")
    with pytest.raises(Refused) as other:
        restore(tmp_path / "other", tmp_path / "r")
    assert other.value.code == "backup.mismatch"


def test_a_cut_off_backup_makes_nothing(world: World, tmp_path: Path) -> None:
    backup(world.broker.root, tmp_path / "b")
    whole = (tmp_path / "b").read_bytes()
    for size in (0, 100, 511, 512, 700, 5000, len(whole) - 1025):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            restore(tmp_path / "cut", tmp_path / "r")
        assert caught.value.code == "backup.malformed"
    with pytest.raises(Unavailable):
        restore(tmp_path / "absent", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_extended_headers_and_links_are_not_followed(world: World, tmp_path: Path) -> None:
    backup(world.broker.root, tmp_path / "b")
    members = _members(tmp_path / "b")
    with tarfile.open(tmp_path / "link", "w") as archive:
        entry = tarfile.TarInfo("manifest.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    _write({"x" * 150: b"", **members}, tmp_path / "pax", tarfile.PAX_FORMAT)
    for name in ("link", "pax"):
        with pytest.raises(InputError) as caught:
            restore(tmp_path / name, tmp_path / "r")
        assert caught.value.code == "backup.malformed"


def test_killed_half_way_leaves_no_broker(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(world.broker.root, tmp_path / "b")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backups, "_note", stop)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "b", tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert not list(tmp_path.glob(".r-*"))


def test_an_update_from_a_deposit_goes_on_after_restoring(world: World, tmp_path: Path) -> None:
    backup(world.broker.root, tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "r")
    shutil.copy2(world.broker.root / "kek", tmp_path / "r")
    with open_broker(tmp_path / "r") as again:
        stored = again.put_secret(
            RESOURCE, seal_for(again.identity, b"next"),
            record=b"", owner_public_key=b"", policy=policy_for(world.td),
        )  # fmt: skip
        assert stored.secret_version == 2
        again.audit.verify()
