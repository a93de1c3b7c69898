"""The guest's process 1: set up what an init sets up, run the scenarios, power off."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
import traceback
from pathlib import Path
from typing import IO, NoReturn

DATA = Path("/data")
_KEY = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/sealserve.test/key/raw")
_FINIT_MODULE = 313  # x86-64
_POWER_OFF = 0x4321FEDC
_FILESYSTEMS = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/dev": "devtmpfs",
    "/run": "tmpfs",
    "/tmp": "tmpfs",
}


def main() -> None:
    """Do what the plan says; each finding is one line ``[name, finding]`` of JSON."""
    libc = ctypes.CDLL(None)
    try:
        _set_up(libc)
        key = _KEY.read_bytes()
        plan = json.loads((DATA / "plan.json").read_bytes())
        (port,) = Path("/dev").glob("vport*")
        with port.open("w") as results:
            if "crash" in plan:
                from tests.kernel.crash import write_until_off

                write_until_off(key, plan["crash"], results)
            else:
                _run_scenarios(key, plan["seconds"], results)
    except BaseException:
        traceback.print_exc()
    os.sync()
    libc.reboot(_POWER_OFF)


def _run_scenarios(key: bytes, limit: int, results: IO[str]) -> None:
    from tests.kernel.scenarios import SCENARIOS

    for name, scenario in SCENARIOS.items():
        begin = time.monotonic()
        signal.alarm(limit)
        try:
            finding = scenario(key)
        except Exception:
            finding = {"failed": traceback.format_exc()}
        signal.alarm(0)
        finding["left"] = left_behind()
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
        print(json.dumps([name, finding]), file=results, flush=True)
    print(json.dumps(["complete", True]), file=results, flush=True)


def left_behind() -> list[str]:
    """Loop devices, mappings, mounts, mount points and temporary files that are still there."""
    deadline = time.monotonic() + 5
    while found := _up():
        if time.monotonic() > deadline:  # loop devices go a moment after the last user
            break
        time.sleep(0.1)
    return found


def _up() -> list[str]:
    return [
        *(str(path.parent.parent) for path in Path("/sys/block").glob("loop*/loop/backing_file")),
        *map(str, Path("/sys/block").glob("dm-*")),
        *(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if "/dev/mapper/" in line or "/dev/loop" in line
        ),
        *map(str, Path("/tmp").iterdir()),
        *(str(path) for path in Path("/").glob("mnt*")),
    ]


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError("this scenario takes too long")


def _set_up(libc: ctypes.CDLL) -> None:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    signal.signal(signal.SIGALRM, _too_long)
    for target, kind in _FILESYSTEMS.items():
        Path(target).mkdir(exist_ok=True)
        if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None) != 0:
            raise RuntimeError(f"cannot mount {target}")
    for module in sorted(Path("/modules").iterdir()):
        with module.open("rb") as file:
            # One that this CPU has no use for is refused; what depends on it will say so.
            libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0)
    DATA.mkdir()
    subprocess.run(["mount", "-t", "ext4", "/dev/vda", DATA], check=True)


if __name__ == "__main__":
    main()
