"""What the model server reads from a volume: configuration, warm-up records, models' files."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fuzz.serving_requests import PREDICTIONS
from fuzz.target import Target, promised
from sealserve.certificates import key_pem, server_certificate
from sealserve.errors import InputError
from sealserve.logs import make_log
from sealserve.serving import flags, warmup
from sealserve.serving.access import Peer, Role, read_access_file
from sealserve.serving.batching.parameters import read_parameters
from sealserve.serving.config import TlsConfig, read_metrics_path, read_model_config
from sealserve.serving.crc32c import masked
from sealserve.serving.runtimes.checkpoint import check_variables
from sealserve.serving.runtimes.flexbuffers import read_string_map
from sealserve.serving.runtimes.saved_model import operations_behind, read_meta_graph, stateful
from sealserve.serving.runtimes.tflite import read_signatures
from sealserve.serving.tls import TlsSource
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import bundle_pb2, graph_pb2

__all__ = ["TARGETS"]


@functools.cache
def _place() -> Path:
    """A directory of this process's own; it goes with the process."""
    directory = tempfile.TemporaryDirectory(prefix="fuzz-serving-")
    _KEPT.append(directory)
    return Path(directory.name)


_KEPT: list[Any] = []


def _in_file(read: Callable[[Path], object], name: str = "file") -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        file = _place() / name
        file.write_bytes(data)
        read(file)

    return run


# --- configuration -------------------------------------------------------------


def _models(file: Path) -> None:
    models = read_model_config(file)
    promised(len({model.name for model in models}) == len(models) > 0)
    promised(all(model.base_path.is_absolute() for model in models))


def _model_seeds() -> list[bytes]:
    one = 'config { name: "m" base_path: "m" model_platform: "tensorflow" }'
    policy = "model_version_policy { specific { versions: [1, 2] } }"
    two = f'config {{ name: "n" base_path: "/n" {policy} version_labels {{ key: "s" value: 1 }} }}'
    return [f"model_config_list {{ {each} }}".encode() for each in (one, two, one + two)]


def _metrics(file: Path) -> None:
    path = read_metrics_path(file)
    promised(path is None or path.startswith("/"))


def _batching(file: Path) -> None:
    found = read_parameters(file)
    promised(0 < found.batch_limit <= found.filled_up(found.batch_limit))


def _tls(file: Path) -> None:
    identities = TlsSource(TlsConfig(ssl_config_file=file), make_log(io.StringIO())).current()
    promised(len(identities.all) == 1)
    promised(not identities.client_verify or identities.client_ca is not None)


@functools.cache
def _tls_seeds() -> list[bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("server.example")]
    certificate = server_certificate(key, "server", names, timedelta(days=1))
    pems = key_pem(key), certificate.public_bytes(Encoding.PEM)
    lines = [pem.decode().replace("\n", "\\n") for pem in pems]
    one = f'server_key: "{lines[0]}"\nserver_cert: "{lines[1]}"\n'
    two = f"{one}custom_ca: '{lines[1]}'\nclient_verify: true\n"
    return [one.encode(), two.encode()]


def _access(file: Path) -> None:
    rules = read_access_file(file)
    promised(not rules.allows(Role.ADMIN, Peer(), anonymous=True))


def _access_seeds() -> list[bytes]:
    key = {"name": "k", "sha256": "0" * 64, "roles": ["predict"]}
    whole = {"predict": "any", "metrics": ["a.example"], "admin": [], "api_keys": [key]}
    return [json.dumps(whole).encode(), b"predict: any\nadmin: [ops.example]\n"]


def _command_line(data: bytes) -> None:
    """Arguments with zero bytes between them; none of them names a file."""
    arguments = [part.decode("utf-8", "surrogateescape") for part in data.split(b"\0")]
    if any("_file" in argument for argument in arguments):
        raise InputError("flag.value", "not here")
    config = flags.parse(arguments)
    promised(config.tls.insecure or not config.tls.identity_files or bool(config.models))
    promised(0 <= config.grpc_port <= 65535)


def _line_seeds() -> list[bytes]:
    return [
        b"--model_base_path=/m\0--port=9000\0--rest_api_port=8080\0--rest_api_timeout_in_ms=60000",
        b"--model_base_path=/m\0--insecure\0--grpc_channel_arguments=a=1,b=c\0--enable_batching",
    ]


# --- what models bring along ---------------------------------------------------


def _records(file: Path) -> None:
    """What is read is the whole file, once it is written again."""
    records = list(warmup.read_records(file, 1 << 16))
    promised(b"".join(map(_record, records)) == file.read_bytes())


def _record(content: bytes) -> bytes:
    size = struct.pack("<Q", len(content))
    return b"".join(
        [size, *(struct.pack("<I", masked(size)), content, struct.pack("<I", masked(content)))]
    )


def _log_seeds() -> list[bytes]:
    log = api_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "m"
    tensor = log.predict_log.request.inputs["f"]
    tensor.dtype = 1  # type: ignore[assignment]
    tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(1.0)
    return [log.SerializeToString()]


def _record_seeds() -> list[bytes]:
    (log,) = _log_seeds()
    return [_record(log), _record(log) + _record(b""), b""]


def _prediction_log(data: bytes) -> None:
    warmup._answer(PREDICTIONS, data, "m")


def _saved_model(file: Path) -> None:
    meta = read_meta_graph(file.parent, ("serve",))
    for signature in meta.signature_def.values():
        operations = operations_behind(meta.graph_def, signature)
        promised(set(stateful(operations)) <= operations)


def _saved_model_seeds() -> list[bytes]:
    saved = graph_pb2.SavedModel()
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    signature = meta.signature_def["serving_default"]
    signature.inputs["x"].name, signature.outputs["y"].name = "x:0", "y:0"
    meta.graph_def.node.add(name="x", op="Placeholder")
    call = meta.graph_def.node.add(name="y", op="PartitionedCall", input=["x"])
    call.attr["f"].func.name = "inner"
    inner = meta.graph_def.library.function.add()
    inner.signature.name = "inner"
    inner.node_def.add(name="v", op="AssignVariableOp")
    return [saved.SerializeToString()]


def _variables(data: bytes) -> None:
    """By the first byte: an index as it is, a packed block, values with zero bytes between."""
    kind, rest = data[0] % 3 if data else 0, data[1:]
    blocks = (rest, _sealed(rest, packed=True), _block(_keyed(rest.split(b"\0\0"))))
    place = _place() / "variables"
    place.mkdir(exist_ok=True)
    (place / "variables.index").write_bytes(_table(blocks[kind]) if kind else rest)
    check_variables(place.parent)


def _keyed(values: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The header's key is empty, the others follow."""
    keys = [b"", *(b"v%02d" % number for number in range(1, len(values)))]
    return list(zip(keys, values, strict=True))


def _table(block: bytes) -> bytes:
    """A table of sorted strings of one block."""
    handle = _varint(0) + _varint(len(block) - 5)
    table = block + _block([(b"z", handle)])
    footer = _varint(0) * 2 + _varint(len(block)) + _varint(len(table) - len(block) - 5)
    return table + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries
    )
    return _sealed(body + struct.pack("<II", 0, 1))


def _sealed(body: bytes, *, packed: bool = False) -> bytes:
    body += bytes([packed])
    return body + struct.pack("<I", masked(body))


def _varint(number: int) -> bytes:
    low = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(byte | 128 for byte in low[:-1]) + bytes(low[-1:])


def _variables_seeds() -> list[bytes]:
    header = bundle_pb2.BundleHeaderProto(num_shards=1).SerializeToString()
    entry = bundle_pb2.BundleEntryProto(dtype=1, size=4, crc32c=0x07070707)  # type: ignore[arg-type]
    none = _block(_keyed([bundle_pb2.BundleHeaderProto().SerializeToString()]))
    plain = none[:-5]
    filled = header + b"\0\0" + entry.SerializeToString()
    packed = _varint(len(plain)) + bytes([len(plain) - 1 << 2]) + plain  # one literal
    return [b"\0" + _table(none), b"\1" + packed, b"\2", b"\2" + header, b"\2" + filled]


def _string_map(data: bytes) -> None:
    try:
        found = read_string_map(data)
    except ValueError as error:  # what its only caller catches
        raise InputError("servable.file_malformed", str(error)) from None
    promised(all(text in data for text in found.values()))


def _string_map_seeds() -> list[bytes]:
    """``{"a": "bc"}`` as FlatBuffers' own Python writes it."""
    return [bytes.fromhex("61000262630001070101010814022401")]


def _lite(data: bytes) -> None:
    for each in read_signatures(data):
        names = [*each.inputs.values(), *each.outputs.values()]
        promised(all(name.encode() in data for name in (each.key, *names)))


class _Flat:
    """Writes FlatBuffers tables, parents before children, every field four bytes."""

    def __init__(self) -> None:
        self.written = bytearray(b"\0\0\0\0TFL3")
        self.written[0:4] = struct.pack("<I", 8)

    def table(self, **fields: object) -> Callable[[], int]:
        """A table whose fields are named by their numbers, ``_2=...``."""

        def write() -> int:
            numbers = {int(name[1:]): value for name, value in fields.items()}
            slots = [0] * (max(numbers, default=-1) + 1)
            for position, number in enumerate(numbers):
                slots[number] = 4 + 4 * position
            vtable = struct.pack("<HH", 4 + 2 * len(slots), 4 + 4 * len(numbers))
            vtable += struct.pack(f"<{len(slots)}H", *slots)
            self.written += bytes(-len(self.written) % 4)
            start = len(self.written)
            self.written += struct.pack("<i", -(4 + 4 * len(numbers)))
            self.written += bytes(4 * len(numbers)) + vtable
            for position, value in enumerate(numbers.values()):
                self._put(start + 4 + 4 * position, value)
            return start

        return write

    def _put(self, at: int, value: object) -> None:
        number = value if isinstance(value, int) else self._child(value) - at
        self.written[at : at + 4] = struct.pack("<I", number)

    def _child(self, value: Any) -> int:
        if callable(value):
            made: int = value()
            return made
        self.written += bytes(-len(self.written) % 4)
        start = len(self.written)
        if isinstance(value, bytes):
            self.written += struct.pack("<I", len(value)) + value + b"\0"
            return start
        self.written += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for position, each in enumerate(value):
            self._put(start + 4 + 4 * position, each)
        return start


def _lite_seeds() -> list[bytes]:
    """One with a signature, and one of the older kind."""
    new, old = _Flat(), _Flat()
    tensor = new.table(_3=b"x:0")
    entry = new.table(_0=b"x", _1=0)
    signature = new.table(_0=[entry], _1=[entry], _2=b"serving_default", _4=0)
    new.table(_2=[new.table(_0=[tensor])], _7=[signature])()
    metadata = old.table(_0=b"signature_defs_metadata", _1=0)
    empty = bytes.fromhex("6100000001050101010614022401")  # {"a": ""}: an empty SignatureDef
    buffers = [old.table(_0=empty)]
    old.table(_2=[old.table(_0=[])], _4=buffers, _6=[metadata])()
    return [bytes(new.written), bytes(old.written)]


TARGETS: dict[str, Target] = {
    "model-config": Target(_in_file(_models), _model_seeds),
    "monitoring-config": Target(
        _in_file(_metrics), lambda: [b'prometheus_config { enable: true path: "/m" }'], 512
    ),
    "batching-parameters": Target(
        _in_file(_batching),
        lambda: [b"max_batch_size { value: 128 }\nallowed_batch_sizes: 128", b""],
        512,
    ),
    "ssl-config": Target(_in_file(_tls), _tls_seeds),
    "access-file": Target(_in_file(_access), _access_seeds),
    "command-line": Target(_command_line, _line_seeds, 1024),
    "warm-up-file": Target(_in_file(_records), _record_seeds, 512),
    "prediction-log": Target(_prediction_log, _log_seeds, 512),
    "saved-model": Target(_in_file(_saved_model, "saved_model.pb"), _saved_model_seeds, 2048),
    "variables-index": Target(_variables, _variables_seeds, 512),
    "lite-file": Target(_lite, _lite_seeds, 1024),
    "string-map": Target(_string_map, _string_map_seeds, 256),
}
