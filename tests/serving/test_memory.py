"""Models that come and go leave no memory behind. ``make soak`` loads and unloads each 50 times."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from sealserve.logs import make_log
from sealserve.model.catalogue import built
from sealserve.model.importer import import_model
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.memory import return_memory, settle_down
from sealserve.serving.runtimes import conversion
from sealserve.serving.runtimes.openvino import OpenVinoRuntime
from sealserve.serving.runtimes.ways import Lane, Way
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, to_proto
from tests.serving.conftest import OWNER_NAME, make_pair, ssl_config
from tests.serving.processes import process
from tests.soak import SOAK, times

_ADMIN = "the administrator of this test"
_RESNET = "resnet50-v15-seeded"

INPUTS: dict[str, dict[str, Array]] = {
    "small": {"image": np.ones((1, 16, 16, 3), "f4")},
    "trap_words": {"word": np.array([b"a", b"b"], object)},  # by TensorFlow, in a worker
    _RESNET: {"input": np.ones((1, 224, 224, 3), "f4")},
}
CHOSEN = [*INPUTS] if SOAK else ["small"]


@dataclass(frozen=True)
class Served:
    """A server, and what an administrator may tell it."""

    pid: int
    channel: grpc.Channel
    bases: dict[str, Path]

    def serve(self, *names: str) -> None:
        request = api_pb2.ReloadConfigRequest()
        for name in names:
            request.config.model_config_list.config.add(name=name, base_path=str(self.bases[name]))
        self._call("ModelService/HandleReloadConfigRequest", request.SerializeToString())

    def ask(self, name: str) -> None:
        request = api_pb2.PredictRequest()
        request.model_spec.name = name
        for key, array in INPUTS[name].items():
            request.inputs[key].CopyFrom(to_proto(array))
        assert self._call("PredictionService/Predict", request.SerializeToString())

    def until_gone(self, name: str) -> None:
        request = api_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        while True:
            raw = self._call("ModelService/GetModelStatus", request.SerializeToString())
            states = api_pb2.GetModelStatusResponse.FromString(raw).model_version_status
            if all(each.state == api_pb2.ModelVersionStatus.END for each in states):
                return
            time.sleep(0.01)

    def memory(self) -> int:
        """KiB that the server holds in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

    def workers(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def _call(self, method: str, raw: bytes) -> bytes:
        stub: Callable[..., bytes] = self.channel.unary_unary(f"/tensorflow.serving.{method}")
        return stub(raw, timeout=100, metadata=[("authorization", f"Bearer {_ADMIN}")])


@contextmanager
def served(models: Path, place: Path, *flags: str) -> Iterator[Served]:
    owner = make_pair(OWNER_NAME)
    (place / "ssl.cfg").write_text(ssl_config(owner))
    digest = hashlib.sha256(_ADMIN.encode()).hexdigest()
    keys = [{"name": "boss", "sha256": digest, "roles": ["admin"]}]
    (place / "access.yaml").write_text(json.dumps({"predict": "any", "api_keys": keys}))
    bases = {name: models / name for name in ("affine", *INPUTS)}
    if _RESNET in CHOSEN:
        (place / "graph.pb").write_bytes(built(_RESNET).build().SerializeToString())
        import_model(place / "graph.pb", place / "imported", name=_RESNET)
        bases[_RESNET] = place / "imported" / _RESNET
    with process(
        place / "log",
        f"--model_base_path={models / 'affine'}",
        "--model_name=affine",
        f"--model_root={models}",
        f"--model_root={place}",
        f"--ssl_config_file={place / 'ssl.cfg'}",
        f"--access_file={place / 'access.yaml'}",
        "--port=0",
        *flags,
    ) as (child, ports):
        credentials = grpc.ssl_channel_credentials(owner.certificate)
        options = [("grpc.ssl_target_name_override", OWNER_NAME)]
        with grpc.secure_channel(f"127.0.0.1:{ports['grpc']}", credentials, options) as channel:
            yield Served(child.pid, channel, bases)


@pytest.fixture(scope="module")
def server(
    models: Path, oracle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    flags = (f"--tensorflow_runtime={oracle}",)
    with served(models, tmp_path_factory.mktemp("memory"), *flags) as server:
        yield server


@pytest.mark.parametrize("name", CHOSEN)
def test_a_model_that_comes_and_goes_leaves_no_memory(server: Served, name: str) -> None:
    memory = []
    for _ in range(times(50, 6)):
        server.serve("affine", name)
        server.ask(name)
        server.serve("affine")
        server.until_gone(name)
        memory.append(server.memory())
    print(f"{name}: KiB after cycles {memory}")
    assert memory[-1] <= 1.1 * memory[1]
    assert server.workers() == []


def test_what_is_refused_keeps_no_graph(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames that an error came through did: weights, for as long as the model was there."""
    graphs = []

    def seen(graph: object, **_: bool) -> list[str]:
        graphs.append(weakref.ref(graph))
        return ["everything"]

    monkeypatch.setattr(conversion, "inexact_operations", seen)
    gc.disable()
    try:
        loader = OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO()))
        model = loader.load(models / "small" / "1")
        assert model.refused["serving_default"].code == "servable.inexact"
        assert [graph() for graph in graphs] == [None]
    finally:
        gc.enable()


MANY_THREADS = """
import ctypes, threading
from sealserve.serving.memory import keep_weights_apart
keep_weights_apart()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
all_there = threading.Barrier(9)
def take():
    libc.malloc(1000)
    all_there.wait()
for _ in range(8):
    threading.Thread(target=take).start()
all_there.wait()
stdout = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(stdout))
libc.fflush(ctypes.c_void_p(stdout))
"""


def test_threads_that_come_and_go_leave_no_pools_of_memory() -> None:
    """ResNet50, whose threads came twice, left six MB each time it was loaded and unloaded."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, timeout=60, check=True
    )
    assert 1 <= done.stdout.count("<heap nr=") <= 2


class _Round:
    """Garbage that only a search finds."""

    def __init__(self) -> None:
        self.me = self


def test_garbage_is_looked_for_among_what_came_after_the_start() -> None:
    settle_down()
    try:
        assert gc.get_freeze_count() > 10_000
        gone = weakref.ref(_Round())
        return_memory()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_the_weights_go_with_the_last_request() -> None:
    """Which lets others run meanwhile; the end of a compiled graph does not."""
    gone: list[str] = []

    class Piece:
        def __init__(self, name: str) -> None:
            weakref.finalize(self, gone.append, name)

        def create_infer_request(self) -> Piece:
            return Piece("request")

    way = Way(lambda: Piece("graph"), by_values=False)
    lanes = [Lane(way), Lane(way)]
    del way
    lanes.clear()
    assert gone == ["request", "graph", "request"]
