"""ONNX import: what is read, what is brought along, and what is not let in."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.model.describe import describe
from sealserve.model.importer import import_model
from sealserve.model.onnx_model import parse_onnx, read_onnx
from tests.model.conftest import run_openvino
from tests.onnx_files import GIVEN, WANTED, WEIGHTS, onnx_bytes


def file(tmp_path: Path, content: bytes, name: str = "net.onnx") -> Path:
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    path = source / name
    path.write_bytes(content)
    return path


def test_an_onnx_model_becomes_a_version(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes())
    imported = import_model(source, tmp_path / "models", name="net", version=3)
    assert imported.path == tmp_path / "models" / "net" / "3"
    assert [path.name for path in imported.path.iterdir()] == ["model.onnx"]
    (signature,) = imported.signatures
    assert str(signature.inputs[0]) == "x: DT_FLOAT [?, 4] (x)"
    assert str(signature.outputs[0]) == "y: DT_FLOAT [?, 2] (y)"
    assert imported.notes == ("operator sets: ai.onnx 17",)
    assert describe(imported.path) == describe(source) == imported.signatures
    answer = run_openvino(imported.path / "model.onnx", {"x": GIVEN})
    np.testing.assert_allclose(answer["y"], WANTED, rtol=1e-6)


def test_external_data_is_brought_along_under_its_name(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes("parts/weights.bin"))
    (source.parent / "parts").mkdir()
    (source.parent / "parts" / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (source.parent / "parts" / "other").write_bytes(b"nobody asked for this")
    imported = import_model(source, tmp_path / "models", name="net")
    brought = {str(path.relative_to(imported.path)) for path in imported.path.rglob("*")}
    assert brought == {"model.onnx", "parts", "parts/weights.bin"}
    assert "weights in parts/weights.bin" in imported.notes
    answer = run_openvino(imported.path / "model.onnx", {"x": GIVEN})
    np.testing.assert_allclose(answer["y"], WANTED, rtol=1e-6)


def test_a_fixed_first_dimension_is_told(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes(rows=1))
    notes = import_model(source, tmp_path / "models", name="net").notes
    assert "takes exactly 1 at a time" in notes[1]


def test_a_name_with_a_port_is_called_as_servers_call_it(tmp_path: Path) -> None:
    (signature,) = describe(file(tmp_path, onnx_bytes(input_name=b"x:0")))
    assert str(signature.inputs[0]) == "x: DT_FLOAT [?, 4] (x:0)"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "..", "", ".", "a\\b", "link.bin",
     "linked/weights.bin", "absent.bin", "directory", "model.onnx", "x" * 2000],
)  # fmt: skip
def test_external_data_from_elsewhere_is_refused(
    tmp_path: Path, location: str, nested: bool
) -> None:
    source = file(tmp_path, onnx_bytes(location, nested=nested))
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (source.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    (source.parent / "linked").symlink_to(tmp_path)
    (source.parent / "directory").mkdir()
    with pytest.raises(InputError) as caught:
        import_model(source, tmp_path / "models", name="net")
    assert caught.value.code == "onnx.external_data"
    assert not (tmp_path / "models").exists()


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes("w.bin"))
    (source.parent / "w.bin").write_bytes(b"short")
    with pytest.raises(InputError) as caught:
        import_model(source, tmp_path / "models", name="net")
    assert caught.value.code == "onnx.unsupported"
    assert not (tmp_path / "models").exists()


def test_an_operator_that_the_runtime_has_not_is_named(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes(activation=b"OpOfTomorrow", domain=b"mine"))
    assert read_onnx(source).operators == (("ai.onnx", 17), ("mine", 1))
    with pytest.raises(InputError) as caught:
        import_model(source, tmp_path / "models", name="net")
    assert caught.value.code == "onnx.unsupported"
    assert "OpOfTomorrow" in caught.value.message


@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(64), onnx_bytes()[:40]])
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        import_model(file(tmp_path, content), tmp_path / "models", name="net")
    assert caught.value.code == "onnx.malformed"


def test_a_signature_cannot_be_given(tmp_path: Path) -> None:
    source = file(tmp_path, onnx_bytes())
    with pytest.raises(InputError) as caught:
        import_model(source, tmp_path / "models", name="net", outputs=["y"])
    assert caught.value.code == "model.signature_fixed"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_file_gives_typed_errors_and_no_path_outside(data: st.DataObject) -> None:
    content = bytearray(onnx_bytes("weights.bin", nested=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SealserveError):
        for path in parse_onnx(bytes(content), "model").external:
            assert not path.is_absolute()
            assert ".." not in path.parts
            assert path != PurePosixPath()
