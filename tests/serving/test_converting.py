"""A model that is loaded beside requests is converted in another process, and nobody can tell."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openvino as ov
import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.logs import make_log
from sealserve.serving.catalog import Catalog, ModelSpec, State
from sealserve.serving.config import Latest, ModelConfig, RuntimeConfig, Specific
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.gentle import gentle
from sealserve.serving.runtimes import converting, openvino
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.conversion import Converted
from sealserve.serving.runtimes.converting import Converters
from tests.children import Child
from tests.serving.conftest import question_of
from tests.serving.test_conversion_wire import GRAPH, READING, runtime
from tests.soak import times


@dataclasses.dataclass(frozen=True)
class Served:
    """A catalog that serves affine."""

    catalog: Catalog
    config: ModelConfig
    log: io.StringIO

    def ask(self, models: Path) -> None:
        asked = question_of(models, "affine")
        plane = Dataplane(self.catalog)
        answer = plane.predict(ModelSpec("affine"), asked.signature, lambda _: asked.inputs)
        assert answer.outputs

    def load(self, name: str, base: Path) -> None:
        with contextlib.suppress(Unavailable):  # told in its state, too
            self.catalog.reload([self.config, ModelConfig(name, base, Latest())])


@pytest.fixture
def served(models: Path) -> Iterator[Served]:
    log = io.StringIO()
    config = ModelConfig("affine", models / "affine", Specific((1,)))
    catalog = Catalog(
        [config], ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(log)), make_log(log)
    )
    catalog.load()
    yield Served(catalog, config, log)
    catalog.close()


def test_nothing_is_converted_in_the_process_that_serves(
    served: Served, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no request can wait for the interpreter's lock behind a conversion."""

    def never(*_: object) -> None:
        raise AssertionError("converted in the process that serves")

    monkeypatch.setattr(openvino, "convert", never)
    served.load("small", models / "small")
    (status,) = served.catalog.statuses(ModelSpec("small"))
    assert status.state is State.AVAILABLE, status.message
    served.ask(models)


def begun(converters: Converters) -> subprocess.Popen[bytes]:
    (process,) = converters._running
    return process._process


def test_it_is_another_process_which_gives_way(models: Path) -> None:
    converters = Converters(ov.Core())
    with converters.convert(models / "affine" / "1", READING) as conversion:
        process = begun(converters)
        assert process.pid != os.getpid()
        mine = os.getpriority(os.PRIO_PROCESS, os.getpid())
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > mine
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "500\n"
        assert isinstance(next(conversion.signatures), Converted)
    assert process.returncode is not None


def test_one_that_is_killed_is_one_error(models: Path) -> None:
    converters = Converters(ov.Core())
    with converters.convert(models / "affine" / "1", READING) as conversion:
        begun(converters).kill()
        with pytest.raises(Unavailable, match="was ended by SIGKILL") as error:
            next(conversion.signatures)
    assert error.value.code == "servable.conversion_failed"
    assert not converters._running


def test_one_that_hangs_is_ended(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converters = Converters(ov.Core())
    with converters.convert(models / "affine" / "1", READING) as conversion:
        process = begun(converters)
        monkeypatch.setattr(converting, "_SECONDS", 0.2)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="took longer than"):
            next(conversion.signatures)
    assert process.returncode == -signal.SIGKILL


# Python that stands in for the converter: it has `lane`.
_STAND_IN = (
    "import fcntl, json, os, socket, struct, sys; settings = json.loads(sys.argv[1]); "
    "lane = socket.socket(fileno=settings['lane']); "
    "say = lambda raw, files=[]: socket.send_fds(lane, "
    "[struct.pack('<IB', len(raw), len(files)) + raw], files); "
)
_BEGUN = 'say(b\'{"definitions": {}, "is_file": false}\'); lane.recv(1); '


@pytest.mark.parametrize(
    "words",
    [
        "lane.send(b'no header at all')",
        "lane.send(struct.pack('<IB', 2**31, 0))",
        "lane.send(struct.pack('<IB', 2, 2) + b'{}')",
        "say(b'[]'); lane.recv(1)",
        "say(b'{'); lane.recv(1)",
        "say(b'[' * 100000); lane.recv(1)",
        'say(b\'{"definitions": {"x": "no base64"}, "is_file": true}\'); lane.recv(1)',
        'say(b\'{"failed": {"kind": "SystemExit"}}\'); lane.recv(1)',
        _BEGUN + "say(b'{}'); lane.recv(1)",
        _BEGUN + "say(b'{}', [0]); lane.recv(1)",
        _BEGUN + "say(b'{}', [0] * 30); lane.recv(1)",
        # A graph in a file that can still be changed, or is none.
        _BEGUN + "files = [os.memfd_create('x'), os.memfd_create('y')]; "
        f"say(b'''{GRAPH}''', files); lane.recv(1)",
        _BEGUN + f"say(b'''{GRAPH}''', [0, 0]); lane.recv(1)",
        _BEGUN + "files = [os.memfd_create('x', 2) for _ in 'xy']; "
        "[fcntl.fcntl(f, fcntl.F_ADD_SEALS, 15) for f in files]; "
        f"say(b'''{GRAPH}''', files); lane.recv(1)",
    ],
)  # fmt: skip
def test_a_malformed_answer_is_one_error(
    models: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(converting, "_BEGIN", _STAND_IN + words)
    open_before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with (
        pytest.raises(Unavailable, match="gave a malformed answer") as error,
        Converters(ov.Core()).convert(models / "affine" / "1", READING) as conversion,
    ):
        next(conversion.signatures)
    assert error.value.code == "servable.conversion_failed"
    assert set(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208


def test_it_inherits_one_socket_and_nothing_of_the_environment(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALSERVE_SECRET", "s3cr3t")
    kept = os.memfd_create("secret", 0)  # inheritable, as a guest's TLS identity is
    found = (
        "names = os.listdir('/proc/self/fd'); found = {n: os.readlink(f'/proc/self/fd/{n}') "
        "for n in names if os.path.lexists(f'/proc/self/fd/{n}')}; "
        "say(json.dumps({'failed': {'kind': 'InputError', 'code': 'a.b', 'where': None, "
        "'hint': None, 'message': json.dumps([dict(os.environ), found])}}).encode())"
    )
    monkeypatch.setattr(converting, "_BEGIN", _STAND_IN + found)
    with (
        pytest.raises(InputError) as error,
        Converters(ov.Core()).convert(models / "affine" / "1", READING),
    ):
        pass
    os.close(kept)
    environment, files = json.loads(error.value.message)
    assert "SEALSERVE_SECRET" not in environment
    assert set(environment) <= {*converting._ENVIRONMENT, "LC_CTYPE"}
    assert "memfd" not in str(files)
    assert [files[number] for number in ("0", "1", "2")] == ["/dev/null"] * 3
    assert sum(name.startswith("socket:") for name in files.values()) == 1


def test_where_it_cannot_be_started_that_is_told(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with (
        pytest.raises(Unavailable, match="cannot be started: No such file") as error,
        Converters(ov.Core()).convert(models / "affine" / "1", READING),
    ):
        pass
    assert error.value.code == "servable.conversion_failed"


def test_a_model_that_brings_the_converter_down_brings_nothing_else_down(
    served: Served, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenVINO's native code did on damaged variables; here at a place where it always does."""
    shutil.copytree(models / "affine" / "1", tmp_path / "bad" / "1")
    crash = (
        "import ctypes, sealserve.serving.runtimes.conversion as c; "
        "c.check_variables = lambda _: ctypes.string_at(0); "
    )
    begin = converting._BEGIN.replace("from sealserve", crash + "from sealserve", 1)
    monkeypatch.setattr(converting, "_BEGIN", begin)
    served.load("bad", tmp_path / "bad")
    (status,) = served.catalog.statuses(ModelSpec("bad"))
    assert status.state is State.END
    assert "the process that converts the model was ended by SIGSEGV" in status.message
    served.ask(models)


def test_a_server_that_stops_does_not_wait_for_a_load(
    served: Served, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "_BEGIN", _STAND_IN + "lane.recv(1)")  # for ever
    loading = threading.Thread(target=served.load, args=("small", models / "small"))
    loading.start()
    runtime = served.catalog._runtime
    assert isinstance(runtime, ChoosingRuntime)
    running = runtime._openvino._converters._running
    while not running:
        time.sleep(0.01)
    served.catalog.give_up()
    loading.join(20)
    assert not loading.is_alive()
    (status,) = served.catalog.statuses(ModelSpec("small"))
    assert status.message == "the server is stopping"
    served.ask(models)
    # Nothing that begins afterwards is converted any more.
    served.load("small", models / "small")
    assert not running


def test_it_ends_with_a_server_that_is_killed(models: Path) -> None:
    """Which has no time to end anything."""
    code = (
        "import sys, time, pathlib, openvino; "
        "from sealserve.serving.runtimes.converting import Converters; "
        "from sealserve.serving.runtimes.conversion import Reading\n"
        "with Converters(openvino.Core()).convert(pathlib.Path(sys.argv[1]), Reading()) as made:\n"
        "    print(made.signatures._process.pid, flush=True); time.sleep(60)"
    )
    place = str(models / "affine" / "1")
    with Child([sys.executable, "-c", code, place], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        server.kill()
    while Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended, and not yet waited for by whoever took it over
        time.sleep(0.01)


def test_loads_leave_nothing_behind(models: Path) -> None:
    loader = runtime()
    paths = [models / name / "1" for name in ("affine", "mixed")]
    found = []
    for turn in range(times(50, 2)):
        with gentle():
            loader.load(paths[turn % 2]).close()
        files = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        found.append((files, children, threading.active_count()))
    assert found[-1] == found[0]
