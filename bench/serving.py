"""How far serving is from its limit, what a request itself costs, and what a load does to it.

    python bench/serving.py [--rounds N] [--seconds S] [--part NAME ...]

Servers are processes of their own, called over gRPC and TLS from this one, which shares their
cores. The parts, each in one run:

* resnet50: the demo's ResNet50 v1.5 (seeded weights), batch 1 at f32: OpenVINO alone in this
  process, the limit, one inference at a time and several side by side, and the server at 1
  and at 4 connections, taking turns; by the clock, and by the processor time that an image
  takes, which other work on the machine disturbs less;
* requests: half_plus_two, which computes next to nothing, at 1, 16 and 64 connections, over
  gRPC and REST;
* tail: half_plus_two asked on a fixed beat, while nothing else happens and while ResNet50
  is loaded and its versions are swapped without a pause.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import openvino as ov

from sealserve.model.catalogue import built
from sealserve.model.graphdef import GraphBuilder
from sealserve.model.importer import import_model
from sealserve.volume.tls_files import TlsFiles, make_tls_files
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_proto

_RESNET = "resnet50-v15-seeded"
_SMALL = "half_plus_two"
_HOST = "grpc.tf.service.com"
_METHOD = "/tensorflow.serving.PredictionService/Predict"
_BEAT = 0.02
_GOAL = 0.93

Call = Callable[[], object]


class Bare:
    """OpenVINO alone, as the server runs it, without a server."""

    def __init__(self, saved_model: Path) -> None:
        core, self._image = ov.Core(), _image()
        graph = core.read_model(str(saved_model))
        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        self._alone, self._beside = (
            core.compile_model(graph, "CPU", {**precise, "PERFORMANCE_HINT": hint, **streams})
            for hint, streams in (("LATENCY", {"NUM_STREAMS": 1}), ("THROUGHPUT", {}))
        )

    def alone(self) -> Sequence[Call]:
        """One inference at a time, on all cores."""
        return [self._call(self._alone)]

    def beside(self) -> Sequence[Call]:
        """As many side by side as OpenVINO finds best."""
        count = self._beside.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return [self._call(self._beside) for _ in range(count)]

    def _call(self, model: ov.CompiledModel) -> Call:
        request = model.create_infer_request()
        return lambda: request.infer({0: self._image}, share_inputs=True)


@contextlib.contextmanager
def served(*flags: str) -> Iterator[int]:
    """The gRPC port of a server process with these flags."""
    with started(*flags) as (_, port):
        yield port


@contextlib.contextmanager
def started(*flags: str) -> Iterator[tuple[int, int]]:
    """The number of a server process with these flags, and its gRPC port."""
    with running(*flags) as (pid, ports):
        yield pid, ports["grpc"]


@contextlib.contextmanager
def running(*flags: str) -> Iterator[tuple[int, dict[str, int]]]:
    """The number of a server process with these flags, and its ports."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sealserve",
            "serve",
            "--port=0",
            "--bind_address=127.0.0.1",
            f"--ready_fd={writer}",
            *flags,
        ],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as ready:
            yield process.pid, json.loads(ready.readline())
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def calls(port: int, tls: TlsFiles, raw: bytes, count: int) -> Iterator[Sequence[Call]]:
    """So many connections, each as a function that sends the request and has the answer."""
    credentials = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
    options = [
        ("grpc.ssl_target_name_override", _HOST),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
            stub = stack.enter_context(channel).unary_unary(_METHOD)
            made.append(lambda stub=stub: stub(raw, timeout=120))
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda call: call(), made))
        yield made


@contextlib.contextmanager
def rest_calls(
    port: int, tls: TlsFiles, model: str, body: bytes, count: int
) -> Iterator[Sequence[Call]]:
    """So many connections that are kept, over REST."""
    context = ssl.create_default_context(cafile=str(tls.certificate))
    context.check_hostname = False
    made = [http.client.HTTPSConnection("127.0.0.1", port, context=context) for _ in range(count)]

    def ask(connection: http.client.HTTPSConnection) -> None:
        connection.request("POST", f"/v1/models/{model}:predict", body)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(response.read().decode())
        response.read()

    try:
        yield [functools.partial(ask, connection) for connection in made]
    finally:
        for connection in made:
            connection.close()


def at_once(made: Sequence[Call], seconds: float) -> float:
    """Requests a second, each connection sending one after another."""
    end = time.perf_counter() + seconds

    def work(call: Call) -> int:
        done = 0
        while time.perf_counter() < end:
            call()
            done += 1
        return done

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(made)) as pool:
        done = sum(pool.map(work, made))
    return done / (time.perf_counter() - begin)


def on_a_beat(made: Sequence[Call], seconds: float) -> list[float]:
    """Latencies of requests begun at fixed times, whether or not the earlier ones are done."""
    with ThreadPoolExecutor(len(made)) as pool:
        begin = time.perf_counter()
        asked = []
        for beat in range(int(seconds / _BEAT)):
            due = begin + beat * _BEAT
            time.sleep(max(0.0, due - time.perf_counter()))
            asked.append(pool.submit(_since, due, made[beat % len(made)]))
        return [each.result() for each in asked]


def seconds_used(pid: int | str = "self") -> float:
    """Processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _used(pid: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([seconds_used(pid), seconds_used()])


def _since(due: float, call: Call) -> float:
    call()
    return time.perf_counter() - due


def _image() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((1, 224, 224, 3), np.float32) * 255


def _request(model: str, **inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    request = api_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_proto(array, typed_fields=False))
    return request.SerializeToString()


def _half_plus_two() -> bytes:
    graph = GraphBuilder()
    x = graph.placeholder("x", [None])
    half = graph.multiply("half", x, graph.const("scale", np.float32(0.5)))
    graph.add("y", half, graph.const("two", np.float32(2)))
    return graph.graph.SerializeToString()


class Bench:
    """Models, an identity, and the parts."""

    def __init__(self, directory: Path, rounds: int, seconds: float) -> None:
        self._rounds = rounds
        self._seconds = seconds
        self._directory = directory
        self._tls = make_tls_files(_HOST, directory / "tls")
        self._models = {}
        resnet = built(_RESNET).build().SerializeToString()
        for name, graph in ((_RESNET, resnet), (_SMALL, _half_plus_two())):
            file = directory / "graph.pb"
            file.write_bytes(graph)
            self._models[name] = import_model(file, directory / "models", name=name).path

    def resnet50(self) -> None:
        """The server beside its limit."""
        bare = Bare(self._models[_RESNET])
        raw = _request(_RESNET, input=_image())
        with (
            self._serving(_RESNET) as (pid, port),
            calls(port, self._tls, raw, 1) as one,
            calls(port, self._tls, raw, 4) as four,
        ):
            ways = {
                "bare, one at a time": bare.alone(),
                "bare, side by side": bare.beside(),
                "TLS, 1 connection": one,
                "TLS, 4 connections": four,
            }
            figures: dict[str, list[float]] = {way: [] for way in ways}
            used = {way: np.zeros(2) for way in ways}  # seconds: of the server, of this process
            done = dict.fromkeys(ways, 0.0)
            for made in ways.values():
                at_once(made, 1.0)
            for _ in range(self._rounds):
                for way, made in ways.items():
                    before, begin = _used(pid), time.perf_counter()
                    figures[way].append(at_once(made, self._seconds))
                    done[way] += figures[way][-1] * (time.perf_counter() - begin)
                    used[way] += _used(pid) - before
        alone, beside, *_ = (np.array(found) for found in figures.values())
        print("ResNet50, batch 1, f32; processor time of the server and of this process")
        for way, found in figures.items():
            ratios = np.array(found) / alone
            goal = f"; goal {_GOAL}" if "4" in way else ""
            server, here = used[way] / done[way] * 1e3
            print(
                f"{way:20} {np.median(found):6.1f} images/s  {server:4.1f} + {here:4.1f} ms; "
                f"of bare, one at a time: {np.median(ratios):.3f} "
                f"({', '.join(f'{ratio:.2f}' for ratio in ratios)}){goal}; "
                f"of bare, side by side: {np.median(found / beside):.3f}"
            )

    def requests(self) -> None:
        """What a request itself costs."""
        raw = _request(_SMALL, x=np.ones(1, np.float32))
        with running("--rest_api_port=0", *self._flags(_SMALL)) as (_, ports):
            for count in (1, 16, 64):
                with (
                    calls(ports["grpc"], self._tls, raw, count) as grpc_made,
                    rest_calls(
                        ports["rest"], self._tls, _SMALL, b'{"instances": [1.0]}', count
                    ) as rest_made,
                ):
                    for way, made in (("gRPC", grpc_made), ("REST", rest_made)):
                        rates = [at_once(made, self._seconds) for _ in range(self._rounds)]
                        print(
                            f"{_SMALL}, {way} over TLS, {count:2} connection(s)  "
                            f"{np.median(rates):6.0f} requests/s"
                        )

    def tail(self) -> None:
        """What loading and swapping one model does to the requests of another."""
        raw = _request(_SMALL, x=np.ones(1, np.float32))
        swapped = self._directory / "swapped"
        swapped.mkdir()
        config = self._directory / "both.config"
        config.write_text(
            "model_config_list { "
            f'config {{ name: "{_SMALL}" base_path: "{self._models[_SMALL].parent}" }} '
            f'config {{ name: "other" base_path: "{swapped}" }} }}'
        )
        calm: list[float] = []
        disturbed: list[float] = []
        flags = [f"--model_config_file={config}", f"--ssl_config_file={self._tls.config}"]
        with served(*flags) as port, calls(port, self._tls, raw, 16) as made:
            for number in range(1, self._rounds + 1):
                calm += on_a_beat(made, self._seconds)
                ended = threading.Event()
                swaps = threading.Thread(target=self._swap, args=(swapped, number * 1000, ended))
                swaps.start()
                disturbed += on_a_beat(made, max(6.0, self._seconds))
                ended.set()
                swaps.join()
                time.sleep(5)  # the last load
        print(f"{_SMALL}, one request every {_BEAT * 1e3:.0f} ms:")
        for what, found in (("undisturbed", calm), ("ResNet50 swapped", disturbed)):
            p50, p99, worst = np.quantile(found, [0.5, 0.99, 1]) * 1e3
            print(f"  {what:18} p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  worst {worst:6.1f} ms")
        ratio = np.quantile(disturbed, 0.99) / np.quantile(calm, 0.99)
        print(f"  p99 while another model is loaded and swapped: {ratio:.1f} times the undisturbed")

    def _swap(self, base: Path, number: int, ended: threading.Event) -> None:
        """A new version whenever the server has had time to look."""
        while not ended.is_set():
            number += 1
            (base / str(number)).symlink_to(self._models[_RESNET])
            ended.wait(1.5)

    def _serving(self, name: str) -> contextlib.AbstractContextManager[tuple[int, int]]:
        return started(*self._flags(name))

    def _flags(self, name: str) -> list[str]:
        return [
            f"--model_name={name}",
            f"--model_base_path={self._models[name].parent}",
            f"--ssl_config_file={self._tls.config}",
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure in a round")
    parts = ("resnet50", "requests", "tail")
    parser.add_argument("--part", choices=parts, action="append", help="only this one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.rounds, options.seconds)
        for part in options.part or parts:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
