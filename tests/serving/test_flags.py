"""The command line: TensorFlow Serving's syntax, defaults and errors."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.serving import flags
from sealserve.serving.config import All, Latest, ModelConfig, Specific, read_model_config

BASE = "--model_base_path=/models/m"


def code_of(*argv: str) -> str:
    with pytest.raises(InputError) as caught:
        flags.parse(argv)
    return caught.value.code


def test_docker_and_kserve_command_lines_are_understood() -> None:
    docker = ["--port=8500", "--rest_api_port=8501", "--model_name=m", BASE]
    config = flags.parse(docker)
    assert (config.grpc_port, config.rest_port) == (8500, 8501)
    assert config.models == (ModelConfig("m", Path("/models/m"), Latest(1)),)
    kserve = [
        "--model_name=m",
        "--port=9000",
        "--rest_api_port=8080",
        "--model_base_path=/mnt/models",
        "--rest_api_timeout_in_ms=60000",
    ]
    assert flags.parse(kserve).rest_timeout == 60.0


def test_a_repeated_flag_counts_last_but_identities_add_up() -> None:
    config = flags.parse(
        [BASE, "--port=1", "--port=2", "--tls_identity_file=a", "--tls_identity_file=b"]
    )
    assert config.grpc_port == 2
    assert config.tls.identity_files == (Path("a"), Path("b"))


def test_rest_is_off_unless_asked_for() -> None:
    assert flags.parse([BASE]).rest_port is None
    assert flags.parse([BASE, "--ready_fd=9"]).rest_port is None


def test_port_0_is_no_port_as_in_the_original() -> None:
    """It used to be a free port: a line that switched REST off opened one to the world."""
    config = flags.parse([BASE, "--port=0", "--grpc_socket_path=s", "--rest_api_port=0"])
    assert (config.grpc_port, config.rest_port) == (None, None)
    assert code_of(BASE, "--port=0") == "flag.missing"
    told = flags.parse([BASE, "--port=0", "--rest_api_port=0", "--ready_fd=9"])
    assert (told.grpc_port, told.rest_port) == (0, 0)


def test_numbers_that_the_original_takes_for_none_or_never() -> None:
    config = flags.parse(
        [
            BASE,
            "--load_retry_interval_micros=-1",
            "--model_config_file_poll_wait_seconds=-1",
            "--file_system_poll_wait_seconds=-1",
            "--rest_api_timeout_in_ms=0",
        ]
    )
    life = config.life
    assert (life.retry_seconds, life.config_poll_seconds, life.file_poll_seconds) == (0, 0, 0)
    assert config.rest_timeout == 86_400


def test_one_of_the_parts_of_parallelism_makes_the_whole_forgotten() -> None:
    session, intra = "--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=3"
    runtime = flags.parse([BASE, session]).runtime
    assert (runtime.threads, runtime.streams) == (2, 2)
    runtime = flags.parse([BASE, session, intra]).runtime
    assert (runtime.threads, runtime.streams) == (3, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("", True), ("=true", True), ("=False", False), ("=1", True), ("=0", False)],
)
def test_switches(text: str, value: bool) -> None:
    config = flags.parse([BASE, f"--enable_serialization_as_tensor_content{text}"])
    assert config.tensor_content is value


def test_channel_arguments_are_numbers_where_grpc_takes_them_as_numbers() -> None:
    """Fuzzing found ``--1``, which no rule had kept from being read as a number."""
    text = "a=1,b=-2,c=--1,d=99999999999,e=,f=\u0661,g=-"
    assert flags.parse([BASE, f"--grpc_channel_arguments={text}"]).grpc_options == (
        ("a", 1),
        ("b", -2),
        *(
            (name, value)
            for name, value in zip("cdefg", ("--1", "9" * 11, "", "\u0661", "-"), strict=True)
        ),
    )


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("--prot=8500", "flag.unknown"),
        ("-port=8500", "flag.unknown"),
        ("8500", "flag.unknown"),
        ("--port", "flag.value"),
        ("--port=", "flag.value"),
        ("--port=eighty", "flag.value"),
        ("--port=65536", "flag.value"),
        ("--port=-1", "flag.value"),
        ("--insecure=maybe", "flag.value"),
        ("--max_request_bytes=0", "flag.value"),
        ("--grpc_channel_arguments=novalue", "flag.value"),
        ("--use_alts_credentials", "flag.refused"),
        ("--mixed_precision=fp8", "flag.value"),
    ],
)
def test_bad_flags(argument: str, code: str) -> None:
    assert code_of(BASE, argument) == code


def test_contradictions() -> None:
    assert code_of() == "flag.missing"
    assert code_of(BASE, "--insecure", "--ssl_config_file=x") == "flag.conflict"
    assert code_of(BASE, "--batching_parameters_file=x") == "flag.conflict"
    parts = ("session", "intra_op", "inter_op")
    all_three = (f"--tensorflow_{each}_parallelism=2" for each in parts)
    assert code_of(BASE, *all_three) == "flag.conflict"


def test_a_flag_without_effect_is_told_only_when_it_was_changed() -> None:
    off = ("--enable_profiler=false", "--skip_initialize_tpu=false")
    assert flags.parse([BASE, *off]).ignored == ()
    ignored = flags.parse([BASE, "--skip_initialize_tpu", "--enable_profiler"]).ignored
    assert [flag for flag, _ in ignored] == ["--enable_profiler", "--skip_initialize_tpu"]


def test_metrics_without_rest_are_told_to_be_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    file.write_text("prometheus_config { enable: true }")
    given = [BASE, f"--monitoring_config_file={file}"]
    assert [flag for flag, _ in flags.parse(given).ignored] == ["--monitoring_config_file"]
    assert flags.parse([*given, "--rest_api_port=8501"]).ignored == ()


def test_every_flag_of_tensorflow_serving_is_known() -> None:
    # Names as `tensorflow_model_server --help` prints them (2.20).
    known = {flag.name for flag in flags.FLAGS}
    names = """port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    batching_parameters_file model_config_file model_config_file_poll_wait_seconds model_name
    model_base_path num_load_threads num_unload_threads max_num_load_retries
    load_retry_interval_micros file_system_poll_wait_seconds flush_filesystem_caches
    tensorflow_session_parallelism tensorflow_session_config_file tensorflow_intra_op_parallelism
    tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file platform_config_file
    per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
    enable_model_warmup num_request_iterations_for_warmup version monitoring_config_file
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
    num_tflite_interpreters_per_pool enable_signature_method_name_check
    xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    thread_pool_factory_config_file mixed_precision skip_initialize_tpu
    enable_grpc_healthcheck_service enable_serialization_as_tensor_content
    enable_per_model_batching_parameters"""
    assert set(names.split()) <= known
    assert all(f"--{name}=" in flags.usage() for name in known)


@given(st.lists(st.text(max_size=30) | st.sampled_from([f"--{f.name}" for f in flags.FLAGS])))
def test_any_command_line_gives_a_configuration_or_a_typed_error(argv: list[str]) -> None:
    with contextlib.suppress(SealserveError):
        flags.parse(argv)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.config"
    file.write_text(text)
    return file


def test_model_config_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        model_config_list: {
          config: { name: "a", base_path: "here/a", model_platform: "tensorflow" }
          config: { name: "b", base_path: "/there/b",
                    model_version_policy: { specific: { versions: 3, versions: 1 } },
                    version_labels: { key: "stable" value: 1 } }
          config: { name: "c", base_path: "c", model_version_policy { latest { num_versions: 2 } } }
          config: { name: "d", base_path: "d", model_version_policy { all {} } }
        }""",
    )
    a, b, c, d = read_model_config(file)
    assert a == ModelConfig("a", tmp_path / "here" / "a", Latest(1))
    assert b == ModelConfig("b", Path("/there/b"), Specific((1, 3)), (("stable", 1),))
    assert c.policy == Latest(2)
    assert d.policy == All()


X = "name: 'x' base_path: 'x'"
LOGGING = """logging_config {
    log_collector_config { type: 'file' filename_prefix: '/x' }
    sampling_config { sampling_rate: 0.1 }
}"""


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("nonsense", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        ("config { nam: 'x' }", "Error parsing text-format"),
        (f"config {{ {X} model_type: OTHER }}", "model_type OTHER"),
        (f"config {{ {X} logging_config {{}} }}", "never logged"),
        (f"config {{ {X} {LOGGING} }}", "never logged"),
        ("config { name: 'x' }", "no base_path"),
        (f"config {{ {X} model_platform: 'pytorch' }}", "pytorch"),
        (f"config {{ {X} }} config {{ {X} }}", "multiple times"),
        (f"config {{ {X} model_version_policy {{ specific {{}} }} }}", "names no version"),
    ],
)
def test_bad_model_config_file(tmp_path: Path, entries: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_model_config(write(tmp_path, f"model_config_list {{ {entries} }}"))
    assert caught.value.code == "serve_config.model_list"


def test_a_config_file_may_have_no_models_yet_but_must_say_so(tmp_path: Path) -> None:
    """The original starts with none and gets them later, by a changed file or a reload."""
    file = write(tmp_path, "model_config_list { }")
    config = flags.parse([f"--model_config_file={file}"])
    assert config.models == ()
    assert config.life.roots == ()
    with pytest.raises(InputError, match="no model_config_list") as caught:
        read_model_config(write(tmp_path, ""))
    assert caught.value.code == "serve_config.model_list"


def test_old_config_files_with_a_model_type_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, f"model_config_list {{ config {{ {X} model_type: TENSORFLOW }} }}")
    assert read_model_config(file) == (ModelConfig("x", tmp_path / "x"),)


def test_unreadable_model_config_file(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"file\.unreadable"):
        flags.parse([f"--model_config_file={tmp_path / 'none'}"])
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert code_of(f"--model_config_file={binary}") == "serve_config.model_list"
    large = tmp_path / "large"
    large.write_bytes(b"#" * (5 * 2**20))
    assert code_of(f"--model_config_file={large}") == "file.too_large"


def test_a_base_path_may_be_a_file_url_and_no_bucket(tmp_path: Path) -> None:
    (model,) = flags.parse(["--insecure", f"--model_base_path=file://{tmp_path}/m"]).models
    assert model.base_path == tmp_path / "m"
    (model,) = flags.parse(["--insecure", "--model_base_path=odd/a://b"]).models
    assert model.base_path == Path.cwd() / "odd" / "a:" / "b"
    file = tmp_path / "models.config"
    listed = 'model_config_list { config { name: "m" base_path: "URL" } }'
    file.write_text(listed.replace("URL", "file:///m"))
    (model,) = flags.parse(["--insecure", f"--model_config_file={file}"]).models
    assert model.base_path == Path("/m")
    file.write_text(listed.replace("URL", "gs://bucket/m"))
    for flag in (f"--model_config_file={file}", "--model_base_path=gs://bucket/m"):
        assert code_of("--insecure", flag) == "serve_config.base_path_remote"
