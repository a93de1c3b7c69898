"""`sealserve model`, as a person types it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sealserve.cli import model as model_cli
from sealserve.errors import SealserveError, Unavailable
from sealserve.model import catalogue
from sealserve.model.graphdef import GraphBuilder
from sealserve.wire.tensorflow import graph_pb2, tensor_pb2
from tests.onnx_files import onnx_bytes

CONTENT = b"frozen graph " * 1000


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    builder = GraphBuilder()
    builder.placeholder("input", [None, 4])
    builder.dense("dense", "input", np.eye(4), np.zeros(4))
    builder.softmax("predict", "dense")
    path = tmp_path / "frozen.pb"
    path.write_bytes(builder.graph.SerializeToString())
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "sealserve"


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(model_cli.app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_known_model_is_listed_with_its_source_and_licence() -> None:
    listed = as_json("list")["models"]
    assert {entry["name"] for entry in listed} == {entry.name for entry in catalogue.CATALOGUE}
    assert all(entry["source"] and entry["licence"] and entry["digest"] for entry in listed)
    pinned = [entry for entry in catalogue.CATALOGUE if getattr(entry, "sha256", None)]
    assert len(pinned) == 2
    for entry in pinned:
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert re.search("/[0-9a-f]{40}/", entry.url)  # a commit, not a branch that moves
    text = run("list").stdout
    assert "sealserve model fetch resnet50-v15-fp32" in text
    assert "RANDOM" in text


def test_a_frozen_graph_is_imported_and_shown(frozen: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    options = ("--out", out, "--name", "net", "--inputs", "input", "--outputs", "predict")
    imported = as_json("import", frozen, *options, "--version", "2")
    assert imported["path"] == str(out / "net" / "2")
    shown = as_json("show", out / "net" / "2")
    assert shown["signatures"] == imported["signatures"]
    assert as_json("show", out / "net") == shown  # of a base path the newest version
    (signature,) = shown["signatures"]
    assert signature["outputs"][0]["shape"] == [None, 4]
    assert "in   input: DT_FLOAT [?, 4] (input:0)" in run("show", frozen).stdout
    assert "serving_default" in run("import", frozen, *options).stdout


def test_check_says_who_will_serve_each_signature(frozen: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    run(
        "import", frozen, "--out", out, "--name", "net", "--inputs", "input", "--outputs", "predict"
    )
    checked = as_json("check", out / "net")
    assert checked["directory"] == str(out / "net" / "1")
    (signature,) = checked["signatures"]
    assert (signature["signature"], signature["runtime"]) == ("serving_default", "openvino")
    assert signature["batched"] is True
    assert "seeded rows came out the same" in signature["batching"]
    text = run("check", out / "net" / "1", "--enable-batching").stdout
    assert "openvino: its conversion is proved equal" in text
    assert "at f32: " in text
    assert "can be batched: " in text


def test_check_fails_for_a_signature_that_nobody_serves(tmp_path: Path) -> None:
    saved = graph_pb2.SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = tensor_pb2.DT_STRING
    meta.graph_def.node.add(name="y", op="StringLower", input=["x"])
    signature = meta.signature_def["serving_default"]
    for entries, name in ((signature.inputs, "x"), (signature.outputs, "y")):
        entries[name].name, entries[name].dtype = f"{name}:0", tensor_pb2.DT_STRING
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(SealserveError) as caught:
        run("check", tmp_path, "--tensorflow-runtime", "off")
    assert caught.value.code == "model.not_servable"


def test_check_of_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SealserveError) as caught:
        run("check", tmp_path)
    assert caught.value.code == "file.unreadable"


def test_a_list_of_tensors_is_split_at_commas(frozen: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--name", "net", "--outputs", "scores = predict:0, dense")
    with pytest.raises(Exception, match=r"graph\.no_such_node"):
        run("import", frozen, *options)
    imported = as_json(
        "import", frozen, "--out", tmp_path, "--name", "net", "--outputs", "scores=predict, dense"
    )
    keys = [spec["key"] for spec in imported["signatures"][0]["outputs"]]
    assert keys == ["dense", "scores"]


def test_a_model_is_built_once(tmp_path: Path) -> None:
    path = tmp_path / "lite0.pb"
    made = as_json("build", "efficientnet-lite0", "--out", path)
    assert made["size"] == path.stat().st_size
    with pytest.raises(Exception, match=r"file\.exists"):
        run("build", "efficientnet-lite0", "--out", path)
    assert "classes" in run("show", path).stdout or "probabilities" in run("show", path).stdout


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The catalogue's published model, published on loopback."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "net.pb").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(site))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    entry = catalogue.published("resnet50-v15-fp32")
    local = replace(entry, url=f"http://127.0.0.1:{server.server_address[1]}/net.pb")
    monkeypatch.setattr(catalogue, "CATALOGUE", (local,))
    yield local.name
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_published_model_is_fetched_and_its_digest_recorded(published: str, home: Path) -> None:
    fetched = as_json("fetch", published)
    path = home / "models" / "net.pb"
    assert fetched["path"] == str(path)
    assert path.read_bytes() == CONTENT
    assert fetched["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    (record,) = (home / "fetched").iterdir()
    assert json.loads(record.read_text())["sha256"] == fetched["sha256"]
    again = run("fetch", published).stdout
    assert "was here already" in again
    assert "checked against recorded digest" in again


def test_a_digest_can_be_demanded(published: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"fetch\.digest_mismatch"):
        run("fetch", published, "--dir", tmp_path / "d", "--sha256", "0" * 64)
    assert list((tmp_path / "d").iterdir()) == []


def test_without_a_network_there_is_one_line_and_a_hint(tmp_path: Path) -> None:
    """The real program and the real address; a proxy nobody runs stands for "no network"."""
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "TERM": "dumb"}
    environment |= dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:1")
    environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), "")
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", "model", "fetch", "resnet50-v15-fp32"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 4
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].endswith("[fetch.unreachable]")
    assert lines[-1].startswith("next:")


@pytest.mark.parametrize("command", ["list", "fetch", "build", "import", "show", "check"])
def test_each_command_teaches_by_an_example(command: str) -> None:
    shown = run(command, "--help").stdout
    assert f"Example: sealserve model {command}" in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("command", ["show", "check"])
def test_where_there_is_no_model_the_next_step_is_told(tmp_path: Path, command: str) -> None:
    """It was told that saved_model.pb cannot be read, wherever one looked."""
    (tmp_path / "models" / "net" / "1").mkdir(parents=True)
    for place in ("models", "models/net"):
        with pytest.raises(Unavailable) as caught:
            run(command, tmp_path / place)
        assert caught.value.code == "file.unreadable"
        assert "there is n" in caught.value.message
        assert caught.value.hint


def known(path: Path, **outputs: Any) -> Path:
    named = {f"outputs/{key}": np.asarray(value, "f4") for key, value in outputs.items()}
    np.savez(path, **{"inputs/input": np.array([[1, 2, 3, 4]], "f4")}, **named)
    return path


SOFTMAX = np.exp([1, 2, 3, 4]) / np.exp([1, 2, 3, 4]).sum()


def test_an_import_gives_known_answers_or_is_undone(frozen: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "models", "--name", "net", "--outputs", "predict")
    wrong = known(tmp_path / "wrong.npz", predict=[SOFTMAX + 0.001])
    with pytest.raises(SealserveError) as caught:
        run("import", frozen, *options, "--check-against", wrong)
    assert caught.value.code == "known_answers.differs"
    assert not (tmp_path / "models").exists()

    right = known(tmp_path / "right.npz", predict=[SOFTMAX])
    assert as_json("import", frozen, *options, "--check-against", right)["answers_compared"] == 1
    checked = run("check", tmp_path / "models" / "net", "--check-against", right)
    assert "1 known answer given, to 0.0001" in checked.stdout
    loose = ("--check-against", wrong, "--tolerance", "0.01")
    assert as_json("check", tmp_path / "models" / "net", *loose)["answers_compared"] == 1
    with pytest.raises(SealserveError):
        run("check", tmp_path / "models" / "net", "--check-against", wrong)


def test_an_onnx_model_is_imported_shown_and_checked(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(onnx_bytes(rows=1))
    options = ("--out", tmp_path / "models", "--name", "net")
    text = run("import", source, *options).stdout
    assert "operator sets: ai.onnx 17" in text
    assert "takes exactly 1 at a time" in text
    assert run("show", source).stdout == run("show", tmp_path / "models/net/1").stdout
    (signature,) = as_json("check", tmp_path / "models" / "net")["signatures"]
    assert signature["runtime"] == "openvino"
