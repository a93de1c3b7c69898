"""What batching brings: requests a second with it and without, in one run.

    make bench-batching
    python -m bench.batching [--seconds S] [--rounds N] [--models NAME ...]

Two servers of the same models, one with `--enable_batching`, take turns; each is called over
gRPC and TLS from this process, which shares its cores, with one row in a request:

* half_plus_two: nothing to compute, so what a request itself costs;
* dense: five layers of 2048, whose weights are read once for a batch instead of once a row;
* efficientnet-lite0: convolutions, which leave little to share between images.

By the clock, and by the processor time that a request takes from the server, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from bench.serving import at_once, calls, seconds_used, started

from sealserve.model.catalogue import built
from sealserve.model.graphdef import GraphBuilder
from sealserve.model.importer import import_model
from sealserve.model.signature import Signature
from sealserve.volume.tls_files import TlsFiles, make_tls_files
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_proto

_CONNECTIONS = (1, 16, 64)
_WIDTH = 2048
_PARAMETERS = "max_batch_size { value: 32 } allowed_batch_sizes: [1, 2, 4, 8, 16, 32]"

Server = tuple[int, int]


def half_plus_two() -> bytes:
    """y = x / 2 + 2."""
    b = GraphBuilder()
    x = b.placeholder("x", [None, 1])
    half = b.multiply("half", x, b.const("scale", np.float32(0.5)))
    b.add("y", half, b.const("two", np.float32(2)))
    return b.graph.SerializeToString()


def dense() -> bytes:
    """Five dense layers: 84 MB of weights, 21 million multiplications a row."""
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


def request(model: str, signature: Signature) -> bytes:
    """A Predict with one row for each input."""
    generator = np.random.default_rng(1)
    wire = api_pb2.PredictRequest()
    wire.model_spec.name = model
    for tensor in signature.inputs:
        row = generator.random([1, *(tensor.shape or ())[1:]], np.float32)
        wire.inputs[tensor.key].CopyFrom(to_proto(row))
    return wire.SerializeToString()


def turns(
    servers: tuple[Server, Server], tls: TlsFiles, raw: bytes, count: int, given: argparse.Namespace
) -> list[list[tuple[float, float]]]:
    """For both servers, each round's requests a second and processor seconds a request."""
    found: list[list[tuple[float, float]]] = [[], []]
    with ExitStack() as stack:
        made = [stack.enter_context(calls(port, tls, raw, count)) for _, port in servers]
        for _ in range(given.rounds):
            for results, (pid, _), each in zip(found, servers, made, strict=True):
                before = seconds_used(pid)
                rate = at_once(each, given.seconds)
                results.append((rate, (seconds_used(pid) - before) / (rate * given.seconds)))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", choices=list(_MODELS), default=list(_MODELS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        raw, entries = {}, []
        for model in given.models:
            graph = directory / f"{model}.pb"
            graph.write_bytes(_MODELS[model]())
            imported = import_model(graph, directory / "models", name=model)
            raw[model] = request(model, imported.signatures[0])
            entries.append(f'config {{ name: "{model}" base_path: "models/{model}" }}')
        config, parameters = directory / "models.config", directory / "batching.config"
        config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        parameters.write_text(_PARAMETERS)
        tls = make_tls_files("grpc.tf.service.com", directory / "tls")
        shared = (f"--model_config_file={config}", f"--ssl_config_file={tls.config}")
        batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
        servers = (
            stack.enter_context(started(*shared)),
            stack.enter_context(started(*shared, *batching)),
        )
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {given.rounds}")
        print(f"{'':32} {'requests/s':^23} {'processor ms a request':^23}")
        print(f"{'model':20} connections {'off':>8} {'on':>8} ratio {'off':>8} {'on':>8} ratio")
        for model in given.models:
            for count in _CONNECTIONS:
                off, on = (np.array(each) for each in turns(servers, tls, raw[model], count, given))
                rates, times = np.median(off, 0), np.median(on, 0)
                ratio = np.median(on / off, 0)
                print(
                    f"{model:20} {count:11} {rates[0]:8.1f} {times[0]:8.1f} {ratio[0]:5.2f} "
                    f"{rates[1] * 1e3:8.2f} {times[1] * 1e3:8.2f} {ratio[1]:5.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
