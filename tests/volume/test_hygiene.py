"""No key where it could be found, and nothing left of what was opened, whatever fails."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealserve.errors import SealserveError, Unavailable
from sealserve.volume import process
from sealserve.volume.engine import WritableView
from sealserve.volume.maker import create_sealed, create_writable
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import open_record
from tests.children import Child
from tests.cores import HARDENED, without_limit
from tests.soak import times
from tests.volume.conftest import MARKER, Sealed, need_tools, tool
from tests.volume.test_mount import children

NothingLeft = Callable[[], None]
# Rather more like a secret than the fixture's, which ends in line feeds that are everywhere.
SECRET = b"\n\x00\xffs3cret-K3Y-\xfe\x80-of-this-test!\n\x00\xff"[:32].ljust(32, b"\xa7")


def forms_of(secret: bytes) -> list[bytes]:
    """As a secret could be written down, whole or by its first half."""
    found = []
    for part in (secret, secret[: len(secret) // 2]):
        text = base64.b64encode(part).rstrip(b"=")
        found += [part, part.hex().encode(), part.hex().upper().encode(), text[:-1]]
        found.append(repr(part)[2:-1].encode())
    return found


def assert_not_in(content: bytes, secrets: Sequence[bytes], where: object) -> None:
    for secret in secrets:
        assert not any(form in content for form in forms_of(secret)), where


def descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(child) for child in path.read_text().split()]
        except OSError:
            continue
        for child in found:
            yield child
            yield from descendants(child)


def seen_by_others(pid: int) -> dict[str, bytes]:
    """What any process of the same user may read of another."""
    seen = {}
    for name in ("cmdline", "environ", "comm", "status", "maps"):
        try:
            seen[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:  # ended
            continue
    return seen


@contextmanager
def watched_children() -> Iterator[dict[str, bytes]]:
    """All that is ever seen of this process's descendants meanwhile, by a busy observer."""
    seen: dict[str, bytes] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for pid in descendants(os.getpid()):
                seen.update(seen_by_others(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def files_below(*places: Path) -> Iterator[Path]:
    """Not what is mounted there: that is the plaintext, for whoever may open it."""
    for place in places:
        for path in place.rglob("*"):
            if path.is_file() and path.lstat().st_dev == place.stat().st_dev:
                yield path


def volume_key_of(path: Path, key: bytes, work: Path) -> bytes:
    """The LUKS volume key, by cryptsetup."""
    key_file, dumped = work / "for-cryptsetup", work / "dumped"
    key_file.write_bytes(key)
    tool(
        "cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", str(dumped),
        "--key-file", str(key_file), str(path),
    )  # fmt: skip
    found = dumped.read_bytes()
    key_file.unlink()
    dumped.unlink()
    return found


def test_the_key_is_nowhere(
    source: Path,
    owner: Ed25519PrivateKey,
    tmp_path: Path,
    nothing_left: NothingLeft,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Made, then mounted by the command; every process and every file is looked through."""
    need_tools()
    work, temporary = tmp_path / "work", Path(os.environ["TMPDIR"])
    work.mkdir()
    path, record, public = work / "v", work / "record", work / "owner.pub"
    with watched_children() as seen:
        raw = create_sealed(path, source, key=SECRET, owner_key=owner, name="models")
    assert any(b"mkfs" in content for content in seen.values())  # the observer is quick enough
    record.write_bytes(raw)
    public.write_bytes(
        owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    secrets = [SECRET, volume_key_of(path, SECRET, tmp_path)]
    for place, content in seen.items():
        assert_not_in(content, secrets, place)
    command = [
        *HARDENED, "volume", "mount", str(path), str(tmp_path / "mnt"), "--record", str(record),
        "--owner-pub", str(public), "--driver", "fuse", "--key-fd", "0",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with Child(without_limit(command), stdin=pipe, stdout=pipe, stderr=pipe, cwd=work) as mounting:
        assert mounting.stdin
        assert mounting.stdout
        mounting.stdin.write(SECRET)
        mounting.stdin.close()
        mounting.stdin = None
        assert mounting.stdout.readline()
        family = [mounting.pid, *descendants(mounting.pid)]
        assert len(family) >= 2
        for pid in family:
            for place, content in seen_by_others(pid).items():
                assert_not_in(content, secrets, place)
            assert "Max core file size        0" in Path(f"/proc/{pid}/limits").read_text()
        for file in files_below(work, temporary):
            assert_not_in(file.read_bytes(), [*secrets, MARKER], file)
        mounting.terminate()
        out, errors = mounting.communicate(timeout=60)
    assert_not_in(out + errors, [*secrets, MARKER], "what the command said")
    assert_not_in("".join(capfd.readouterr()).encode(), secrets, "log")
    for file in files_below(work, temporary):
        assert_not_in(file.read_bytes(), [*secrets, MARKER], file)
    nothing_left()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT])
def test_a_crash_leaves_no_core(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft, number: signal.Signals
) -> None:
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    (serving,) = children()
    os.kill(serving, number)
    _, status = os.waitpid(serving, 0)
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)
    mount.close()
    nothing_left()


@pytest.mark.parametrize(
    "key",
    [b"\n" * 32, b"\0" * 32, b"\xff" * 32, b"\n" + b"k" * 31, b"k" * 31 + b"\n", b"k\0" * 16],
    ids=["lf", "nul", "ff", "lf first", "lf last", "nul between"],
)
def test_a_key_is_bytes(key: bytes, owner: Ed25519PrivateKey, tmp_path: Path) -> None:
    """Nothing is stripped or cut off on its way to cryptsetup, nor on its way to the engine."""
    need_tools()
    path = tmp_path / "v"
    raw = create_writable(path, size=4 << 20, key=key, owner_key=owner, name="state")
    record = open_record(raw, owner.public_key())
    with path.open("r+b") as file:
        view = WritableView.of_record(file.fileno(), record, key)
        assert view.pread(1080, 2) == b"\x53\xef"  # ext4's magic number
        view.close()
    assert len(volume_key_of(path, key, tmp_path)) == 64


STEPS = [
    (program, after) for program in ("losetup", "mount", "umount") for after in (False, True)
] + [("detach", False), ("detach", True), ("none", False)]


@pytest.mark.timeout(times(3600, 300))
def test_opened_and_closed_again_and_again(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """A failure at each step in turn, before or after the program has done its work."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts by loop device")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(times(200, 18)):
        program, after = STEPS[number % len(STEPS)]
        runner = _FailsOnce(program, after=after)
        opened, refusal = False, ""
        try:
            with mount_sealed(
                sealed.path, sealed.record, sealed.key, tmp_path / "mnt",
                driver="fuse", runner=runner,
            ):  # fmt: skip
                opened = (tmp_path / "mnt/models").is_dir()
        except SealserveError as error:
            refusal = str(error)
        assert opened or "injected" in refusal, (program, after)
        assert runner.failed == (program != "none"), (program, after)
        # A failed unmounting is tried again; the others refuse what was asked.
        assert opened or program not in ("none", "umount")
    nothing_left()
    assert not (tmp_path / "mnt").exists()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


class _FailsOnce:
    def __init__(self, program: str, *, after: bool) -> None:
        self._program = program
        self._after = after
        self.failed = False

    def __call__(self, command: Sequence[str], **options: Any) -> str:
        name = "detach" if "--detach" in command else command[0]
        if name != self._program or self.failed:
            return process.run(command, **options)
        self.failed = True
        if self._after:
            process.run(command, **options)
        raise Unavailable("volume.tool_failed", "injected")
