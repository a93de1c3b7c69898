"""Versions that nobody who is trusted has signed are not served; the others are."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.logs import make_log
from sealserve.model.graphdef import GraphBuilder
from sealserve.model.importer import import_model
from sealserve.provenance import SIGNATURE_NAME, load_trust, make_signing_key
from sealserve.provenance.sign import Signing, sign_model
from sealserve.serving import flags
from sealserve.serving.admission import Admission
from sealserve.serving.catalog import Catalog, ModelSpec
from sealserve.serving.config import All, LifeConfig, ModelConfig
from sealserve.serving.server import Server
from tests.serving.conftest import on_free_ports
from tests.serving.fakes import FakeRuntime, make_versions


@pytest.fixture
def signing(tmp_path: Path) -> Signing:
    return Signing.load(make_signing_key(tmp_path / "signer")[0])


@pytest.fixture
def signers(signing: Signing, tmp_path: Path) -> Path:
    return tmp_path / "signer" / "model-signer.pub"


@pytest.fixture
def base(tmp_path: Path, signing: Signing) -> Path:
    """Two versions; the first is signed."""
    base = make_versions(tmp_path / "models" / "m", 1, 2)
    for version in ("1", "2"):
        (base / version / "weights").write_bytes(version.encode())
    sign_model(base / "1", signing)
    return base


class World:
    """A catalog over fake models that admits what is signed."""

    def __init__(self, base: Path, signers: Path | None) -> None:
        self.output = io.StringIO()
        log = make_log(self.output)
        self.runtime = FakeRuntime()
        self.catalog = Catalog(
            [ModelConfig("m", base, All())],
            self.runtime,
            log,
            LifeConfig(retry_seconds=0),
            admit=Admission(signers, log).decide,
        )
        self.catalog.load()

    def states(self) -> dict[int, tuple[str, str]]:
        found = self.catalog.statuses(ModelSpec("m"))
        return {each.version: (each.state.name, each.code.name) for each in found}

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.output.getvalue().splitlines())
        return [line for line in lines if line["event"] == event]


def test_the_signed_version_is_served_and_the_other_ends_with_its_own_error(
    base: Path, signers: Path
) -> None:
    world = World(base, signers)
    assert world.states() == {1: ("AVAILABLE", "OK"), 2: ("END", "PERMISSION_DENIED")}
    assert world.runtime.loads == ["m/1"], "what is not admitted is not even loaded"
    (failed,), (signed,) = world.lines("model_failed"), world.lines("model_signed")
    assert (failed["version"], failed["code"]) == (2, "provenance.signature_missing")
    assert failed["tried_again"] is False
    assert (signed["version"], signed["files"]) == (1, 1)
    assert signed["signer"] == load_trust(signers).names[0]
    world.catalog.close()


def test_a_version_is_looked_at_again_when_its_signature_has_come_or_changed(
    base: Path, signers: Path, signing: Signing
) -> None:
    world = World(base, signers)
    world.catalog.refresh()
    assert len(world.lines("model_failed")) == 1
    (base / "2" / SIGNATURE_NAME).write_bytes(b"junk")
    world.catalog.refresh()
    assert world.lines("model_failed")[-1]["code"] == "provenance.signature_malformed"
    sign_model(base / "2", signing, replace=True)
    world.catalog.refresh()
    assert world.states()[2] == ("AVAILABLE", "OK")
    world.catalog.close()


def test_where_nothing_is_asked_for_nothing_is_checked(base: Path) -> None:
    world = World(base, None)
    assert {state for state, _ in world.states().values()} == {"AVAILABLE"}
    assert not world.lines("model_signed")
    world.catalog.close()


def test_without_the_library_a_server_that_must_check_does_not_start(
    base: Path, signers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> object:
        return None if name == "OpenSSL" else find_spec(name)

    monkeypatch.setattr("sealserve.provenance.library.find_spec", without)
    with pytest.raises(Unavailable) as caught:
        World(base, signers)
    assert caught.value.code == "provenance.extra_missing"
    assert caught.value.hint == "pip install 'sealserve[provenance]'"


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "provenance.trust_malformed"), (b"x" * 20_000, "file.too_large")],
)
def test_a_server_that_trusts_nobody_does_not_start(
    content: bytes, code: str, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "signers").write_bytes(content)
    with pytest.raises(InputError) as caught:
        World(base, tmp_path / "signers")
    assert caught.value.code == code


def test_the_flag_reaches_the_load(tmp_path: Path, signers: Path, signing: Signing) -> None:
    """A whole server, with OpenVINO: the signed version of a real model answers."""
    builder = GraphBuilder()
    builder.placeholder("input", [None, 4])
    builder.dense("dense", "input", np.eye(4), np.zeros(4))
    builder.softmax("predict", "dense")
    graph = tmp_path / "graph.pb"
    graph.write_bytes(builder.graph.SerializeToString())
    for version in (1, 2):
        import_model(graph, tmp_path / "models", name="m", version=version)
    sign_model(tmp_path / "models" / "m" / "1", signing)
    output = io.StringIO()
    common = [
        "--model_name=m", f"--model_base_path={tmp_path / 'models' / 'm'}",
        "--insecure", "--bind_address=127.0.0.1", "--file_system_poll_wait_seconds=0",
    ]  # fmt: skip
    config = on_free_ports(flags.parse([*common, f"--model_provenance={signers}"]))
    server = Server(config, make_log(output))
    server.start()
    try:
        (failed,) = [each for each in map(json.loads, output.getvalue().splitlines())
                     if each["event"] == "model_failed"]  # fmt: skip
        assert (failed["version"], failed["code"]) == (2, "provenance.signature_missing")
        sign_model(tmp_path / "models" / "m" / "2", signing)
    finally:
        server.stop(0)
    output.truncate(0)
    server = Server(config, make_log(output))
    server.start()
    server.stop(0)
    assert '"model_signed"' in output.getvalue()
    assert '"model_available"' in output.getvalue()
