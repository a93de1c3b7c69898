"""Import: what it writes, what it refuses, and that it leaves no halves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.model import importer, signature
from sealserve.model.describe import describe
from sealserve.model.graphdef import GraphBuilder, shape_proto
from sealserve.model.importer import import_model
from sealserve.provenance import (
    SIGNATURE_NAME,
    Signing,
    make_signing_key,
    sign_model,
    verify_model,
)
from sealserve.wire import graphs
from sealserve.wire.graphs import spell_out_scalars
from sealserve.wire.tensorflow import graph_pb2 as pb
from tests.model.graphs import CASES, FLOAT


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A frozen graph: x -> relu -> y, and a second end, z."""
    builder = GraphBuilder()
    builder.placeholder("x", [None, 3])
    builder.relu("hidden", "x")
    builder.softmax("y", "hidden")
    builder.placeholder("extra", [None, 3])
    builder.add("z", "hidden", "extra")
    path = tmp_path / "frozen.pb"
    path.write_bytes(builder.graph.SerializeToString())
    return path


def refuse(
    code: str, source: Path, out: Path, kind: type[SealserveError] = InputError, **options: Any
) -> SealserveError:
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(kind) as caught:
        import_model(source, out, **{"name": "m", **options})
    assert caught.value.code == code
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    return caught.value


def test_a_version_directory_is_what_a_server_loads(frozen: Path, tmp_path: Path) -> None:
    imported = import_model(frozen, tmp_path / "models", name="relu", version=3, outputs=["y"])
    path = tmp_path / "models" / "relu" / "3"
    assert imported.path == path
    assert sorted(entry.name for entry in path.iterdir()) == ["saved_model.pb", "variables"]
    assert [entry.name for entry in path.parent.iterdir()] == ["3"]
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / "saved_model.pb").stat().st_mode & 0o777 == 0o644

    model = pb.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (meta,) = model.meta_graphs
    assert model.saved_model_schema_version == 1
    assert list(meta.meta_info_def.tags) == ["serve"]
    assert [node.name for node in meta.graph_def.node] == ["x", "hidden", "y"]
    serving = meta.signature_def["serving_default"]
    assert serving.method_name == "tensorflow/serving/predict"
    assert serving.inputs["x"].name == "x:0"
    assert [dim.size for dim in serving.outputs["y"].tensor_shape.dim] == [-1, 3]


def test_inputs_and_outputs_are_found_when_not_given(frozen: Path, tmp_path: Path) -> None:
    (found,) = import_model(frozen, tmp_path / "models", name="m").signatures
    assert [spec.key for spec in found.inputs] == ["extra", "x"]
    assert [spec.key for spec in found.outputs] == ["y", "z"]


def test_the_same_import_gives_the_same_bytes(frozen: Path, tmp_path: Path) -> None:
    files = [
        (import_model(frozen, tmp_path / base, name="m").path / "saved_model.pb").read_bytes()
        for base in ("a", "b")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"name": ""}, "model.name_invalid"),
        ({"name": "../up"}, "model.name_invalid"),
        ({"name": ".hidden"}, "model.name_invalid"),
        ({"name": "a\0b"}, "model.name_invalid"),
        ({"version": -1}, "model.version_invalid"),
        ({"version": 2**63}, "model.version_invalid"),
        ({"outputs": ["nowhere"]}, "graph.no_such_node"),
        ({"outputs": ["y:x"]}, "graph.tensor_invalid"),
        ({"outputs": ["=y:0:1"]}, "graph.tensor_invalid"),
        ({"outputs": ["y", "y=z"]}, "graph.tensor_invalid"),
        ({"outputs": ["y:4"]}, "graph.unsupported"),
        ({"inputs": ["hidden"]}, "graph.not_a_placeholder"),
        ({"inputs": ["x"]}, "graph.input_missing"),
        ({"inputs": ["extra"], "outputs": ["y"]}, "graph.no_such_node"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    frozen: Path, tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    refuse(code, frozen, tmp_path / "models", **options)


def test_what_the_runtime_cannot_run_is_said_at_import(tmp_path: Path) -> None:
    builder = GraphBuilder()
    builder.placeholder("x", [None, 3])
    builder.node("OpOfTomorrow", "y", ["x"], T=FLOAT)
    path = tmp_path / "frozen.pb"
    path.write_bytes(builder.graph.SerializeToString())
    error = refuse("graph.unsupported", path, tmp_path / "models")
    assert "OpOfTomorrow" in error.message
    assert "\n" not in error.message


def test_a_placeholder_with_a_default_stays_an_input(tmp_path: Path) -> None:
    """Left to itself, OpenVINO folds it away, and the model ignores what clients send."""
    builder = GraphBuilder()
    builder.const("default", np.ones(3, np.float32))
    builder.node("PlaceholderWithDefault", "x", ["default"], dtype=FLOAT, shape=shape_proto([3]))
    builder.relu("y", "x")
    path = tmp_path / "frozen.pb"
    path.write_bytes(builder.graph.SerializeToString())
    (found,) = import_model(path, tmp_path / "models", name="m").signatures
    assert [str(spec) for spec in found.inputs] == ["x: DT_FLOAT [3] (x:0)"]


def test_a_graph_without_input_or_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "frozen.pb"
    builder = GraphBuilder()
    builder.const("c", np.ones(3, np.float32))
    path.write_bytes(builder.graph.SerializeToString())
    refuse("graph.no_outputs", path, tmp_path / "models")
    builder.relu("y", "c")
    path.write_bytes(builder.graph.SerializeToString())
    refuse("graph.no_inputs", path, tmp_path / "models")


def test_files_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frozen.pb"
    path.write_bytes(b"\x00garbage")
    refuse("graph.malformed", path, tmp_path / "models")
    refuse("file.unreadable", tmp_path / "none.pb", tmp_path / "models", kind=Unavailable)


def test_a_version_is_never_overwritten(frozen: Path, tmp_path: Path) -> None:
    import_model(frozen, tmp_path / "models", name="m")
    refuse("file.exists", frozen, tmp_path / "models")
    # 001 is the same version to a server.
    import_model(frozen, tmp_path / "models", name="n", version=2)
    (tmp_path / "models/n/2").rename(tmp_path / "models/n/002")
    refuse("file.exists", frozen, tmp_path / "models", name="n", version=2)


def test_a_failure_half_way_leaves_nothing(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(root: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importer, "_make_durable", full)
    error = refuse("file.unwritable", frozen, tmp_path / "models", kind=Unavailable)
    assert "No space left" in error.message


def test_a_base_that_is_a_file_is_reported(frozen: Path) -> None:
    with pytest.raises(Unavailable, match=r"file\.unwritable"):
        import_model(frozen, frozen, name="m")


def test_protobufs_limit_is_said_clearly(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPH_BYTES", 10)
    assert "2 GiB" in str(refuse("file.too_large", frozen, tmp_path / "models").hint)
    size = frozen.stat().st_size
    monkeypatch.setattr(graphs, "MAX_GRAPH_BYTES", size)
    monkeypatch.setattr(importer, "MAX_GRAPH_BYTES", size)  # room for the graph alone
    error = refuse("file.too_large", frozen, tmp_path / "models")
    assert "signature" in error.message
    assert "2 GiB" in str(error.hint)


# --- SavedModels --------------------------------------------------------------


@pytest.fixture
def saved(frozen: Path, tmp_path: Path) -> Path:
    path = import_model(frozen, tmp_path / "made", name="m").path
    (path / "assets").mkdir()
    (path / "assets" / "labels.txt").write_text("one\ntwo\n")
    return path


def test_a_saved_model_is_copied_with_its_assets(saved: Path, tmp_path: Path) -> None:
    imported = import_model(saved, tmp_path / "models", name="copy", version=9)
    assert (imported.path / "assets" / "labels.txt").read_text() == "one\ntwo\n"
    original = (saved / "saved_model.pb").read_bytes()
    assert (imported.path / "saved_model.pb").read_bytes() == original
    assert imported.rewritten == 0


def test_a_makers_signature_comes_along(saved: Path, tmp_path: Path) -> None:
    signing = Signing.load(make_signing_key(tmp_path / "signer")[0])
    sign_model(saved, signing)
    imported = import_model(saved, tmp_path / "models", name="copy")
    assert verify_model(imported.path, signing.trust).files == 2


def test_scalars_as_bytes_are_rewritten_in_a_copied_saved_model(
    saved: Path, tmp_path: Path
) -> None:
    file = saved / "saved_model.pb"
    model = pb.SavedModel.FromString(file.read_bytes())
    model.meta_graphs[0].graph_def.CopyFrom(CASES["scalar_bytes"]().graph)
    file.write_bytes(model.SerializeToString())
    (saved / SIGNATURE_NAME).write_text("the signature of what is rewritten now")
    imported = import_model(saved, tmp_path / "models", name="copy")
    assert imported.rewritten == 1
    assert not (imported.path / SIGNATURE_NAME).exists()
    copied = pb.SavedModel.FromString((imported.path / "saved_model.pb").read_bytes())
    assert spell_out_scalars(copied.meta_graphs[0].graph_def) == 0


def test_saved_models_that_cannot_be_served_are_refused(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    refuse("model.signature_fixed", saved, out, inputs=["x"])
    (saved / "assets" / "link").symlink_to("/etc/hostname")
    refuse("savedmodel.not_plain", saved, out)
    (saved / "assets" / "link").unlink()

    file = saved / "saved_model.pb"
    model = pb.SavedModel.FromString(file.read_bytes())
    del model.meta_graphs[0].meta_info_def.tags[:]
    file.write_bytes(model.SerializeToString())
    assert "tag 'serve'" in refuse("savedmodel.malformed", saved, out).message
    model.meta_graphs[0].meta_info_def.tags.append("serve")
    model.meta_graphs[0].signature_def.clear()
    file.write_bytes(model.SerializeToString())
    assert "no signature" in refuse("savedmodel.malformed", saved, out).message
    file.write_bytes(b"\x00")
    refuse("savedmodel.malformed", saved, out)
    file.unlink()
    refuse("file.unreadable", saved, out, kind=Unavailable)


def test_how_much_is_copied_is_limited(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_MAX_COPY_FILES", 1)
    refuse("savedmodel.too_large", saved, tmp_path / "models")


# --- What a model takes and gives ---------------------------------------------


def test_a_frozen_graph_shows_its_ends(frozen: Path) -> None:
    (shown,) = describe(frozen)
    assert [str(spec) for spec in shown.inputs] == [
        "x: DT_FLOAT [?, 3] (x:0)",
        "extra: DT_FLOAT [?, 3] (extra:0)",
    ]
    assert [spec.tensor for spec in shown.outputs] == ["y:0", "z:0"]
    assert shown.outputs[0].shape is None


def test_signatures_survive_the_round_trip(saved: Path) -> None:
    (shown,) = describe(saved)
    assert signature.Signature.from_proto(shown.name, shown.to_proto()) == shown
    assert shown.to_dict()["inputs"][1]["shape"] == [None, 3]
    assert "in   x: DT_FLOAT [?, 3] (x:0)" in str(shown)


# --- The house ----------------------------------------------------------------


def test_no_tensorflow_and_no_torch(frozen: Path, tmp_path: Path) -> None:
    script = f"""
import importlib.util, sys
from pathlib import Path
from sealserve.model.catalogue import built
from sealserve.model.importer import import_model
built("efficientnet-lite0").build()
import_model(Path({str(frozen)!r}), Path({str(tmp_path / "models")!r}), name="m")
for name in ("tensorflow", "torch", "keras"):
    assert name not in sys.modules, name
    assert importlib.util.find_spec(name) is None, name
"""
    subprocess.run([sys.executable, "-c", script], check=True)
