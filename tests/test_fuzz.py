"""The fuzz targets are alive, and both what runs them and what judges them can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import engines, onnx_reader, run, serving_files
from fuzz.targets import TARGETS, Target, feed

from sealserve.errors import InputError, InternalError
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import bundle_pb2
from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


PATCHED = ("verifier", "verifier-collateral", "tls-certificate")


@pytest.fixture(autouse=True, scope="module")
def _no_reader_is_left() -> Iterator[None]:
    """It once was taken for a child of the volume that a later test had mounted."""
    yield
    onnx_reader.end()


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_accepts_its_first_seed_and_refuses_junk(name: str) -> None:
    """A target that refuses everything would find nothing behind the door."""
    target = TARGETS[name]
    seeds = target.seeds()
    assert feed(target, seeds[0])
    assert all(len(seed) <= target.max_bytes for seed in seeds)
    if name not in PATCHED:  # there any input is a patch of something good
        assert not feed(target, b"\xff\x00junk")


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_cares_about_a_cut(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        for end in range(0, len(seed), max(1, len(seed) // 50)):
            feed(target, seed[:end])


def shards(count: int, **entry: int) -> bytes:
    """An index of variables in so many files, with one entry."""
    header = bundle_pb2.BundleHeaderProto(num_shards=count).SerializeToString()
    one = bundle_pb2.BundleEntryProto(crc32c=0x07070707, **entry)  # type: ignore[arg-type]
    return b"\2" + header + b"\0\0" + one.SerializeToString()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ssl-config", b'server_key: "a\0b" server_cert: "c"'),
        ("command-line", b"--model_base_path=/m\0--grpc_channel_arguments=a=--1"),
        ("prediction-log", api_pb2.PredictionLog(multi_inference_log={}).SerializeToString()),
        # Each file was looked for among all entries: two thousand million times nothing.
        (
            "variables-index",
            b"\2" + bundle_pb2.BundleHeaderProto(num_shards=2**31 - 1).SerializeToString(),
        ),
        ("variables-index", shards(2, dtype=1, size=4, shard_id=2)),
        ("variables-index", shards(2, dtype=1, size=4, shard_id=-1)),
    ],
)
def test_what_once_was_a_finding(name: str, data: bytes) -> None:
    feed(TARGETS[name], data)


def test_strings_of_a_checkpoint_take_no_more_memory_than_their_file_has(tmp_path: Path) -> None:
    raw = shards(1, dtype=7, size=2**62)
    with pytest.raises(InputError):
        TARGETS["variables-index"].run(raw)
    place = serving_files._place() / "variables"
    (place / "variables.data-00000-of-00001").write_bytes(b"\1a")
    with pytest.raises(InputError, match="another checksum"):
        TARGETS["variables-index"].run(raw)
    (place / "variables.data-00000-of-00001").unlink()


def raising(error: BaseException) -> Target:
    def fail(data: bytes) -> None:
        if b"\x80" in data:
            raise error

    return Target(fail, lambda: [b"seed"])


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ValueError("untyped"), True),
        (KeyError("k"), True),
        (AssertionError("a broken promise"), True),
        (InternalError("internal.unexpected", "ours"), True),
        (RecursionError(), True),
        (engines.TooSlow(), True),
        (InputError("quote.malformed", "typed"), False),
    ],
)
def test_what_counts_as_a_finding(error: BaseException, found: bool) -> None:
    if found:
        with pytest.raises(type(error)):
            feed(raising(error), b"\x80")
    else:
        assert feed(raising(error), b"\x80") is False


BAD_TARGETS = """
import fuzz.targets as t
import time
def bug(data):
    if len(data) > 3 and data[0] == 0x80:
        raise KeyError("a bug")
def slow(data):
    time.sleep(60)
def greedy(data):
    bytearray(1 << 40)
for name, run in (("bug", bug), ("slow", slow), ("greedy", greedy)):
    t.TARGETS[name] = t.Target(run, lambda: [b"seed"])
import fuzz.engines
fuzz.engines.SECONDS_PER_INPUT = 1
import fuzz.one
fuzz.one.main()
"""


@pytest.mark.parametrize(
    ("name", "word"), [("bug", "KeyError"), ("slow", "TooSlow"), ("greedy", "MemoryError")]
)
def test_the_hypothesis_engine_finds_bugs_slowness_and_greed(
    tmp_path: Path, name: str, word: str
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", BAD_TARGETS, name, "hypothesis", "20", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert found.returncode != 0
    assert word in found.stderr
    kept = (tmp_path / "input").read_bytes()
    if name == "bug":
        assert kept == b"\x80\0\0\0"  # as small as it gets


@pytest.fixture(autouse=True)
def own_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_WORLD", "overwritten below, and undone after the test")
    monkeypatch.delenv("FUZZ_WORLD")


def test_a_run_and_its_repetition_have_the_same_keys(tmp_path: Path) -> None:
    code = "import fuzz.world as w, sys; sys.stdout.write(w.world().quotes[0].hex())"
    environment = {**ENVIRONMENT, "FUZZ_WORLD": str(tmp_path / "made" / "world.json")}
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_the_command_runs_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cbor", "--engine", "hypothesis", "--seconds", "1", "--artifacts", str(tmp_path)]
    assert run.main(arguments) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["cbor", "ok"]
    assert int(words[2]) > 0
    assert {path.name for path in tmp_path.iterdir()} <= {"world.json"}  # nothing was found


def test_an_engine_that_does_nothing_is_a_finding(tmp_path: Path) -> None:
    outcome = run.fuzz("no such target", "hypothesis", 1, tmp_path)
    assert "KeyError" in outcome.finding
    assert outcome.inputs == 0


def test_one_input_is_fed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"\xff")
    assert run.main(["cbor", "--input", str(file), "--artifacts", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "cbor: refused\n"
    with pytest.raises(SystemExit):
        run.main(["nonsense"])


@pytest.mark.parametrize(
    "text",
    [
        b"a: " + b"[" * 2000,
        b"? " * 3000,
        b"- " * 3000,
        b"[" * 4000,
        b"a: !!int " + b"9" * 4000,
        b"a: " + b"1:" * 1900 + b"1",
        b"a: !!float " + b"9" * 4000,
        b"a: 2001-99-99",
        b"a: " + b"1_" * 2000,
    ],
)
def test_policies_that_are_slow_to_read_elsewhere(text: bytes) -> None:
    assert feed(TARGETS["policy"], text) is False
