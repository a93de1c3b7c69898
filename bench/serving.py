"""How far serving is from its limit: the model alone, in one process, on the same cores.

    python bench/serving.py [--requests N]

Builds the ResNet50 v1.5 of the demo (seeded weights), then measures, in one run:

* bare: OpenVINO in this process, no server (the limit);
* TLS, 1 and 4 connections: `sealserve serve` as a process of its own, called over
  gRPC and TLS from this one, which shares its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov

from sealserve.client import connect_classic, run_bench
from sealserve.model.catalogue import built
from sealserve.model.importer import import_model
from sealserve.volume.tls_files import make_tls_files

_MODEL = "resnet50-v15-seeded"
_HOST = "grpc.tf.service.com"


def bare(saved_model: Path, requests: int) -> list[float]:
    """Latencies of OpenVINO alone, in seconds; f32, as the server runs it."""
    compiled = ov.Core().compile_model(
        str(saved_model),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1},
    )
    request = compiled.create_infer_request()
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32) * 255
    latencies = []
    for _ in range(requests + 5):
        begin = time.perf_counter()
        request.infer({0: image}, share_inputs=True, share_outputs=True)
        latencies.append(time.perf_counter() - begin)
    return latencies[5:]


@contextlib.contextmanager
def served(*flags: str) -> Iterator[int]:
    """The gRPC port of a server process with these flags."""
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
            yield json.loads(ready.readline())["grpc"]
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        graph = directory / "graph.pb"
        graph.write_bytes(built(_MODEL).build().SerializeToString())
        imported = import_model(graph, directory / "models", name=_MODEL)
        tls = make_tls_files(_HOST, directory / "tls")
        latencies = bare(imported.path, requests)
        limit = 1 / float(np.mean(latencies))
        print(f"bare OpenVINO, f32     {np.median(latencies) * 1e3:6.1f} ms  {limit:5.1f} images/s")
        flags = (
            f"--model_name={_MODEL}",
            f"--model_base_path={directory / 'models' / _MODEL}",
            f"--ssl_config_file={tls.config}",
        )
        with served(*flags) as port:
            for tasks in (1, 4):
                result = run_bench(
                    lambda: connect_classic(
                        f"{_HOST}:{port}",
                        tls.certificate.read_bytes(),
                        connect_to=f"127.0.0.1:{port}",
                    ),
                    _MODEL,
                    tasks=tasks,
                    loops=requests // tasks,
                )
                print(
                    f"TLS, {tasks} connection(s)   {result.p50 * 1e3:6.1f} ms  "
                    f"{result.throughput:5.1f} images/s  {result.throughput / limit:.2f} of bare"
                )


if __name__ == "__main__":
    main()
