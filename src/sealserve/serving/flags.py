"""The command line of TensorFlow Serving, in its own syntax; its flags are in `flag_table`.

Rules this module keeps:

* Syntax as in ``tensorflow_model_server``: ``--name=value``; a bare ``--name``
  sets a switch; where a flag is repeated the last one counts (wrappers append
  the user's flags to their own).
* An unknown flag is an error, and so is one that contradicts another.
* Port 0 is no port, as in the original. Only where someone is told which one it became
  (``--ready_fd``) is it a free one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sealserve.errors import InputError
from sealserve.serving.batching.parameters import (
    SERVER_POOL_NAME,
    BatchingConfig,
    parameters_of,
    read_parameters,
)
from sealserve.serving.config import (
    LifeConfig,
    ModelConfig,
    RuntimeConfig,
    ServerConfig,
    TlsConfig,
    base_path_of,
    read_metrics_path,
    read_model_config,
)
from sealserve.serving.flag_table import FLAGS, Effect, Flag, usage
from sealserve.wire.serving import config_pb2

__all__ = ["FLAGS", "Effect", "Flag", "parse", "usage"]


Value = bool | int | str

_SMALL_NUMBER = re.compile("-?[0-9]{1,9}")

_MOST_WAITING = 128

_DAY_MS = 86_400_000

_PARALLELISM = ("session", "intra_op", "inter_op")


def parse(argv: Sequence[str]) -> ServerConfig:
    """Read a command line, and the model config file that it names.

    Args:
        argv: the flags, without the program's name.

    Raises:
        InputError: ``flag.unknown``, ``flag.value``, ``flag.refused``,
            ``flag.missing``, ``flag.conflict``, or a ``serve_config.*`` code.
    """
    given = _Given(_read(argv))
    _check_together(given)
    models = _models(given)
    batching = _batching(given)
    threads = _threads(batching)
    return ServerConfig(
        models=models,
        tls=TlsConfig(
            ssl_config_file=given.path("ssl_config_file"),
            identity_files=tuple(Path(path) for path in given.all("tls_identity_file")),
            insecure=given.switch("insecure"),
        ),
        bind_address=given.text("bind_address"),
        grpc_port=_grpc_port(given),
        grpc_socket=given.path("grpc_socket_path"),
        rest_port=_rest_port(given),
        grpc_threads=given.number("grpc_max_threads", 0, 1024) or threads,
        rest_threads=given.number("rest_api_num_threads", 0, 1024) or threads,
        rest_timeout=_rest_timeout(given),
        grpc_options=_channel_arguments(given.text("grpc_channel_arguments")),
        max_request_bytes=given.number("max_request_bytes", 1024, 2**31 - 1),
        access_file=given.path("access_file"),
        provenance_file=given.path("model_provenance"),
        log_requests=given.switch("log_requests"),
        max_connection_age=given.number("max_connection_age_seconds"),
        metrics_path=read_metrics_path(given.path("monitoring_config_file")),
        cors=given.switch("rest_api_enable_cors_support"),
        method_name_check=given.switch("enable_signature_method_name_check"),
        health_service=given.switch("enable_grpc_healthcheck_service"),
        reflection=given.switch("enable_reflection"),
        tensor_content=given.switch("enable_serialization_as_tensor_content"),
        runtime=_runtime(given, batching),
        batching=batching,
        warm_up=given.switch("enable_model_warmup"),
        warm_up_iterations=given.number("num_request_iterations_for_warmup", 0, 10_000) or 1,
        life=_life(given, models),
        drain_seconds=given.number("drain_seconds", 0, 86_400),
        log_note=given.text("log_note"),
        ready_fd=given.number("ready_fd", 0) if given.has("ready_fd") else None,
        ignored=_ignored(given),
    )


class _Given:
    """The values of a command line, with the defaults of those not given."""

    def __init__(self, values: dict[str, list[Value]]) -> None:
        self._values = values
        self._defaults = {flag.name: flag.default for flag in FLAGS}

    def has(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> Value:
        return self._values[name][-1] if name in self._values else self._defaults[name]

    def all(self, name: str) -> list[str]:
        return [str(value) for value in self._values.get(name, [])]

    def switch(self, name: str) -> bool:
        return self.value(name) is True

    def text(self, name: str) -> str:
        return str(self.value(name))

    def path(self, name: str) -> Path | None:
        return Path(self.text(name)) if self.text(name) else None

    def number(self, name: str, least: int = 0, most: int = 2**31 - 1) -> int:
        value = int(self.value(name))
        if not least <= value <= most:
            raise InputError("flag.value", f"{value} is outside {least}..{most}", where=f"--{name}")
        return value


def _read(argv: Sequence[str]) -> dict[str, list[Value]]:
    known = {flag.name: flag for flag in FLAGS}
    values: dict[str, list[Value]] = {}
    for argument in argv:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in known:
            raise InputError(
                "flag.unknown",
                f"unknown flag {argument.partition('=')[0]!r}",
                hint="flags are written --name=value; `sealserve serve --help` lists them",
            )
        flag = known[name]
        value = _convert(flag, text if equals else None)
        if flag.effect is Effect.REFUSED and value != flag.default:
            raise InputError("flag.refused", flag.meaning, where=f"--{name}")
        values[name] = [*values.get(name, []), value]
    return values


def _convert(flag: Flag, text: str | None) -> Value:
    where = f"--{flag.name}"
    if isinstance(flag.default, bool):
        switch = {None: True, "true": True, "1": True, "false": False, "0": False}
        key = text.lower() if text is not None else None
        if key not in switch:
            raise InputError("flag.value", f"{text!r} is neither true nor false", where=where)
        return switch[key]
    if text is None:
        raise InputError(
            "flag.value", "the flag needs a value", where=where, hint=f"write it {where}=VALUE"
        )
    if isinstance(flag.default, int):
        try:
            return int(text)
        except ValueError:
            raise InputError("flag.value", f"{text!r} is not a whole number", where=where) from None
    return text


def _port(given: _Given, name: str) -> int | None:
    number = given.number(name, 0, 65535)
    return number if number or given.has("ready_fd") else None


def _rest_port(given: _Given) -> int | None:
    return _port(given, "rest_api_port") if given.has("rest_api_port") else None


def _grpc_port(given: _Given) -> int | None:
    port = _port(given, "port")
    if port is None and not given.text("grpc_socket_path"):
        raise InputError(
            "flag.missing",
            "--port=0 is no port, and there is no UNIX socket either",
            where="--port",
            hint="give a port, or --grpc_socket_path=PATH",
        )
    return port


def _rest_timeout(given: _Given) -> float:
    """Seconds; the original knows no limit below 1, and a day is none for a request."""
    number = given.number("rest_api_timeout_in_ms", -(2**31), _DAY_MS)
    return (number if number > 0 else _DAY_MS) / 1000


def _check_together(given: _Given) -> None:
    parallelism = [given.number(f"tensorflow_{each}_parallelism") for each in _PARALLELISM]
    if all(parallelism):
        raise InputError(
            "flag.conflict",
            "either --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism: not all three",
            where="--tensorflow_session_parallelism",
        )
    identities = given.text("ssl_config_file") or given.text("tls_identity_file")
    if given.switch("insecure") and given.text("access_file"):
        raise InputError(
            "flag.conflict",
            "roles need TLS: without it a key can be read, and nobody can show a certificate",
            where="--access_file",
        )
    if given.switch("insecure") and identities:
        raise InputError(
            "flag.conflict",
            "a TLS identity and --insecure contradict each other",
            where="--insecure",
            hint="drop one of them",
        )


def _models(given: _Given) -> tuple[ModelConfig, ...]:
    config_file = given.path("model_config_file")
    if config_file is not None:
        return read_model_config(config_file)
    base_path = given.text("model_base_path")
    if not base_path:
        raise InputError(
            "flag.missing",
            "there is nothing to serve",
            hint="give --model_base_path=DIR (and --model_name) or --model_config_file=FILE",
        )
    place = base_path_of(base_path, Path.cwd(), "--model_base_path")
    return (ModelConfig(given.text("model_name"), place),)


def _ignored(given: _Given) -> tuple[tuple[str, str], ...]:
    ignored = [
        (f"--{flag.name}", flag.meaning)
        for flag in FLAGS
        if flag.effect is Effect.WARNED and given.value(flag.name) != flag.default
    ]
    per_model = "enable_per_model_batching_parameters"
    if given.switch(per_model) and not given.switch("enable_batching"):
        ignored.append((f"--{per_model}", "there is no --enable_batching"))
    if given.text("monitoring_config_file") and _rest_port(given) is None:
        ignored.append(("--monitoring_config_file", "metrics are shown by REST: --rest_api_port"))
    return tuple(ignored)


def _batching(given: _Given) -> BatchingConfig | None:
    file = given.path("batching_parameters_file")
    if not given.switch("enable_batching"):
        if file is not None:
            raise InputError(
                "flag.conflict",
                "batching_parameters_file is set without setting enable_batching to true",
                where="--batching_parameters_file",
                hint="add --enable_batching",
            )
        return None
    if file is not None:
        common = read_parameters(file)
    else:
        common = parameters_of(config_pb2.BatchingParameters(), "", SERVER_POOL_NAME)
    return BatchingConfig(common, per_model=given.switch("enable_per_model_batching_parameters"))


def _threads(batching: BatchingConfig | None) -> int:
    """Threads of a front: a request keeps its own while it waits for others."""
    usual = 4 * len(os.sched_getaffinity(0))
    if batching is None:
        return usual
    return max(usual, min(2 * batching.common.max_batch_size, _MOST_WAITING))


def _runtime(given: _Given, batching: BatchingConfig | None) -> RuntimeConfig:
    session, intra, inter = (
        given.number(f"tensorflow_{each}_parallelism", 0, 1024) for each in _PARALLELISM
    )
    mixed = given.text("mixed_precision")
    if mixed not in ("", "bfloat16"):
        raise InputError(
            "flag.value", f"{mixed!r} is not offered; bfloat16 is", where="--mixed_precision"
        )
    return RuntimeConfig(
        tags=tuple(filter(None, given.text("saved_model_tags").split(","))),
        # One of the parts makes the original forget the whole.
        threads=intra if intra or inter else session,
        streams=inter if intra or inter else session,
        throughput=batching is not None,
        precision="bf16" if mixed else "f32",
        prefer_lite=given.switch("prefer_tflite_model"),
        tensorflow=given.text("tensorflow_runtime"),
    )


def _life(given: _Given, models: tuple[ModelConfig, ...]) -> LifeConfig:
    roots = [Path(root).resolve() for root in given.all("model_root")]
    return LifeConfig(
        # TensorFlow Serving takes a negative number for "never".
        file_poll_seconds=max(0, given.number("file_system_poll_wait_seconds", -(2**31))),
        config_file=given.path("model_config_file"),
        config_poll_seconds=max(0, given.number("model_config_file_poll_wait_seconds", -(2**31))),
        load_threads=given.number("num_load_threads", 0, 256) or 1,
        load_retries=given.number("max_num_load_retries"),
        retry_seconds=max(0, given.number("load_retry_interval_micros", -(2**53), 2**53)) / 1e6,
        early_labels=given.switch("allow_version_labels_for_unavailable_models"),
        roots=tuple(roots or sorted({model.base_path.resolve().parent for model in models})),
    )


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    arguments: list[tuple[str, int | str]] = []
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InputError(
                "flag.value",
                f"{item!r} is not of the form key=value",
                where="--grpc_channel_arguments",
            )
        # gRPC takes numbers of 32 bits; anything else goes on as text.
        small = _SMALL_NUMBER.fullmatch(value)
        arguments.append((name, int(value) if small else value))
    return tuple(arguments)
