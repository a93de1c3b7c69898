"""The flags of TensorFlow Serving's command line, and our own, in one table.

Rules this module keeps:

* Every flag of TensorFlow Serving is here. It is *honoured*, or it is accepted
  and the server warns loudly that it has no effect and why, or - where ignoring it
  would weaken security - it is refused.
* Defaults and meanings stand here once; `usage`, which is ``--help``, prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["FLAGS", "Effect", "Flag", "usage"]


class Effect(Enum):
    """What the server does about a flag."""

    HONOURED = "honoured"
    WARNED = "no effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Flag:
    """One flag; the type of ``default`` is the type of its value.

    Attributes:
        meaning: what it does, or why it does nothing here.
        own: sealserve's, not TensorFlow Serving's.
        many: may be given several times; the values add up.
    """

    name: str
    default: bool | int | str
    meaning: str
    effect: Effect = Effect.HONOURED
    own: bool = False
    many: bool = False


def _no_effect(name: str, default: bool | int | str, why: str) -> Flag:
    return Flag(name, default, why, Effect.WARNED)


_NO_TENSORFLOW = "models run on OpenVINO; a TensorFlow worker has no such setting"
_NO_POOLS = (
    "OpenVINO runs .tflite files, and --tensorflow_inter_op_parallelism says how many at once"
)

FLAGS: tuple[Flag, ...] = (
    # What is served.
    Flag("model_name", "default", "name of the model of --model_base_path"),
    Flag("model_base_path", "", "directory that holds one directory per version"),
    Flag("model_config_file", "", "model_config_list; relative base_paths start at its directory"),
    Flag("saved_model_tags", "serve", "tags of the meta graph to serve, comma-separated"),
    Flag(
        "file_system_poll_wait_seconds",
        1,
        "how often base paths are searched for new versions; 0: at start only",
    ),
    Flag(
        "model_config_file_poll_wait_seconds",
        0,
        "how often the model config file is read again; 0: never",
    ),
    Flag("num_load_threads", 0, "models loaded side by side; 0: one after the other"),
    Flag("max_num_load_retries", 5, "how often a load that failed is tried again"),
    Flag("load_retry_interval_micros", 60_000_000, "the pause before that; negative: none"),
    Flag(
        "allow_version_labels_for_unavailable_models",
        False,
        "a label that is not in use may be given to a version before it is available",
    ),
    Flag(
        "model_root",
        "",
        "directory in which reload requests may place base paths; repeatable; without it those "
        "that hold the base paths given at start",
        own=True,
        many=True,
    ),
    Flag(
        "prefer_tflite_model",
        False,
        "serve a version's model.tflite even if it has a saved_model.pb",
    ),
    # Requests gathered into batches.
    Flag(
        "enable_batching",
        False,
        "run requests together, for signatures whose rows are shown to be independent",
    ),
    Flag(
        "batching_parameters_file",
        "",
        "BatchingParameters: sizes, times and limits; needs --enable_batching",
    ),
    Flag(
        "enable_per_model_batching_parameters",
        False,
        "take them from batching_params.pbtxt in each version's directory; a version without one "
        "is not batched. Threads and their name are still the server's",
    ),
    # Where.
    Flag("port", 8500, "gRPC port; 0: none, the UNIX socket alone (with --ready_fd a free one)"),
    Flag("rest_api_port", 0, "REST port; 0: none (given with --ready_fd: a free one)"),
    Flag("grpc_socket_path", "", "UNIX socket that serves gRPC too, with the same TLS"),
    Flag("bind_address", "0.0.0.0", "address of both ports", own=True),  # noqa: S104
    # Under which identity.
    Flag("ssl_config_file", "", "SSLConfig: inline PEM or file paths; for gRPC and REST alike"),
    Flag(
        "tls_identity_file",
        "",
        "PEM key and chain, chosen by server name (SNI); re-read when it changes; repeatable",
        own=True,
        many=True,
    ),
    Flag(
        "tensorflow_runtime",
        "auto",
        "TensorFlow for what OpenVINO cannot be shown to compute rightly: auto (if it is "
        "installed beside sealserve), off, or the path of a Python that has it",
        own=True,
    ),
    Flag("insecure", False, "serve plaintext; without it there must be an identity", own=True),
    # How much.
    Flag(
        "grpc_max_threads",
        0,
        "gRPC requests worked on, or waiting in a batch, at a time; 0: 4 per core, and with "
        "batching enough to fill two batches, at most 128",
    ),
    Flag("rest_api_num_threads", 0, "likewise for REST"),
    Flag("rest_api_timeout_in_ms", 30000, "how long a REST request may take; 0: a day"),
    Flag("max_request_bytes", 256 * 2**20, "largest request that is read", own=True),
    Flag("drain_seconds", 25, "how long SIGTERM waits for requests under way", own=True),
    Flag("tensorflow_intra_op_parallelism", 0, "threads of a model; 0: all cores"),
    Flag(
        "tensorflow_inter_op_parallelism",
        0,
        "inferences of a model side by side; 0: chosen for each model, with the reason in the log",
    ),
    Flag("tensorflow_session_parallelism", 0, "sets both of the above, if neither is given"),
    Flag("grpc_channel_arguments", "", "gRPC channel arguments, key=value, comma-separated"),
    Flag(
        "mixed_precision",
        "",
        "bfloat16: compute in it where the processor can; faster, and less exact",
    ),
    Flag("enable_serialization_as_tensor_content", False, "answer with tensor_content"),
    Flag("enable_model_warmup", True, "answer a model's warm-up records before it is served"),
    Flag("num_request_iterations_for_warmup", 0, "how often each record; 0: once"),
    Flag("rest_api_enable_cors_support", False, "answer browsers of other origins"),
    Flag(
        "monitoring_config_file",
        "",
        "MonitoringConfig: metrics for Prometheus on the REST port, under its TLS and roles",
    ),
    Flag(
        "enable_signature_method_name_check",
        False,
        "Classify and Regress want the signature's method_name to be theirs",
    ),
    Flag(
        "enable_grpc_healthcheck_service",
        True,
        "serve grpc.health.v1, which tells the truth; on by default, unlike the original",
    ),
    Flag("enable_reflection", False, "tell gRPC clients the services and messages", own=True),
    Flag(
        "model_provenance",
        "",
        "public keys and root certificates, PEM: a version that none of them signed is not served",
        own=True,
    ),
    Flag("access_file", "", "roles by client certificate, and API keys", own=True),
    Flag("log_requests", False, "log every request, not only those that fail", own=True),
    Flag(
        "max_connection_age_seconds",
        0,
        "connections older than this are asked to end, so that a balancer can spread them anew",
        own=True,
    ),
    Flag("log_note", "", "text that stands in every line of the log", own=True),
    Flag("ready_fd", -1, "descriptor that gets one JSON line with the ports", own=True),
    Flag("version", False, "print the version and exit"),
    # Known, and without effect here.
    _no_effect("num_unload_threads", 0, "each version is unloaded as soon as it is free"),
    _no_effect("flush_filesystem_caches", True, "the page cache is the kernel's affair"),
    _no_effect("tensorflow_session_config_file", "", _NO_TENSORFLOW),
    _no_effect("platform_config_file", "", "there is one platform: tensorflow"),
    _no_effect("per_process_gpu_memory_fraction", "0", "models run on the CPU"),
    _no_effect("remove_unused_fields_from_bundle_metagraph", True, _NO_TENSORFLOW),
    _no_effect("num_tflite_pools", 0, _NO_POOLS),
    _no_effect("num_tflite_interpreters_per_pool", 1, _NO_POOLS),
    _no_effect("xla_cpu_compilation_enabled", False, _NO_TENSORFLOW),
    _no_effect("xla_gpu_compilation_enabled", False, _NO_TENSORFLOW),
    _no_effect("enable_profiler", False, "there is no profiler: it would show what runs inside"),
    _no_effect("thread_pool_factory_config_file", "", _NO_TENSORFLOW),
    _no_effect("skip_initialize_tpu", False, "models run on the CPU"),
    Flag("use_alts_credentials", False, "ALTS is not offered; use TLS", Effect.REFUSED),
)


def usage() -> str:
    """The table as text, for ``--help``."""
    sections = (
        ("Flags of TensorFlow Serving", Effect.HONOURED, False),
        ("Flags of sealserve", Effect.HONOURED, True),
        ("Flags of TensorFlow Serving that are refused", Effect.REFUSED, False),
        ("Flags of TensorFlow Serving without effect (a warning says so)", Effect.WARNED, False),
    )
    lines = []
    for title, effect, own in sections:
        lines += ["", f"{title}:"]
        for flag in FLAGS:
            if flag.effect is effect and flag.own is own:
                default = (
                    str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
                )
                lines += [f"  --{flag.name}={default}", f"      {flag.meaning}"]
    return "\n".join(lines[1:])
