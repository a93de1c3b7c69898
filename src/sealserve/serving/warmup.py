"""Warm-up: the requests that a model brings along are answered before it is served.

``assets.extra/tf_serving_warmup_requests`` is a TFRecord file of ``PredictionLog``. The
first request after a load is slow, and so is the first of each inference that may run beside
others; replaying these in all of them makes that request one of ours.

Rules this module keeps:

* A request that cannot be read or answered fails the load: a model that cannot answer
  its own examples is not put into service.
* The model's name and version in a record do not count; its signature does.
* Sizes are limited, and each record is checked against its checksums (CRC-32C, masked,
  as ``core/lib/io/record_writer.h`` describes).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from google.protobuf.message import DecodeError

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.serving.access import Peer
from sealserve.serving.calls import Call
from sealserve.serving.config import ServerConfig
from sealserve.serving.crc32c import masked
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_services import PredictionService
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes.base import Model
from sealserve.serving.table import Table
from sealserve.wire.serving import api_pb2

__all__ = ["FILE", "WarmUp", "read_records"]

FILE = Path("assets.extra") / "tf_serving_warmup_requests"

_MAX_RECORDS = 1000
_HEAD = struct.Struct("<QI")
_CHECK = struct.Struct("<I")


class WarmUp:
    """Replays a model's records."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics

    def __call__(self, name: str, version: int, path: Path, model: Model) -> Model:
        """Answer the records of a version that has just been loaded, if it has any.

        Returns:
            The model.

        Raises:
            InputError: ``warmup.*``, or what answering raised.
        """
        file = path / FILE
        if not self._config.warm_up or not file.is_file():
            return model
        begun = time.perf_counter()
        status = "OK"
        try:
            self._replay(name, version, file, model)
        except SealserveError:
            status = "FAILED"
            raise
        finally:
            self._metrics.warmed_up(name, version, status, time.perf_counter() - begun)
        return model

    def _replay(self, name: str, version: int, file: Path, model: Model) -> None:
        table = Table.of(name, version, model.for_warm_up())
        service = PredictionService(Dataplane(table), self._config)
        for number, record in enumerate(read_records(file, self._config.max_request_bytes)):
            if number == _MAX_RECORDS:
                raise InputError(
                    "warmup.too_many",
                    f"Number of warmup records exceeds the maximum ({_MAX_RECORDS})",
                    where=str(file),
                )
            try:
                for _ in range(self._config.warm_up_iterations):
                    _answer(service, record, name)
            except SealserveError as error:
                raise InputError(
                    "warmup.failed",
                    f"warm-up record {number} cannot be answered: {error.message}",
                    where=str(file),
                    hint="correct the file, or switch warm-up off: --enable_model_warmup=false",
                ) from None


def read_records(file: Path, limit: int) -> Iterator[bytes]:
    """The records of a TFRecord file.

    Raises:
        InputError: ``warmup.malformed``.
        Unavailable: ``file.unreadable``.
    """
    try:
        with file.open("rb") as stream:
            while head := stream.read(_HEAD.size):
                yield _record(head, stream, limit, str(file))
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(file)
        ) from None


def _record(head: bytes, stream: IO[bytes], limit: int, where: str) -> bytes:
    if len(head) != _HEAD.size:
        raise _malformed("the file ends within a record", where)
    size, check = _HEAD.unpack(head)
    if masked(head[:8]) != check:
        raise _malformed("the checksum of a record's length is wrong", where)
    if size > limit:
        raise _malformed(f"a record is larger than {limit} bytes", where)
    record, tail = stream.read(size), stream.read(_CHECK.size)
    if len(record) != size or len(tail) != _CHECK.size:
        raise _malformed("the file ends within a record", where)
    if masked(record) != _CHECK.unpack(tail)[0]:
        raise _malformed("the checksum of a record is wrong", where)
    return record


def _answer(service: PredictionService, record: bytes, name: str) -> None:
    try:
        log = api_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise InputError("warmup.malformed", "Failed to parse warmup record") from None
    kind = log.WhichOneof("log_type")
    answers: dict[str | None, Callable[[Any, Call], Any]] = {
        "predict_log": service.predict,
        "classify_log": service.classify,
        "regress_log": service.regress,
        "multi_inference_log": service.multi,
    }
    if kind is None or kind not in answers:
        raise InputError("warmup.kind_unsupported", f"records of kind {kind} are not replayed")
    request: Any = getattr(log, kind).request
    several = kind == "multi_inference_log"
    specs = [task.model_spec for task in request.tasks] if several else [request.model_spec]
    for spec in specs:
        spec.name = name
        spec.ClearField("version")
        spec.ClearField("version_label")
    answers[kind](request, Call(kind, "WARMUP", Peer()))


def _malformed(message: str, where: str) -> InputError:
    return InputError("warmup.malformed", message, where=where)
