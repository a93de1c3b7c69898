"""Making volumes: other tools agree, no plaintext, nothing half done."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.volume import process
from sealserve.volume.engine import SealedView
from sealserve.volume.maker import create_sealed, create_writable
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import open_record
from sealserve.volume.tree import find_models, scan, tree_digest
from tests.volume.conftest import KEY, MARKER, Sealed, need_tools, tool


def test_cryptsetup_agrees(sealed: Sealed, tmp_path: Path) -> None:
    dump = tool("cryptsetup", "luksDump", str(sealed.path))
    record = sealed.record
    assert f"UUID:          \t{record.uuid}" in dump
    assert f"offset: {record.segment_offset} [bytes]" in dump
    assert "cipher: aes-xts-plain64" in dump
    assert "sector: 4096 [bytes]" in dump
    assert dump.count("PBKDF:") == 1
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_bytes(sealed.key)
    wrong.write_bytes(sealed.key.rstrip(b"\n"))
    test = ["open", "--test-passphrase", "--key-file"]
    tool("cryptsetup", *test, str(key), str(sealed.path))
    with pytest.raises(AssertionError, match="No key available"):
        tool("cryptsetup", *test, str(wrong), str(sealed.path))


def test_veritysetup_agrees(sealed: Sealed) -> None:
    verity = sealed.record.verity
    command = [
        "veritysetup", "verify", "--no-superblock", "--format=1", f"--hash={verity.algorithm}",
        "--data-block-size=4096", "--hash-block-size=4096", f"--salt={verity.salt}",
        f"--data-blocks={verity.data_blocks}", f"--hash-offset={verity.hash_offset}",
        str(sealed.path), str(sealed.path),
    ]  # fmt: skip
    tool(*command, verity.root_hash)
    with pytest.raises(AssertionError):
        tool(*command, "0" * 64)


def test_the_filesystem_is_whole_and_all_root(sealed: Sealed, plain: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(plain)
    tool("e2fsck", "-fn", str(image))
    if os.geteuid() == 0:
        assert (sealed.source / "tls" / "server.key").stat().st_uid == 12345
    listing = tool("debugfs", "-R", "ls -l /tls", str(image))
    owners = {tuple(line.split()[3:5]) for line in listing.splitlines() if line.strip()}
    assert owners == {("0", "0")}


def test_no_plaintext_in_the_file(sealed: Sealed, plain: bytes) -> None:
    assert plain.count(MARKER) > 100
    content = sealed.path.read_bytes()
    assert MARKER not in content
    assert sealed.key not in content


def test_no_plaintext_in_other_files_and_no_secret_beside(
    source: Path, owner: Ed25519PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a volume is made: no file under our hands and no /proc entry shows a secret."""
    need_tools()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    key = secrets.token_bytes(31) + b"\n"
    seen: list[str] = []

    def spy(command: Sequence[str], **kwargs: Any) -> str:
        for path in [*tmp_path.rglob("*"), *_proc_files_of_children()]:
            inside_fuse = path.name == "volume" and path.parent.name.startswith("sealserve-")
            if inside_fuse or not path.is_file():
                continue
            content = path.read_bytes()
            assert key not in content
            assert key.hex().encode() not in content
            assert MARKER not in content
            seen.append(path.name)
        return process.run(command, **kwargs)

    target = tmp_path / "v.seal"
    create_sealed(target, source, key=key, owner_key=owner, name="v", runner=spy)
    assert {"v.seal.partial", "cmdline", "environ"} <= set(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["v.seal"]


def _proc_files_of_children() -> list[Path]:
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [Path("/proc", pid, name) for pid in mine for name in ("cmdline", "environ")]


def test_record_tells_what_is_inside(sealed: Sealed) -> None:
    record = sealed.record
    assert (record.name, record.version) == ("models", 3)
    assert [(m.name, m.version) for m in record.models] == [("net", 1), ("net", 2)]
    assert record.models == find_models(sealed.source)
    assert record.file_size == sealed.path.stat().st_size


def test_every_make_has_its_own_volume_key(
    sealed: Sealed, source: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """Same key, same source, same place: no block of ciphertext may come twice."""
    other = tmp_path / "again.seal"
    create_sealed(other, source, key=sealed.key, owner_key=owner, name="models", version=3)
    start, end = sealed.record.segment_offset, sealed.record.verity.hash_offset
    blocks = [
        {raw[at : at + 4096] for at in range(start, end, 4096)} - {bytes(4096)}
        for raw in (sealed.path.read_bytes(), other.read_bytes())
    ]
    assert len(blocks[0]) > 700
    assert not blocks[0] & blocks[1]


def test_progress_only_grows_and_ends_full(
    source: Path, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    need_tools()
    seen: list[tuple[int, int]] = []
    create_sealed(
        tmp_path / "v",
        source,
        key=KEY,
        owner_key=owner,
        name="v",
        size=16 << 20,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


def test_an_existing_file_is_kept(source: Path, owner: Ed25519PrivateKey, tmp_path: Path) -> None:
    need_tools()
    target = tmp_path / "v"
    target.write_bytes(b"precious")
    with pytest.raises(InputError) as caught:
        create_sealed(target, source, key=KEY, owner_key=owner, name="v")
    assert caught.value.code == "volume.exists"
    assert target.read_bytes() == b"precious"
    raw = create_sealed(target, source, key=KEY, owner_key=owner, name="v", force=True)
    assert target.stat().st_size == open_record(raw, owner.public_key()).file_size


@pytest.mark.parametrize("program", ["cryptsetup", "mkfs.ext4", "debugfs"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_leaves_nothing(
    source: Path,
    owner: Ed25519PrivateKey,
    tmp_path: Path,
    nothing_left: Callable[[], None],
    program: str,
    after: bool,
) -> None:
    """Each program fails before or after it did its work; an older volume stays as it was."""
    need_tools()
    if program == "debugfs" and os.geteuid() != 0:
        pytest.skip("only root can own files as someone else")
    target = tmp_path / "v"
    target.write_bytes(b"old volume")

    def failing(command: Sequence[str], **kwargs: Any) -> str:
        if command[0] != program:
            return process.run(command, **kwargs)
        if after:
            process.run(command, **kwargs)
        raise Unavailable("volume.tool_failed", "injected")

    with pytest.raises(Unavailable, match="injected"):
        create_sealed(
            target, source, key=KEY, owner_key=owner, name="v", force=True, runner=failing
        )
    assert target.read_bytes() == b"old volume"
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    nothing_left()


_KILLED = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sealserve.volume.maker import create_sealed
create_sealed(Path(sys.argv[1]), Path(sys.argv[2]), key=bytes(range(32)),
              owner_key=Ed25519PrivateKey.generate(), name="v")
"""


def test_a_killed_make_leaves_nothing_that_looks_finished(
    tmp_path: Path,
    owner: Ed25519PrivateKey,
    source: Path,
    nothing_left: Callable[[], None],
) -> None:
    need_tools()
    big, target = tmp_path / "big", tmp_path / "v"
    big.mkdir()
    (big / "data").write_bytes(os.urandom(1 << 20) * 200)
    maker = subprocess.Popen([sys.executable, "-c", _KILLED, target, big])
    partial = tmp_path / "v.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_blocks * 512 > 40 << 20):
        assert maker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert not target.exists()
    # Its child ends by itself; until then it holds the lock of what it writes.
    with partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    # The next make starts anew, over what the killed one left.
    raw = create_sealed(target, source, key=KEY, owner_key=owner, name="v")
    assert target.stat().st_size == open_record(raw, owner.public_key()).file_size
    assert not partial.exists()
    nothing_left()


_TERM_AT_THE_VERY_END = """
import os, signal
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid, number=signal.SIGTERM):
        kill(pid(), number)
keep = Late()
"""


def test_a_signal_while_the_filling_process_ends_is_no_failure(
    tmp_path: Path, owner: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it was told to end when it had all but ended: "status -15"."""
    need_tools()
    (tmp_path / "sitecustomize.py").write_text(_TERM_AT_THE_VERY_END)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    create_writable(tmp_path / "v", size=4 << 20, key=KEY, owner_key=owner, name="v")


def test_two_makers_do_not_meet(source: Path, owner: Ed25519PrivateKey, tmp_path: Path) -> None:
    need_tools()
    with (tmp_path / "v.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError) as caught:
            create_sealed(tmp_path / "v", source, key=KEY, owner_key=owner, name="v")
    assert caught.value.code == "volume.in_use"


def _device(path: Path) -> None:
    os.mknod(path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket"))


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "socket": (_socket, "volume.source_kind"),
    "pipe": (lambda path: os.mkfifo(path / "pipe"), "volume.source_kind"),
    "device": (_device, "volume.source_kind"),
    "absolute link": (lambda path: (path / "l").symlink_to("/etc/passwd"), "volume.source_link"),
    "leaving link": (lambda path: (path / "l").symlink_to("../outside"), "volume.source_link"),
    "link over a link": (
        lambda path: ((path / "d").mkdir(), (path / "d/l").symlink_to("../../x/../y")),
        "volume.source_link",
    ),
    "odd model name": (
        lambda path: (path / "models" / "a b" / "1").mkdir(parents=True),
        "volume.model_name",
    ),
    "leading zero": (
        lambda path: (path / "models" / "a" / "01").mkdir(parents=True),
        "volume.model_name",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources(name: str, tmp_path: Path, owner: Ed25519PrivateKey) -> None:
    spoil, code = BAD_SOURCES[name]
    if name == "device" and os.geteuid() != 0:
        pytest.skip("only root can make a device file")
    directory = tmp_path / "s"
    directory.mkdir()
    spoil(directory)
    with pytest.raises(InputError) as caught:
        create_sealed(tmp_path / "v", directory, key=KEY, owner_key=owner, name="v")
    assert caught.value.code == code
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": b"x" * 31}, "volume.key_size"),
        ({"key": b""}, "volume.key_size"),
        ({"name": "a/b"}, "volume.name"),
        ({"name": "x" * 129}, "volume.name"),
        ({"version": 0}, "volume.name"),
        ({"size": 4097}, "volume.size"),
        ({"size": 4096}, "volume.size"),
        ({"size": 1 << 45}, "volume.size"),
        ({"size": -4096}, "volume.size"),
        ({"source": Path("/nonexistent")}, "volume.source_missing"),
        ({"path": Path("/nonexistent/v")}, "volume.unwritable"),
        ({"path": Path("/dev/null")}, "volume.exists"),
        ({"size": 2 << 20}, "volume.size"),  # 3 MB do not fit
    ],
)
def test_bad_arguments(
    changes: dict[str, Any],
    code: str,
    source: Path,
    owner: Ed25519PrivateKey,
    tmp_path: Path,
    nothing_left: Callable[[], None],
) -> None:
    need_tools()
    arguments: dict[str, Any] = {
        "path": tmp_path / "v", "source": source, "key": KEY, "owner_key": owner, "name": "v",
    }  # fmt: skip
    with pytest.raises(SealserveError) as caught:
        create_sealed(**{**arguments, **changes})
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())
    nothing_left()


def test_a_source_that_changes_is_refused(tmp_path: Path, owner: Ed25519PrivateKey) -> None:
    need_tools()
    directory = tmp_path / "s"
    directory.mkdir()
    (directory / "a").write_bytes(b"1")

    def meddling(command: Sequence[str], **kwargs: Any) -> str:
        (directory / "a").write_bytes(b"22")
        return process.run(command, **kwargs)

    with pytest.raises(InputError) as caught:
        create_sealed(
            tmp_path / "v", directory, key=KEY, owner_key=owner, name="v", runner=meddling
        )
    assert caught.value.code == "volume.source_changed"
    assert not (tmp_path / "v").exists()


def test_erofs(source: Path, owner: Ed25519PrivateKey, tmp_path: Path) -> None:
    """No larger than it must be, all root, and fsck.erofs is content with what cryptsetup opens."""
    need_tools()
    raw = create_sealed(
        tmp_path / "v", source, key=KEY, owner_key=owner, name="v", filesystem="erofs"
    )
    record = open_record(raw, owner.public_key())
    assert record.filesystem == "erofs"
    assert record.models == find_models(source)
    assert (tmp_path / "v").stat().st_size == record.file_size
    assert record.data_size < scan(source).content + (1 << 20)
    inside, image = tmp_path / "inside", tmp_path / "image"
    with (tmp_path / "v").open("rb") as file:
        view = SealedView(file.fileno(), record, KEY)
        image.write_bytes(view.pread(0, view.size))
        view.close()
    tool("fsck.erofs", f"--extract={inside}", str(image))
    assert tree_digest(inside) == tree_digest(source)
    if os.geteuid() == 0:
        assert {path.lstat().st_uid for path in inside.rglob("*")} == {0}
    mountpoint = tmp_path / "mnt"
    arguments = (tmp_path / "v", record, KEY, mountpoint)
    if os.geteuid() == 0 and "erofs" in Path("/proc/filesystems").read_text().split():
        with mount_sealed(*arguments, driver="fuse"):
            assert tree_digest(mountpoint) == tree_digest(source)
    else:
        with pytest.raises(Unavailable) as caught:
            mount_sealed(*arguments, driver="fuse")
        assert caught.value.code == "volume.filesystem_unsupported"


def test_a_kernel_without_erofs_says_so(monkeypatch: pytest.MonkeyPatch, sealed: Sealed) -> None:
    from sealserve.volume import mount

    record = sealed.record.model_copy(update={"filesystem": "erofs"})
    tried: list[list[str]] = []

    def runner(command: Sequence[str], **_: Any) -> str:
        tried.append(list(command))
        raise Unavailable("volume.tool_failed", "modprobe: module not found")

    monkeypatch.setattr(mount, "_kernel_has", lambda name: name == "ext4")
    with pytest.raises(Unavailable) as caught:
        mount._require_filesystem(record, runner)
    assert caught.value.code == "volume.filesystem_unsupported"
    assert tried == [["modprobe", "erofs"]]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_the_chosen_size_is_enough(tmp_path: Path, owner: Ed25519PrivateKey, count: int) -> None:
    """Many small files need room for inodes and directories, not only for their content."""
    need_tools()
    directory = tmp_path / "s"
    directory.mkdir()
    for number in range(count):
        (directory / f"a rather long file name, number {number}").write_bytes(b"x")
    create_sealed(tmp_path / "v", directory, key=KEY, owner_key=owner, name="v")


def test_tree_digest_follows_its_definition(tmp_path: Path) -> None:
    """Built here from the docstring's words, with sha256sum in place of hashlib."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"one")
    (tmp_path / "b-").write_bytes(b"two")
    (tmp_path / "l").symlink_to("b-")
    before = tree_digest(tmp_path)

    def digest_of(content: bytes) -> bytes:
        return subprocess.run(["sha256sum"], input=content, capture_output=True, check=True).stdout[
            :64
        ]

    manifest = b"file %b b-\0file %b b/x\0link %b l\0" % (
        digest_of(b"two"),
        digest_of(b"one"),
        digest_of(b"b-"),
    )
    assert before == digest_of(manifest).decode()
    (tmp_path / "empty").mkdir()
    (tmp_path / "b-").chmod(0o600)
    assert tree_digest(tmp_path) == before
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert tree_digest(tmp_path) != before


def test_scan_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5000))
    os.link(tmp_path / "a", tmp_path / "b")
    found = scan(tmp_path)
    assert (found.inodes, found.content) == (1, 8192)


def test_makers_in_threads(source: Path, owner: Ed25519PrivateKey, tmp_path: Path) -> None:
    """No global state: two volumes at once."""
    need_tools()
    results: dict[int, bytes] = {}

    def make(number: int) -> None:
        results[number] = create_sealed(
            tmp_path / str(number), source, key=KEY, owner_key=owner, name=f"v{number}"
        )

    threads = [threading.Thread(target=make, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {0, 1}
