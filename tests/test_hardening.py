"""What a process that holds secrets keeps from others of its own user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A holder of a secret and a reader, both of one user without privileges: can the reader find it?
_TWO_OF_ONE_USER = """
import ctypes, json, os, signal, sys
from sealserve import hardening

SECRET = os.urandom(32)
PLACE = ctypes.create_string_buffer(SECRET, 32)

def holder(harden):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as before it changed its user
        harden()
        os.write(tell, b"1")
        signal.pause()
    os.read(ready, 1)
    return child

def reads(pid):
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(ctypes.addressof(PLACE))
                os._exit(0 if memory.read(32) == SECRET else 1)
        except OSError:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

found = {}
for name, harden in (("control", lambda: None), ("hardened", hardening.forbid_core_dumps)):
    pid = holder(harden)
    found[name] = reads(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user twice")
def test_no_process_of_the_same_user_reads_its_memory() -> None:
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text().strip() != "0":
        pytest.skip("the control cannot be: Yama lets nobody here read another's memory")
    done = subprocess.run(
        [sys.executable, "-c", _TWO_OF_ONE_USER], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == {"control": 0, "hardened": 2}
