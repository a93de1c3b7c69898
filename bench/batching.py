"""What batching brings: requests a second with it and without, in one run.

    python -m bench.batching [--seconds S] [--rounds N] [--models NAME ...]

Two servers of the same models, one with `--enable_batching`, take turns; each is called over
gRPC and TLS from this process, which shares its cores, with one row in a request:

* half_plus_two: nothing to compute, so what a request itself costs;
* dense: five layers of 2048, whose weights are read once for a batch instead of once a row;
* efficientnet-lite0: convolutions, which leave little to share between images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from bench.serving import served

from sealserve.client import connect_classic, run_bench
from sealserve.client.bench import BenchResult
from sealserve.model.catalogue import built
from sealserve.model.graphdef import GraphBuilder
from sealserve.model.importer import import_model
from sealserve.volume.tls_files import TlsFiles, make_tls_files

_HOST = "grpc.tf.service.com"
_CONNECTIONS = (1, 16, 64)
_WIDTH = 2048
_PARAMETERS = "max_batch_size { value: 32 } allowed_batch_sizes: [1, 2, 4, 8, 16, 32]"


def half_plus_two() -> bytes:
    """y = x / 2 + 2."""
    b = GraphBuilder()
    x = b.placeholder("x", [None, 1])
    half = b.multiply("half", x, b.const("scale", np.float32(0.5)))
    b.add("y", half, b.const("two", np.float32(2)))
    return b.graph.SerializeToString()


def dense() -> bytes:
    """Five dense layers: 84 MB of weights, 42 million multiplications a row."""
    b, generator = GraphBuilder(), np.random.default_rng(5)
    x = b.placeholder("x", [None, _WIDTH])
    for number in range(5):
        kernel = generator.standard_normal((_WIDTH, _WIDTH), np.float32) / np.sqrt(_WIDTH)
        x = b.relu(f"relu{number}", b.dense(f"dense{number}", x, kernel, np.zeros(_WIDTH, "f4")))
    return b.graph.SerializeToString()


_MODELS: dict[str, Callable[[], bytes]] = {
    "half_plus_two": half_plus_two,
    "dense": dense,
    "efficientnet-lite0": lambda: built("efficientnet-lite0").build().SerializeToString(),
}


def measure(port: int, tls: TlsFiles, model: str, tasks: int, loops: int) -> BenchResult:
    """Ask one server."""
    return run_bench(
        lambda: connect_classic(
            f"{_HOST}:{port}", tls.certificate.read_bytes(), connect_to=f"127.0.0.1:{port}"
        ),
        model,
        tasks=tasks,
        loops=loops,
    )


def rounds(
    ports: tuple[int, int], tls: TlsFiles, model: str, tasks: int, count: int, seconds: float
) -> Iterator[tuple[BenchResult, BenchResult]]:
    """Both servers in turn, so often; about so many seconds each."""
    alone = measure(ports[0], tls, model, 1, 5)
    loops = max(3, int(seconds / (alone.p50 * tasks)))
    for _ in range(count):
        off, on = (measure(port, tls, model, tasks, loops) for port in ports)
        yield off, on


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", choices=list(_MODELS), default=list(_MODELS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        entries = []
        for model in given.models:
            graph = directory / f"{model}.pb"
            graph.write_bytes(_MODELS[model]())
            import_model(graph, directory / "models", name=model)
            entries.append(f'config {{ name: "{model}" base_path: "models/{model}" }}')
        config = directory / "models.config"
        config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        parameters = directory / "batching.config"
        parameters.write_text(_PARAMETERS)
        tls = make_tls_files(_HOST, directory / "tls")
        shared = (f"--model_config_file={config}", f"--ssl_config_file={tls.config}")
        batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
        ports = (
            stack.enter_context(served(*shared)),
            stack.enter_context(served(*shared, *batching)),
        )
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {given.rounds}")
        print(f"{'':32} {'requests/s':^23} {'p50, ms':^15}")
        print(f"{'model':20} connections {'off':>8} {'on':>8} ratio {'off':>8} {'on':>7}")
        for model in given.models:
            for tasks in _CONNECTIONS:
                both = list(rounds(ports, tls, model, tasks, given.rounds, given.seconds))
                off, on = (
                    [float(np.median([getattr(pair[side], what) for pair in both]))
                     for what in ("throughput", "p50")]
                    for side in (0, 1)
                )  # fmt: skip
                ratio = float(np.median([b.throughput / a.throughput for a, b in both]))
                print(
                    f"{model:20} {tasks:11} {off[0]:8.1f} {on[0]:8.1f} {ratio:5.2f} "
                    f"{off[1] * 1e3:8.2f} {on[1] * 1e3:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
