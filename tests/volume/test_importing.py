"""Volumes as the original's scripts made them, imported; LUKS2 volumes made elsewhere, adopted."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve import logs
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.model.config_file import config_of
from sealserve.serving.config import TlsConfig
from sealserve.serving.tls import TlsSource
from sealserve.volume import foreign as foreign_module
from sealserve.volume.engine import verify_file
from sealserve.volume.foreign import open_foreign
from sealserve.volume.importing import adopt, import_volume
from sealserve.volume.maker import create_sealed
from sealserve.volume.mount import mount_sealed
from sealserve.volume.process import run
from sealserve.volume.reader import SealedReader
from sealserve.volume.record import VolumeRecord, open_record
from sealserve.volume.recovery import backup_header, recover_key, restore_header
from sealserve.volume.rotate import rotate
from sealserve.volume.tree import tree_digest
from tests.volume.conftest import KEY, MARKER, flip, need_tools
from tests.volume.foreign import MIB, PASSPHRASE, encrypted, filesystem, original_tree

START = 16 * MIB


class Old:
    """A tree, its filesystem, and both versions of LUKS around that."""

    def __init__(self, directory: Path) -> None:
        need_tools()
        (directory / "tree").mkdir()
        self.tree = original_tree(directory / "tree")
        self.inside = filesystem(directory / "inside", self.tree)
        self.luks1 = encrypted(self.inside, directory / "luks1", version=1)
        argon2 = ("--pbkdf=argon2id", "--pbkdf-memory=65536", "--pbkdf-force-iterations=4")
        self.luks2 = encrypted(self.inside, directory / "luks2", *argon2)
        self.mountable = filesystem(directory / "mountable", self.tree, 12 * MIB, "-b4096")
        self.own_key = encrypted(self.mountable, directory / "own", passphrase=KEY)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    return Old(tmp_path_factory.mktemp("old"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where volumes are made; nothing else is put there."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def imported(old: Path, path: Path, owner: Ed25519PrivateKey, **changes: Any) -> VolumeRecord:
    arguments = {"passphrase": PASSPHRASE, "key": KEY, "name": "models", **changes}
    return open_record(import_volume(old, path, owner_key=owner, **arguments), owner.public_key())


def adopted(old: Path, path: Path, owner: Ed25519PrivateKey, **changes: Any) -> VolumeRecord:
    arguments = {"key": KEY, "name": "models", **changes}
    return open_record(adopt(old, path, owner_key=owner, **arguments), owner.public_key())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Names, modes and digests of all that is in a directory."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        name, mode = str(path.relative_to(root)), path.lstat().st_mode
        if name == "lost+found":
            continue
        content: object = None
        if stat.S_ISLNK(mode):
            content = path.readlink()
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = (stat.filemode(mode), content)
    return found


@pytest.mark.parametrize("version", ["luks1", "luks2"])
def test_every_file_arrives(
    version: str, old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path,
    nothing_left: Callable[[], None],
) -> None:  # fmt: skip
    before = hashlib.sha256(getattr(old, version).read_bytes()).digest()
    record = imported(getattr(old, version), place / "v", owner)
    assert (record.kind, record.sector_size, record.models) == ("sealed", 4096, ())
    with SealedReader(place / "v", record, KEY) as volume:
        volume.extract(tmp_path / "out")
    wanted = listing(old.tree)
    assert len(wanted) == 13
    assert listing(tmp_path / "out") == wanted
    with mount_sealed(place / "v", record, KEY, tmp_path / "mnt", driver="fuse"):
        assert listing(tmp_path / "mnt") == wanted
        owners = {(s.st_uid, s.st_gid) for s in map(Path.lstat, (tmp_path / "mnt").rglob("*"))}
    assert owners == {(0, 0)}
    assert names(place) == ["v"]
    assert hashlib.sha256(getattr(old, version).read_bytes()).digest() == before
    nothing_left()


def test_arranged_as_a_guest_expects_it(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    def config(models: Path) -> bytes:
        return config_of(models)[0]

    record = imported(old.luks1, place / "v", owner, config_of=config)
    with mount_sealed(place / "v", record, KEY, tmp_path / "mnt", driver="fuse"):
        found = listing(tmp_path / "mnt")
        text = (tmp_path / "mnt" / "models.config").read_text()
        (entry,) = record.models
        assert (entry.name, entry.version) == ("resnet", 1)
        assert tree_digest(tmp_path / "mnt" / "models" / "resnet" / "1") == entry.digest
        assert (tmp_path / "mnt" / "models.config").stat().st_uid == 0
        # The original's own form of a key is one that the server takes.
        tls = TlsConfig(ssl_config_file=tmp_path / "mnt" / "tls" / "ssl.cfg")
        (identity,) = TlsSource(tls, logs.make_log()).current().all
        assert identity.is_for("grpc.tf.service.com")
    assert 'base_path: "models/resnet"' in text
    assert found.pop("models.config")[0] == "-rw-r--r--"
    moved = {"model": "models", "ssl_configure": "tls"}
    wanted = {
        "/".join([moved.get(top := name.split("/")[0], top), *name.split("/")[1:]]): what
        for name, what in listing(old.tree).items()
    }
    assert found == wanted
    with (place / "v").open("rb") as file:
        verify_file(file.fileno(), record)


def test_no_plaintext_and_no_key_on_the_way_into_erofs(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """Looked at while each program runs: its command line, and every file there is by then."""
    seen = []

    def runner(command: Sequence[str], **options: Any) -> str:
        seen.append(command[0])
        secrets = (PASSPHRASE, KEY, MARKER)
        line = "\0".join(command).encode()
        assert not any(secret in line for secret in secrets)
        done = run(command, **options)
        for path in (p for p in place.rglob("*") if p.is_file()):
            assert not any(secret in path.read_bytes() for secret in secrets)
        return done

    record = imported(old.luks2, place / "v", owner, filesystem="erofs", runner=runner)
    assert seen[:2] == ["cryptsetup", "e2fsck"]
    assert "mkfs.erofs" in seen
    with SealedReader(place / "v", record, KEY) as volume:
        volume.extract(tmp_path / "out")
    assert listing(tmp_path / "out") == listing(old.tree)
    assert not (tmp_path / "out" / "lost+found").exists()


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_volume_made_elsewhere_is_opened_as_it_is(
    sector_size: int, old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path,
    nothing_left: Callable[[], None],
) -> None:  # fmt: skip
    volume = old.own_key
    if sector_size == 4096:
        quick = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--sector-size=4096")
        volume = encrypted(old.mountable, tmp_path / "own", *quick, passphrase=KEY)
    record = adopted(volume, place / "v", owner)
    assert (record.sector_size, record.kind) == (sector_size, "sealed")
    assert (place / "v").read_bytes()[: record.segment_end] == volume.read_bytes()
    with mount_sealed(place / "v", record, KEY, tmp_path / "mnt", driver="fuse"):
        assert listing(tmp_path / "mnt") == listing(old.tree)
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mnt" / "new").touch()
    flip(place / "v", record.segment_offset + record.data_size // 2)
    with (place / "v").open("rb") as file, pytest.raises(Refused) as caught:
        verify_file(file.fileno(), record)
    assert caught.value.code == "volume.block_mismatch"
    nothing_left()


def test_an_adopted_volume_has_a_way_back_in_and_a_next_version(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """Its recovery header has its own layout; what is rotated has ours."""
    phrase = b"a phrase of sixteen bytes or more"
    record = adopted(old.own_key, place / "v", owner)
    backup = tmp_path / "v.header"
    backup_header(place / "v", record, backup, key=KEY, phrase=phrase, memory_kib=1 << 16)
    flip(place / "v", 4096 + 17)
    restore_header(place / "v", record, backup)
    key = recover_key(record, backup, phrase)
    raw = rotate(
        place / "v", record, key, new_key=bytes(32), owner_key=owner, target=place / "next"
    )
    following = open_record(raw, owner.public_key())
    assert (record.sector_size, following.sector_size, following.version) == (512, 4096, 2)
    with SealedReader(place / "next", following, bytes(32)) as volume:
        volume.extract(tmp_path / "out")
    assert listing(tmp_path / "out") == listing(old.tree)


def test_models_of_an_adopted_volume_are_in_its_record(
    source: Path, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    inside = filesystem(tmp_path / "inside", source, 12 * MIB, "-b4096")
    record = adopted(encrypted(inside, tmp_path / "own", passphrase=KEY), place / "v", owner)
    assert [(model.name, model.version) for model in record.models] == [("net", 1), ("net", 2)]
    assert record.models[0].digest == tree_digest(source / "models" / "net" / "1")


@pytest.mark.parametrize(
    ("volume", "changes", "code"),
    [
        ("luks1", {"key": KEY}, "volume.foreign_passphrase"),
        ("own_key", {"key": KEY[::-1]}, "volume.foreign_passphrase"),
        ("own_key", {"key": b"short"}, "volume.key_size"),
        ("own_key", {"name": "a/b"}, "volume.name"),
    ],
)
def test_what_is_not_adopted(
    volume: str, changes: dict[str, Any], code: str, old: Old, place: Path,
    owner: Ed25519PrivateKey,
) -> None:  # fmt: skip
    with pytest.raises(SealserveError) as caught:
        adopted(getattr(old, volume), place / "v", owner, **changes)
    assert caught.value.code == code
    assert not names(place)


def test_luks1_and_further_keyslots_are_not_adopted(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    from tests.volume.conftest import tool

    first = encrypted(old.inside, tmp_path / "first", version=1, passphrase=KEY)
    second = tmp_path / "second"
    second.write_bytes(old.own_key.read_bytes())
    key = str(tmp_path / "first.key")
    tool("cryptsetup", "luksAddKey", "-q", "--disable-locks", "--pbkdf=pbkdf2",
         "--pbkdf-force-iterations=1000", "--key-file", key, str(second), key)  # fmt: skip
    for volume in (first, second):
        with pytest.raises(Refused) as caught:
            adopted(volume, place / "v", owner)
        assert caught.value.code == "volume.adopt_refused"
        assert "volume import" in (caught.value.hint or "")
    with open_foreign(second, KEY) as opened:  # the way that is named
        assert opened.block_size == 4096


def test_a_filesystem_of_small_blocks_is_not_adopted(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """Over dm-verity's 4096-byte blocks the kernel says "bad block size 1024"."""
    with pytest.raises(Refused) as caught:
        adopted(encrypted(old.inside, tmp_path / "own", passphrase=KEY), place / "v", owner)
    assert caught.value.code == "volume.adopt_refused"
    assert "1024" in caught.value.message


def spoilt(content: bytes, offset: int, new: bytes) -> bytes:
    return content[:offset] + new + content[offset + len(new) :]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda _: b"", "volume.foreign_refused"),
        (lambda _: os.urandom(MIB), "volume.foreign_refused"),
        (lambda c: c[:START], "volume.size_mismatch"),
        (lambda c: c[: START + 4096], "volume.size_mismatch"),
        (lambda c: c[:-4096], "volume.size_mismatch"),
        (lambda c: c[: 8 * MIB], "volume.foreign_refused"),
        # The header is elsewhere: this is a detached volume's data.
        (lambda c: c[START:], "volume.foreign_refused"),
        (lambda c: c[START:] + c[:START], "volume.foreign_refused"),
        # The first sector of the superblock.
        (lambda c: spoilt(c, START + 1024, bytes(512)), "volume.foreign_filesystem"),
        # Its checksum's sector; then a bitmap.
        (lambda c: spoilt(c, START + 1536, bytes(512)), "volume.foreign_filesystem"),
        (lambda c: spoilt(c, START + 3 * 1024, bytes(8192)), "volume.foreign_filesystem"),
    ],
)
def test_bad_volumes_are_refused(
    spoil: Callable[[bytes], bytes], code: str, old: Old, place: Path,
    owner: Ed25519PrivateKey, tmp_path: Path, nothing_left: Callable[[], None],
) -> None:  # fmt: skip
    (tmp_path / "bad").write_bytes(spoil(old.luks1.read_bytes()))
    with pytest.raises(SealserveError) as caught:
        imported(tmp_path / "bad", place / "v", owner)
    assert caught.value.code == code
    assert not names(place)
    nothing_left()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"passphrase": b"wrong"}, "volume.foreign_passphrase"),
        ({"passphrase": PASSPHRASE + b"\n"}, "volume.foreign_passphrase"),
        ({"passphrase": b""}, "volume.passphrase_size"),
        ({"passphrase": b"x" * 4097}, "volume.passphrase_size"),
        ({"key": b"short"}, "volume.key_size"),
        ({"size": 1 << 19}, "volume.size"),
        ({"filesystem": "erofs", "config_of": bytes}, "volume.layout_unknown"),
    ],
)
def test_bad_requests_are_refused(
    changes: dict[str, Any], code: str, old: Old, place: Path, owner: Ed25519PrivateKey
) -> None:
    with pytest.raises(SealserveError) as caught:
        imported(old.luks1, place / "v", owner, **changes)
    assert caught.value.code == code
    assert not names(place)


def test_a_layout_that_is_not_the_originals(
    source: Path, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    volume = encrypted(filesystem(tmp_path / "inside", source), tmp_path / "old")
    with pytest.raises(InputError) as caught:
        imported(volume, place / "v", owner, config_of=lambda _: b"")
    assert caught.value.code == "volume.layout_unknown"


@pytest.mark.parametrize("offset", [58, 96])  # s_state; needs_recovery
def test_a_filesystem_that_is_still_mounted_is_refused(
    offset: int, old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """A copy taken while it was mounted has half of its changes in the journal."""
    inside = bytearray(old.inside.read_bytes())
    (value,) = struct.unpack_from("<I", inside, 1024 + offset)
    struct.pack_into("<I", inside, 1024 + offset, value ^ (4 if offset == 96 else 1))
    (tmp_path / "inside").write_bytes(inside)
    volume = encrypted(tmp_path / "inside", tmp_path / "old")
    with pytest.raises(Refused) as caught:
        imported(volume, place / "v", owner)
    assert caught.value.code == "volume.foreign_unclean"


def test_another_filesystem_is_refused(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    (tmp_path / "inside").write_bytes(os.urandom(MIB))
    with pytest.raises(Refused) as caught:
        imported(encrypted(tmp_path / "inside", tmp_path / "old"), place / "v", owner)
    assert caught.value.code == "volume.foreign_filesystem"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(
    make: Callable[[Path], None], place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    make(tmp_path / "old")
    with pytest.raises(InputError) as caught:
        imported(tmp_path / "old", place / "v", owner)
    assert caught.value.code == "volume.foreign_kind"


def test_nothing_runs_before_the_header_is_accepted(
    old: Old, place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    def runner(command: Sequence[str], **_: Any) -> str:
        raise AssertionError(command)

    content = spoilt(old.luks1.read_bytes(), 8, b"cipher_null".ljust(32, b"\0"))
    (tmp_path / "evil").write_bytes(content)
    with pytest.raises(Refused) as caught:
        imported(tmp_path / "evil", place / "v", owner, runner=runner)
    assert caught.value.code == "volume.foreign_refused"


def test_a_header_swapped_after_its_check_is_not_used(old: Old, tmp_path: Path) -> None:
    """What cryptsetup reads is the copy in memory that was accepted."""
    path = tmp_path / "old"
    path.write_bytes(old.luks1.read_bytes())
    swapped = []

    def runner(command: Sequence[str], **options: Any) -> str:
        swapped.append(command)
        with path.open("r+b") as file:
            file.write(bytes(4096))
        return run(command, **options)

    with open_foreign(path, PASSPHRASE, runner) as opened:
        assert opened.area[:6] == b"LUKS\xba\xbe"
    assert swapped


def test_what_fsck_once_found_goes_along(
    place: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """An ext4 filesystem brings its own lost+found; it is not counted twice, and all is root's."""
    tree = original_tree(tmp_path / "tree")
    (tree / "lost+found").mkdir()
    (tree / "lost+found" / "#12345").write_bytes(b"found")
    raw = create_sealed(place / "v", tree, key=KEY, owner_key=owner, name="m")
    record = open_record(raw, owner.public_key())
    with mount_sealed(place / "v", record, KEY, tmp_path / "mnt", driver="fuse"):
        assert (tmp_path / "mnt" / "lost+found" / "#12345").read_bytes() == b"found"
        assert {path.lstat().st_uid for path in (tmp_path / "mnt").rglob("*")} == {0}
        assert listing(tmp_path / "mnt") == listing(tree)


def test_what_is_there_is_not_replaced(old: Old, place: Path, owner: Ed25519PrivateKey) -> None:
    (place / "v").write_bytes(b"precious")
    for make, volume in ((imported, old.luks1), (adopted, old.own_key)):
        with pytest.raises(InputError) as caught:
            make(volume, place / "v", owner)
        assert caught.value.code == "volume.exists"
        assert (place / "v").read_bytes() == b"precious"
    adopted(old.own_key, place / "v", owner, force=True)


@pytest.mark.parametrize("program", ["cryptsetup", "mkfs.ext4", "debugfs"])
def test_an_import_that_fails_leaves_nothing(
    program: str, old: Old, place: Path, owner: Ed25519PrivateKey,
    nothing_left: Callable[[], None],
) -> None:  # fmt: skip
    def runner(command: Sequence[str], **options: Any) -> str:
        if command[0] == program:
            raise Unavailable("volume.tool_missing", "injected")
        return run(command, **options)

    with pytest.raises(Unavailable):
        imported(old.luks1, place / "v", owner, runner=runner)
    assert not names(place)
    nothing_left()


_IMPORTER = """
import os, sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sealserve.volume.foreign import open_foreign
from sealserve.volume.importing import import_volume
from sealserve.volume.process import run
def runner(command, **options):
    if command[0] == sys.argv[3]:
        print("there", flush=True)
        time.sleep(60)
    return run(command, **options)
passphrase = sys.stdin.buffer.read()
import_volume(Path(sys.argv[1]), Path(sys.argv[2]), passphrase=passphrase, key=bytes(32),
    owner_key=Ed25519PrivateKey.generate(), name="models", runner=runner)
print("done", os.geteuid(), Path("/proc/self/uid_map").read_text().split()[2])
"""


def _importer(old: Path, new: Path, stop_at: str, *prefix: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _IMPORTER, old, new, stop_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(PASSPHRASE)
    process.stdin.close()
    process.stdin = None
    return process


def test_a_killed_import_leaves_nothing_that_looks_finished(
    old: Old, place: Path, nothing_left: Callable[[], None]
) -> None:
    with _importer(old.luks1, place / "v", "mkfs.ext4") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
    assert names(place) == ["v.partial"]
    nothing_left()


def test_without_root(old: Old, place: Path, nothing_left: Callable[[], None]) -> None:
    """In a user namespace, where nothing but FUSE can be mounted."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no user namespaces")
    with _importer(old.luks1, place / "v", "", "unshare", "-Urm") as process:
        out = process.communicate(timeout=100)[0]
    assert out == b"done 0 1\n"  # root of one user: itself
    assert names(place) == ["v"]
    nothing_left()


def test_an_interrupted_adoption_leaves_nothing(
    old: Old, place: Path, owner: Ed25519PrivateKey, nothing_left: Callable[[], None]
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopted(old.own_key, place / "v", owner, progress=interrupt)
    assert not names(place)
    nothing_left()


def test_a_loop_device_on_it_means_that_it_may_be_mounted(
    old: Old, place: Path, owner: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's scripts leave them behind."""
    monkeypatch.setattr(foreign_module, "loops_on", lambda _: ["/dev/loop7"])
    with pytest.raises(InputError) as caught:
        imported(old.luks1, place / "v", owner)
    assert caught.value.code == "volume.in_use"
    assert "losetup -d /dev/loop7" in (caught.value.hint or "")


def test_a_key_in_another_form_is_not_taken() -> None:
    """Should cryptsetup ever print it otherwise."""
    for text in (b"", b"MK dump:\tab cd", b"MK dump: " + b"AB " * 64, b"dump: " + b"ab " * 65):
        with pytest.raises(Refused) as caught:
            foreign_module._key_in(bytearray(text))
        assert caught.value.code == "volume.foreign_refused"
    good = b"uuid 12 34\nMK dump:\t" + b"ab cd " * 16 + b"\n\t\t" + b"01 02 " * 16 + b"\n"
    assert foreign_module._key_in(bytearray(good)) == b"\xab\xcd" * 16 + b"\1\2" * 16
