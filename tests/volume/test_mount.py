"""Mounting: the right bytes, every refusal before anything starts, nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.volume import child, process
from sealserve.volume.mount import mount_sealed
from sealserve.volume.process import filesystem_type, is_mounted
from sealserve.volume.record import key_id_of
from tests.background import PROCESSES
from tests.conftest import missing
from tests.volume.conftest import MARKER, Sealed, flip

NothingLeft = Callable[[], None]


def sums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def options_of(mountpoint: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            return set(fields[5].split(","))
    raise AssertionError("not mounted")


def children() -> list[int]:
    """This process's children, but for what works in the background for other tests."""
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [pid for pid in map(int, text.split()) if pid not in PROCESSES]


def test_mounted_files_are_the_source(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    mountpoint = tmp_path / "mnt"
    with mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse") as mounted:
        assert mounted.mountpoint == mountpoint
        assert mounted.driver == "fuse"
        assert sums(mountpoint) == sums(sealed.source)
        assert (mountpoint / "tls" / "link to key").readlink() == Path("server.key")
        assert options_of(mountpoint) >= {"ro", "nodev", "nosuid", "noexec"}
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "new").write_bytes(b"")
        assert {path.stat().st_uid for path in mountpoint.rglob("*") if path.exists()} == {0}
    assert not mountpoint.exists()
    mounted.close()
    nothing_left()


def test_an_empty_directory_is_used_and_kept(sealed: Sealed, tmp_path: Path) -> None:
    with mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path, driver="fuse"):
        assert (tmp_path / "models").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_in_no_proc_file_of_ours(sealed: Sealed, tmp_path: Path) -> None:
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    with mount:
        (pid,) = children()
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert content
            for secret in (sealed.key, sealed.key.hex().encode(), MARKER):
                assert secret not in content
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
        # Not dumpable: the kernel gives the process's files to root.
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
        assert sealed.key.hex() not in repr(vars(mount))


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
@pytest.mark.parametrize("fault", ["header", "tree", "short", "long", "key", "key size"])
def test_refusals_come_before_anything_starts(
    sealed: Sealed,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_left: NothingLeft,
    driver: str,
    fault: str,
) -> None:
    record, key = sealed.record, sealed.key
    if fault == "header":
        flip(copy, 5000)
    elif fault == "tree":
        flip(copy, record.verity.hash_offset + 100)
    elif fault in ("short", "long"):
        os.truncate(copy, record.file_size + (1 if fault == "long" else -1))
    else:
        key = bytes(32) if fault == "key" else key[:-1]

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", fail)
    with pytest.raises((Refused, InputError)):
        mount_sealed(copy, record, key, tmp_path / "mnt", driver=driver)
    assert not (tmp_path / "mnt").exists()
    nothing_left()


def test_the_childs_own_error_comes_through(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """The keyslot is opened in the child; its refusal is raised here."""
    wrong = bytes(32)
    record = sealed.record.model_copy(update={"key_id": key_id_of(wrong)})
    with pytest.raises(Refused) as caught:
        mount_sealed(sealed.path, record, wrong, tmp_path / "mnt", driver="fuse")
    assert caught.value.code == "volume.key_wrong"
    nothing_left()


def test_a_changed_block_is_eio(
    sealed: Sealed,
    copy: Path,
    tmp_path: Path,
    plain: bytes,
    nothing_left: NothingLeft,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Changed while mounted: the reader gets an error, never a wrong byte."""
    content = (sealed.source / "models/net/1/variables/data").read_bytes()
    at = plain.index(content[8192:12288])
    with mount_sealed(copy, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse"):
        flip(copy, sealed.record.segment_offset + at + 99)
        target = tmp_path / "mnt/models/net/1/variables/data"
        with target.open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 0) == content[:4096]
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pread(file.fileno(), 4096, 8192)
    log = capfd.readouterr().err
    assert "[volume.block_mismatch]" in log
    assert MARKER.decode() not in log
    nothing_left()


@pytest.mark.parametrize("program", ["losetup", "mount", "umount"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_each_step_leaves_nothing(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft, program: str, after: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts by loop device")
    failed: list[str] = []

    def failing(command: Sequence[str], **kwargs: Any) -> str:
        if command[0] != program or failed:
            return process.run(command, **kwargs)
        if after:
            process.run(command, **kwargs)
        failed.append(program)
        raise Unavailable("volume.tool_failed", "injected")

    mountpoint = tmp_path / "mnt"
    arguments = (sealed.path, sealed.record, sealed.key, mountpoint)
    if program == "umount":  # the second attempt succeeds
        with mount_sealed(*arguments, driver="fuse", runner=failing):
            assert is_mounted(mountpoint)
    elif (program, after) == ("losetup", True):
        # The device is up but its name is lost: found by its file, and detached.
        with pytest.raises(Unavailable, match="injected"):
            mount_sealed(*arguments, driver="fuse", runner=failing)
    else:
        with pytest.raises(Unavailable, match="injected"):
            mount_sealed(*arguments, driver="fuse", runner=failing)
    assert failed
    assert not mountpoint.exists()
    nothing_left()


def test_a_child_that_never_gets_ready(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: NothingLeft
) -> None:
    monkeypatch.setattr(child, "_START_TIMEOUT", 0.01)
    with pytest.raises(Unavailable) as caught:
        mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    assert caught.value.code == "volume.fuse_failed"
    nothing_left()


def test_a_child_that_dies_at_once(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: NothingLeft
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable) as caught:
        mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    assert caught.value.code == "volume.fuse_failed"
    nothing_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_child_can_be_closed(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft, number: signal.Signals
) -> None:
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    for pid in children():
        os.kill(pid, number)
    time.sleep(0.3)
    mount.close()
    mount.close()
    assert not (tmp_path / "mnt").exists()
    nothing_left()


def test_closing_while_a_file_is_open(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """Whoever still reads loses the volume; it is not kept open for him."""
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    with (tmp_path / "mnt/models/net/1/saved_model.pb").open("rb") as file:
        assert file.read(1)
        mount.close()
        assert not is_mounted(tmp_path / "mnt")
    nothing_left()


@pytest.mark.parametrize("case", ["file", "full", "no parent", "mounted"])
def test_bad_mount_points(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft, case: str
) -> None:
    mountpoint = tmp_path / "mnt"
    if case == "file":
        mountpoint.write_bytes(b"")
    elif case == "full":
        (mountpoint / "x").mkdir(parents=True)
    elif case == "no parent":
        mountpoint = tmp_path / "a" / "b"
    else:
        mountpoint = Path("/proc")
    with pytest.raises(InputError) as caught:
        mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse")
    assert caught.value.code == "volume.mountpoint"
    nothing_left()


def test_an_unreadable_volume(sealed: Sealed, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Refused) as refused:
            mount_sealed(odd, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
        assert refused.value.code == "volume.size_mismatch"
    with pytest.raises(Unavailable) as caught:
        mount_sealed(tmp_path / "none", sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    assert caught.value.code == "volume.unreadable"


_HOLDER = """
import os, sys, time
from pathlib import Path
from sealserve import logs
logs.configure()
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import peek_record
path, record, mountpoint = map(Path, sys.argv[1:4])
key = sys.stdin.buffer.read()
mount = mount_sealed(path, peek_record(record.read_bytes()), key, mountpoint, driver="fuse")
print(mount.filesystem_by, (mountpoint / "models/net/1/saved_model.pb").read_bytes()[:6],
      oct((mountpoint / "tls/server.key").stat().st_mode), flush=True)
if sys.argv[4] == "hold":
    time.sleep(60)
mount.close()
print("closed", mountpoint.exists(), flush=True)
"""


def _hold(sealed: Sealed, tmp_path: Path, how: str, *prefix: str) -> subprocess.Popen[bytes]:
    record = tmp_path / "record"
    record.write_bytes(sealed.raw)
    holder = subprocess.Popen(
        [*prefix, sys.executable, "-c", _HOLDER, sealed.path, record, tmp_path / "mnt", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdin is not None
    holder.stdin.write(sealed.key)
    holder.stdin.close()
    holder.stdin = None
    return holder


def test_all_goes_when_the_parent_is_killed(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    with _hold(sealed, tmp_path, "hold") as holder:
        assert holder.stdout is not None
        first = holder.stdout.readline()
        mounted = is_mounted(tmp_path / "mnt")
        holder.kill()
    assert b"MARKER" in first
    assert mounted
    nothing_left()
    assert not is_mounted(tmp_path / "mnt")


def test_all_goes_when_a_rootless_parent_is_killed(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """The fuse2fs on top ends too: it was once told so by the death of a thread."""
    _need_user_namespaces()
    with _hold(sealed, tmp_path, "hold", "unshare", "-Urm") as holder:
        assert holder.stdout is not None
        first = holder.stdout.readline()
        mine = os.fsencode(tmp_path.name)
        serving = [pid for pid in map(str, _pids()) if mine in _read(f"/proc/{pid}/cmdline")]
        holder.kill()
    assert first.startswith(b"fuse2fs")
    assert len(serving) >= 3  # the holder, fuse2fs and the child below it
    deadline = time.monotonic() + 5
    while any(mine in _read(f"/proc/{pid}/cmdline") for pid in serving):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    nothing_left()


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # that process has ended
        return b""


def test_a_mount_outlives_the_thread_that_made_it(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """The child once ended with that thread, by PR_SET_PDEATHSIG."""
    made = []
    arguments = (sealed.path, sealed.record, sealed.key, tmp_path / "mnt")
    thread = threading.Thread(target=lambda: made.append(mount_sealed(*arguments, driver="fuse")))
    thread.start()
    thread.join()
    (mount,) = made
    with mount:
        time.sleep(0.3)
        assert sums(tmp_path / "mnt") == sums(sealed.source)
    nothing_left()


def _need_user_namespaces() -> None:
    probe = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        missing("user namespaces", "sysctl kernel.unprivileged_userns_clone=1")


def test_rootless(sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft) -> None:
    """In a user namespace, where no block device can be mounted: fuse2fs does it."""
    _need_user_namespaces()
    with _hold(sealed, tmp_path, "close", "unshare", "-Urm") as holder:
        out, errors = holder.communicate(timeout=60)
    assert out.splitlines() == [b"fuse2fs b'MARKER' 0o100600", b"closed False"], errors
    assert b"rootless: only root may mount ext4" in errors + out
    nothing_left()


def test_is_mounted_reads_odd_names(tmp_path: Path, sealed: Sealed) -> None:
    mountpoint = tmp_path / "blank and \\ back\tslash"
    with mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse"):
        assert is_mounted(mountpoint)
    assert not is_mounted(mountpoint)


def test_what_a_path_lies_on_is_told_without_touching_it(tmp_path: Path, sealed: Sealed) -> None:
    """A look at a file whose FUSE process hangs, hangs."""
    mountpoint = tmp_path / "mnt"
    with mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse"):
        (serving,) = [pid for pid in children() if b"volume.fuse" in _read(f"/proc/{pid}/cmdline")]
        directory = _read(f"/proc/{serving}/cmdline").split(b"\0")[5].decode()
        assert filesystem_type(f"{directory}/volume").startswith("fuse")
        assert filesystem_type(f"{mountpoint}/no/such/file") in (
            "ext4",
            "fuse.ext4",
            "fuse.fuse2fs",
        )
        assert filesystem_type(f"{directory}-beside") == filesystem_type(str(tmp_path.parent))
    assert filesystem_type("/proc/version") == "proc"


def test_errors_name_their_codes() -> None:
    for answer in (b"", b"rubbish\n", b'{"class": "Path", "code": "a.b", "message": "x"}\n'):
        error = child._error_of(answer)
        assert isinstance(error, SealserveError)
        assert error.code == "volume.fuse_failed"
