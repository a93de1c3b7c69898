"""Models that are damaged: told so, each for itself, and never computed with.

OpenVINO by itself computes with damaged weights, and a damaged index of a checkpoint takes
its whole process down.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.checkpoint import check_variables, entries
from sealserve.serving.runtimes.choice import ChoosingRuntime
from tests.serving.conftest import Running, start_server
from tests.soak import times

INDEX = Path("variables/variables.index")
DATA = Path("variables/variables.data-00000-of-00001")
PB = Path("saved_model.pb")


def change(file: Path, how: Callable[[bytearray], bytes | bytearray | None]) -> None:
    content = bytearray(file.read_bytes())
    changed = how(content)
    file.write_bytes(content if changed is None else changed)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


def fill(content: bytearray) -> None:
    content[40:72] = b"\xff" * 32


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no_graph": lambda place: change(place / PB, lambda _: b""),
    "half_a_graph": lambda place: change(place / PB, lambda raw: raw[: len(raw) // 2]),
    "another_graph": lambda place: change(place / PB, lambda raw: bytes(reversed(raw))),
    "no_variables": lambda place: shutil.rmtree(place / "variables"),
    "no_index": lambda place: (place / INDEX).unlink(),
    "a_filled_index": lambda place: change(place / INDEX, fill),  # OpenVINO's process dies
    "half_an_index": lambda place: change(place / INDEX, lambda raw: raw[: len(raw) // 2]),
    "no_data": lambda place: (place / DATA).unlink(),
    "empty_data": lambda place: change(place / DATA, lambda _: b""),
    "half_the_data": lambda place: change(place / DATA, lambda raw: raw[: len(raw) // 2]),
    "one_bit_of_the_data": lambda place: change(place / DATA, flip),  # OpenVINO computes with it
}


@pytest.fixture(scope="module")
def damaged(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a good model, and of damaged copies of it."""
    place = tmp_path_factory.mktemp("damaged")
    shutil.copytree(models / "affine" / "1", place / "good" / "1")
    for name, damage in DAMAGES.items():
        shutil.copytree(models / "affine" / "1", place / name / "1")
        damage(place / name / "1")
    # And a version of the good one is damaged, which the other one must outlive.
    shutil.copytree(place / "one_bit_of_the_data" / "1", place / "good" / "2")
    every = "model_version_policy { all {} }"
    listed = " ".join(
        f'config {{ name: "{name}" base_path: "{place / name}" {every} }}'
        for name in ("good", *DAMAGES)
    )
    (place / "models.config").write_text(f"model_config_list {{ {listed} }}")
    running = start_server(place, place, "--tensorflow_runtime=off")
    yield running
    running.server.stop(1)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_ends_alone_with_its_error(damaged: Running, name: str) -> None:
    status, answer = damaged.rest("GET", f"/v1/models/{name}")
    assert status == 200
    (version,) = answer["model_version_status"]
    assert version["state"] == "END"
    assert version["status"]["error_code"] != "OK"
    assert version["status"]["error_message"]
    status, answer = damaged.rest("POST", f"/v1/models/{name}:predict", {"instances": [1]})
    assert (status, answer) == (
        404,
        {"error": f"Servable not found for request: Latest({name})"},
    )


def test_the_others_serve_on(damaged: Running) -> None:
    assert damaged.rest("GET", "/v1/health/ready") == (200, {"ready": True})
    asked = {"instances": [1]}
    assert damaged.rest("POST", "/v1/models/good:predict", asked) == (200, {"predictions": [5.0]})
    assert damaged.rest("POST", "/v1/models/good/versions/2:predict", asked)[0] == 404
    _, answer = damaged.rest("GET", "/v1/models/good/versions/2")
    assert "variables are damaged" in answer["model_version_status"][0]["status"]["error_message"]


def test_every_model_of_tensorflows_has_the_checksums_that_are_looked_for(models: Path) -> None:
    indices = sorted(models.rglob("variables.index"))
    assert len(indices) >= 20
    for index in indices:
        check_variables(index.parent.parent)


def test_no_change_of_variables_goes_unnoticed(models: Path, tmp_path: Path) -> None:
    """But of those few bytes of an index that say nothing."""
    generator = random.Random(5)
    whole = {file: (models / "small" / "1" / file).read_bytes() for file in (INDEX, DATA)}
    unnoticed = 0
    for turn in range(times(5000, 300)):
        place = tmp_path / str(turn % 2)
        (place / "variables").mkdir(parents=True, exist_ok=True)
        damaged = generator.choice((INDEX, DATA))
        for file, content in whole.items():
            (place / file).write_bytes(content)
        content = bytearray(whole[damaged])
        at = generator.randrange(len(content))
        if turn % 5 == 0:
            del content[at:]
        else:
            content[at : at + generator.choice((1, 64))] = generator.randbytes(1)
        (place / damaged).write_bytes(content)
        if code_of(place) is None:
            unnoticed += content != whole[damaged]
            same = damaged == DATA and content == whole[DATA]
            assert same or list(entries(bytes(content))) == list(entries(whole[INDEX]))
        else:
            assert code_of(place) == "servable.variables_damaged"
    assert unnoticed < times(5000, 300) / 10


def code_of(place: Path) -> str | None:
    try:
        check_variables(place)
    except InputError as error:
        return error.code
    return None


@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_table_are_refused(junk: bytes, with_an_end: bool) -> None:
    raw = junk + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" if with_an_end else junk
    with contextlib.suppress(ValueError, IndexError, struct.error):
        list(entries(raw))


def test_a_damaged_tensorflow_lite_file_is_refused_with_a_typed_error(
    models: Path, tmp_path: Path
) -> None:
    """Its reader held the mapped file open: closing it was the error that was told."""
    content = (models / "lite" / "1" / "model.tflite").read_bytes()
    refused = 0
    for at in range(0, len(content) - 4, times(4, 40)):
        changed = content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :]
        (tmp_path / "model.tflite").write_bytes(changed)
        try:
            runtime = ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO()))
            runtime.load(tmp_path).close()
        except SealserveError:
            refused += 1
    assert refused
