"""A drop-in: argument lines, TLS files and clients made for TensorFlow Serving, as they stand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from sealserve.errors import InputError, Refused
from sealserve.serving import flags
from sealserve.serving.server import Server
from sealserve.serving.surroundings import image_line, with_variables
from tests.serving.conftest import (
    OWNER_NAME,
    https_connection,
    make_pair,
    on_free_ports,
    ssl_config,
)

MODEL = "resnet50-v15-fp32"  # the original's client asks for it by this name


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def subject(name: str) -> list[str]:
    return ["-nodes", "-newkey", "rsa:2048", "-sha256", "-subj", f"/CN={name}"]


def self_signed(place: Path, name: str, common_name: str = "localhost") -> None:
    """A key and a certificate with no name but the common one, as the original makes them."""
    out = ["-keyout", str(place / f"{name}.key"), "-out", str(place / f"{name}.pem")]
    openssl("req", "-x509", "-days", "2", *subject(common_name), *out)


def signed(place: Path, name: str, common_name: str) -> None:
    """The same, signed by ``ca`` and of X.509 version 1: `openssl x509` adds no extension."""
    request = str(place / f"{name}.csr")
    openssl("req", "-new", *subject(common_name), "-keyout", f"{place / name}.key", "-out", request)
    openssl(
        "x509", "-req", "-sha256", "-days", "2", "-set_serial", "01", "-in", request,
        "-CA", str(place / "ca.pem"), "-CAkey", str(place / "ca.key"),
        "-out", str(place / f"{name}.pem"),
    )  # fmt: skip


def one_line(pem: Path) -> str:
    """PEM as the original's script leaves it: the base64 in one long line, ``\\n`` spelt out."""
    first, *middle, last = pem.read_text().splitlines()
    return rf"{first}\n{''.join(middle)}\n{last}"


def original_config(place: Path, *, mutual: bool) -> Path:
    config = place / "ssl.cfg"
    lines = [
        f"server_key: '{one_line(place / 'server.key')}'",
        f"server_cert: '{one_line(place / 'server.pem')}'",
        f"custom_ca: '{one_line(place / 'ca.pem') if mutual else ''}'",
        f"client_verify: {'true' if mutual else 'false'}",
    ]
    config.write_text("\n".join(lines) + "\n")
    return config


def original_line(models: Path, config: Path) -> list[str]:
    """What the original's container runs; the ports alone are ours."""
    return [
        f"--model_name={MODEL}",
        f"--model_base_path={models / 'affine'}",
        "--enable_model_warmup=true",
        "--flush_filesystem_caches=false",
        "--enable_batching=false",
        f"--ssl_config_file={config}",
        "--rest_api_num_threads=64",
        "--tensorflow_session_parallelism=0",
        "--tensorflow_intra_op_parallelism=8",
        "--tensorflow_inter_op_parallelism=8",
        "--file_system_poll_wait_seconds=5",
        "--bind_address=127.0.0.1",
    ]


@pytest.fixture
def originals(models: Path, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers under TLS files of the original's making: one-way and two-way."""
    servers = []
    for kind in ("one-way", "two-way"):
        place = tmp_path / kind
        place.mkdir()
        if kind == "two-way":
            self_signed(place, "ca", "My Cert Authority")
            signed(place, "server", "localhost")
            signed(place, "client", "client.example")
        else:
            self_signed(place, "server")
        config = original_config(place, mutual=kind == "two-way")
        servers.append(Server(on_free_ports(flags.parse(original_line(models, config)))))
        servers[-1].start()
    yield servers[0], servers[1]
    for server in servers:
        server.stop(5)


def test_clients_as_the_originals_work_under_its_own_tls_files(
    originals: tuple[Server, Server], oracle: Path, tmp_path: Path
) -> None:
    one, two = (server.ports["grpc"] for server in originals)
    servers = [
        f"{one},one-way/server.pem",
        f"{two},two-way/ca.pem,two-way/client.key,two-way/client.pem",
    ]
    called = subprocess.run(
        [oracle, Path(__file__).with_name("call_as_the_original.py"), MODEL, *servers],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert called.returncode == 0, called.stderr[-2000:]
    answers = [json.loads(line) for line in called.stdout.splitlines()]
    assert len(answers) == 2
    for answer in answers:
        assert answer["outputs"]["y"]["floatVal"] == [1.0, 9.0]
        assert answer["modelSpec"]["signatureName"] == "serving_default"

    # Nobody gets in at the second without a certificate.
    root = (tmp_path / "two-way" / "ca.pem").read_bytes()
    with grpc.secure_channel(f"localhost:{two}", grpc.ssl_channel_credentials(root)) as channel:
        stub = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            stub(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    # What the original leaves in plaintext: REST, here under the same file.
    certificate = (tmp_path / "one-way" / "server.pem").read_bytes()
    pair = replace(make_pair("localhost"), certificate=certificate)
    connection = https_connection(originals[0].ports["rest"], pair)
    connection.request("GET", f"/v1/models/{MODEL}")
    assert connection.getresponse().status == 200
    connection.close()


def test_lines_of_kserve_and_docker_start_as_they_stand(models: Path, tmp_path: Path) -> None:
    probe = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no namespaces")
    owner = make_pair(OWNER_NAME)
    (tmp_path / "ssl.cfg").write_text(ssl_config(owner))
    (tmp_path / "server.crt").write_bytes(owner.certificate)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("tensorflow_model_server", "tf_serving_entrypoint.sh"):
        (programs / name).symlink_to(Path(sys.executable).with_name("sealserve"))
    script = Path(__file__).with_name("in_container.py")
    done = subprocess.run(
        [*probe, sys.executable, script, models / "affine", programs,
         tmp_path / "ssl.cfg", tmp_path / "server.crt", OWNER_NAME],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rest = {"predictions": [5.0, 9.0]}
    assert json.loads(done.stdout) == {
        "answers": {"9000": [5.0, 9.0], "8080": rest, "8500": [5.0, 9.0], "8501": rest},
        "ended": [0, 0],
    }


def test_variables_stand_before_flags_and_can_only_add_security() -> None:
    given = {"SEALSERVE_SSL_CONFIG_FILE": "a.cfg", "SEALSERVE_INSECURE": "true", "PORT": "1"}
    line = with_variables(["--model_base_path=/m"], given)
    assert line == ["--ssl_config_file=a.cfg", "--model_base_path=/m"]
    assert flags.parse(line).tls.ssl_config_file == Path("a.cfg")
    assert not flags.parse(line).tls.insecure
    with pytest.raises(InputError, match="contradict"):
        flags.parse([*line, "--insecure"])
    with pytest.raises(InputError, match="variable is empty"):
        with_variables([], {"SEALSERVE_ACCESS_FILE": ""})
    # A flag wins; one that is empty leaves no identity, and the server does not start.
    assert flags.parse([*line, "--ssl_config_file=b"]).tls.ssl_config_file == Path("b")
    with pytest.raises(Refused, match="no TLS identity"):
        Server(flags.parse([*line, "--ssl_config_file="])).start()


def test_the_images_variables_have_the_images_defaults() -> None:
    config = flags.parse(image_line([], {}))
    assert [(model.name, model.base_path) for model in config.models] == [
        ("model", Path("/models/model"))
    ]
    assert (config.grpc_port, config.rest_port) == (8500, 8501)
    named = flags.parse(image_line(["--port=1"], {"MODEL_NAME": "m", "MODEL_BASE_PATH": "/b"}))
    assert (named.models[0].base_path, named.grpc_port) == (Path("/b/m"), 1)
