"""What the server is told to do: plain data, and the reading of model_config_file.

Rules this module keeps:

* Data only: nothing here opens a port, loads a model or holds a key.
* A model config file is TensorFlow Serving's ``ModelServerConfig`` text proto
  (``tensorflow_serving/config/model_server_config.proto``). One extension: a
  relative ``base_path`` is taken from the directory of the file, so that a
  volume can name its own models wherever it is mounted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format

from sealserve.errors import InputError
from sealserve.files import read_limited
from sealserve.serving.batching.parameters import BatchingConfig
from sealserve.wire.serving import config_pb2

__all__ = [
    "MAX_CONFIG_BYTES",
    "All",
    "Latest",
    "LifeConfig",
    "ModelConfig",
    "RuntimeConfig",
    "ServerConfig",
    "Specific",
    "TlsConfig",
    "VersionPolicy",
    "base_path_of",
    "model_configs",
    "read_metrics_path",
    "read_model_config",
]

MAX_CONFIG_BYTES = 4 * 2**20
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class Latest:
    """Serve the newest versions: those with the greatest numbers."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Serve every version."""


@dataclass(frozen=True)
class Specific:
    """Serve exactly these versions."""

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific


@dataclass(frozen=True)
class ModelConfig:
    """One entry of model_config_list.

    Attributes:
        name: what clients call the model.
        base_path: the directory that holds one directory per version.
        policy: which versions are served.
        labels: label -> version, for requests that name a label.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=Latest)
    labels: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class LifeConfig:
    """How versions come and go while the server runs.

    Attributes:
        file_poll_seconds: how often base paths are searched for versions; 0: only when the
            models change.
        config_file: the model_config_list to read again; None when flags name the model.
        config_poll_seconds: how often; 0: never.
        load_threads: models that are loaded side by side.
        load_retries: how often a load that failed is tried again.
        retry_seconds: the pause before that.
        early_labels: a label that is not in use may be given to a version that is not available.
        roots: the directories in which a reload request may place base paths.
    """

    file_poll_seconds: float = 0.0
    config_file: Path | None = None
    config_poll_seconds: float = 0.0
    load_threads: int = 1
    load_retries: int = 5
    retry_seconds: float = 60.0
    early_labels: bool = False
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TlsConfig:
    """Where the TLS identities come from; see `sealserve.serving.tls`.

    Attributes:
        ssl_config_file: TensorFlow Serving's SSLConfig; its identity is the default one.
        identity_files: PEM files with a key and its chain, chosen by server name (SNI).
        insecure: serve plaintext; only when there is no identity at all.
    """

    ssl_config_file: Path | None = None
    identity_files: tuple[Path, ...] = ()
    insecure: bool = False


@dataclass(frozen=True)
class RuntimeConfig:
    """How models are loaded and run.

    Attributes:
        tags: the tags that select the meta graph of a SavedModel.
        threads: threads of a model's inferences together; 0: all cores this process may use.
        streams: inferences that run side by side on those threads; 0: chosen for each model.
        throughput: choose them for many requests rather than for the fastest answer.
        precision: ``f32`` or ``bf16``.
        prefer_lite: a version's model.tflite goes before its saved_model.pb.
        tensorflow: where TensorFlow is, for what OpenVINO cannot be shown to compute:
            ``auto`` (beside sealserve, if installed), ``off``, or a Python interpreter.
    """

    tags: tuple[str, ...] = ("serve",)
    threads: int = 0
    streams: int = 0
    throughput: bool = False
    precision: str = "f32"
    prefer_lite: bool = False
    tensorflow: str = "auto"


@dataclass(frozen=True)
class ServerConfig:
    """Everything `sealserve.serving.server.Server` needs to know.

    Attributes:
        models: the models to serve.
        tls: identities, or the explicit wish for none.
        bind_address: the address both ports listen on.
        grpc_port: None for none; 0 picks a free one.
        grpc_socket: a UNIX socket on which gRPC is served as well.
        rest_port: None for no REST; 0 picks a free one.
        grpc_threads: requests that gRPC works on at a time.
        rest_threads: requests that REST works on at a time.
        rest_timeout: seconds a REST request may take.
        grpc_options: further gRPC channel arguments.
        max_connection_age: seconds after which a connection is asked to end; 0: never.
        max_request_bytes: the largest request either front reads.
        access_file: who may do what; see `sealserve.serving.access`.
        provenance_file: whose signatures models must carry; None: none is asked for.
        log_requests: log every request, not only those that fail.
        metrics_path: where REST shows metrics; None: nowhere.
        cors: answer browsers of other origins.
        method_name_check: Classify and Regress want the signature's method_name to be theirs.
        health_service: serve grpc.health.v1.
        reflection: tell clients the services and messages.
        tensor_content: answer with ``tensor_content`` instead of typed fields.
        runtime: how models are run.
        batching: how requests are gathered; None: each is run by itself.
        warm_up: replay the warm-up records of a model before it is served.
        warm_up_iterations: how often each of them.
        life: how versions come and go.
        drain_seconds: how long a stopping server waits for the requests it has begun.
        log_note: stands in every line of the log; a simulated guest says so with it.
        ready_fd: a file descriptor that gets one JSON line with the ports.
        ignored: flags that were given and have no effect, each with the reason.
    """

    models: tuple[ModelConfig, ...]
    tls: TlsConfig = field(default_factory=TlsConfig)
    bind_address: str = "0.0.0.0"  # noqa: S104 - TensorFlow Serving's; a guest is there to serve
    grpc_port: int | None = 8500
    grpc_socket: Path | None = None
    rest_port: int | None = None
    grpc_threads: int = 8
    rest_threads: int = 8
    rest_timeout: float = 30.0
    grpc_options: tuple[tuple[str, int | str], ...] = ()
    max_connection_age: float = 0.0
    max_request_bytes: int = 256 * 2**20
    access_file: Path | None = None
    provenance_file: Path | None = None
    log_requests: bool = False
    metrics_path: str | None = None
    cors: bool = False
    method_name_check: bool = False
    health_service: bool = True
    reflection: bool = False
    tensor_content: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    batching: BatchingConfig | None = None
    warm_up: bool = True
    warm_up_iterations: int = 1
    life: LifeConfig = field(default_factory=LifeConfig)
    drain_seconds: float = 25.0
    log_note: str = ""
    ready_fd: int | None = None
    ignored: tuple[tuple[str, str], ...] = ()


def read_model_config(path: Path) -> tuple[ModelConfig, ...]:
    """Read a ``model_config_list``; an empty one is a server that waits for its models.

    Args:
        path: the text proto file; its directory is where relative base paths start.

    Raises:
        InputError: ``file.too_large`` or ``serve_config.model_list``.
        Unavailable: ``file.unreadable``.
    """
    text = read_limited(path, MAX_CONFIG_BYTES)
    try:
        parsed = text_format.Parse(text, config_pb2.ModelServerConfig())
    except (text_format.ParseError, UnicodeError) as error:
        # TensorFlow Serving's own words come first: wrappers and its tests look for them.
        raise InputError(
            "serve_config.model_list",
            f"Error parsing text-format tensorflow.serving.ModelServerConfig: {error}",
            where=str(path),
            hint='an entry looks like model_config_list { config { name: "m" base_path: "m" } }',
        ) from None
    if not parsed.HasField("model_config_list"):
        # As a file looks that is being written; the original does nothing then, either.
        raise _bad_entry(
            "there is no model_config_list; to serve nothing for now, write model_config_list { }",
            str(path),
        )
    return model_configs(parsed, path.resolve().parent, str(path))


def read_metrics_path(file: Path | None) -> str | None:
    """Where a MonitoringConfig wants metrics to be shown; None for nowhere.

    Raises:
        InputError: ``file.too_large`` or ``serve_config.monitoring``.
        Unavailable: ``file.unreadable``.
    """
    if file is None:
        return None
    try:
        wire = text_format.Parse(
            read_limited(file, MAX_CONFIG_BYTES), config_pb2.MonitoringConfig()
        )
    except (text_format.ParseError, UnicodeError) as error:
        raise InputError(
            "serve_config.monitoring",
            f"Error parsing text-format tensorflow.serving.MonitoringConfig: {error}",
            where=str(file),
            hint='write prometheus_config { enable: true path: "/metrics" }',
        ) from None
    path = wire.prometheus_config.path or DEFAULT_METRICS_PATH
    if not path.startswith("/"):
        raise InputError(
            "serve_config.monitoring", f"the path {path!r} does not begin with /", where=str(file)
        )
    return path if wire.prometheus_config.enable else None


def model_configs(
    wire: config_pb2.ModelServerConfig, start: Path, where: str
) -> tuple[ModelConfig, ...]:
    """Check a ``model_config_list``.

    Args:
        wire: the message.
        start: where relative base paths start.
        where: what the message came from, for errors.

    Raises:
        InputError: ``serve_config.model_list``.
    """
    models = tuple(_model_config(entry, start, where) for entry in wire.model_config_list.config)
    names: set[str] = set()
    for model in models:
        if model.name in names:
            raise _bad_entry(
                f"Illegal to list model {model.name} multiple times in config list", where
            )
        names.add(model.name)
    return models


def _model_config(entry: config_pb2.ModelConfig, start: Path, where: str) -> ModelConfig:
    if not entry.name or not entry.base_path:
        raise _bad_entry("an entry has no name or no base_path", where)
    if "\0" in entry.base_path:
        raise _bad_entry(f"the base_path of model {entry.name} is no path", where)
    if entry.HasField("logging_config"):
        raise _bad_entry(
            f"model {entry.name} has a logging_config; what is in requests is never logged", where
        )
    if entry.model_type == config_pb2.OTHER:
        raise _bad_entry(f"model {entry.name} has model_type OTHER", where)
    if entry.model_platform not in ("", "tensorflow"):
        raise _bad_entry(
            f"model {entry.name} has model_platform {entry.model_platform!r}; "
            "only 'tensorflow' is served",
            where,
        )
    return ModelConfig(
        name=entry.name,
        base_path=base_path_of(entry.base_path, start, where),
        policy=_policy(entry, where),
        labels=tuple(sorted(entry.version_labels.items())),
    )


def base_path_of(text: str, start: Path, where: str) -> Path:
    """The directory that a base path names.

    Args:
        text: a path, or a ``file://`` URL as the original takes it, too.
        start: what a relative path begins at.
        where: the flag or file that says it.

    Raises:
        InputError: ``serve_config.base_path_remote``.
    """
    scheme, given, path = text.partition("://")
    if not given or "/" in scheme:
        return start / text
    if scheme != "file":
        raise InputError(
            "serve_config.base_path_remote",
            f"models are not fetched from {scheme}:// while they are served",
            where=where,
            hint="seal them into a volume, or copy them into a directory, and name that",
        )
    return Path("/") / path


def _policy(entry: config_pb2.ModelConfig, where: str) -> VersionPolicy:
    policy = entry.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not policy.specific.versions:
                raise _bad_entry(
                    f"the specific policy of model {entry.name} names no version", where
                )
            return Specific(tuple(sorted(set(policy.specific.versions))))
        case _:
            return Latest(policy.latest.num_versions or 1)


def _bad_entry(message: str, where: str) -> InputError:
    return InputError("serve_config.model_list", message, where=where)
