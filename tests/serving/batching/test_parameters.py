"""BatchingParameters: the fields, the defaults, and what is refused with which words."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.serving import flags
from sealserve.serving.batching.parameters import BatchingParameters, read_parameters

BASE = "--model_base_path=/models/m"
SPLIT = "enable_large_batch_splitting { value: true }"
OF_EIGHT = f"max_batch_size {{ value: 8 }} {SPLIT}"
CORES = len(os.sched_getaffinity(0))


def read(tmp_path: Path, text: str | bytes) -> BatchingParameters:
    file = tmp_path / "batching.pbtxt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_parameters(file)


def test_defaults_are_the_originals(tmp_path: Path) -> None:
    assert read(tmp_path, "") == BatchingParameters(
        max_batch_size=1000,
        batch_timeout_micros=0,
        max_enqueued_batches=10,
        num_batch_threads=CORES,
        thread_pool_name="batch_threads",
        allowed_batch_sizes=(),
        pad_variable_length_inputs=False,
        enable_large_batch_splitting=False,
        max_execution_batch_size=1000,
    )


def test_every_field_is_read(tmp_path: Path) -> None:
    given = read(
        tmp_path,
        """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 2500 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "pool" }
        allowed_batch_sizes: 8
        allowed_batch_sizes: [16, 32]
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 32 }
        """,
    )
    assert given == BatchingParameters(128, 2500, 1_000_000, 8, "pool", (8, 16, 32), True, True, 32)
    assert [given.filled_up(rows) for rows in (1, 8, 9, 32, 33)] == [8, 8, 16, 32, 33]
    assert given.batch_limit == 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size: 128", "Error parsing text-format"),
        ("max_bach_size { value: 1 }", "Error parsing text-format"),
        ("max_batch_size { value: 0 }", "max_batch_size must be within 1.."),
        ("max_batch_size { value: -1 }", "was -1"),
        ("max_batch_size { value: 99999999999 }", "was 99999999999"),
        ("batch_timeout_micros { value: -5 }", "batch_timeout_micros must be within 0.."),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be within 1.."),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: [1, 2]",
            "allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4",
        ),
        ("allowed_batch_sizes: [2, 2, 1000]", "must be monotonically increasing"),
        ("allowed_batch_sizes: [0, 1000]", "must be monotonically increasing"),
        (
            f"{OF_EIGHT} max_execution_batch_size {{ value: 4 }} allowed_batch_sizes: [1, 2]",
            "or to max_batch_size; last entry was 2; expected 4 or 8",
        ),
        (
            f"{OF_EIGHT} max_execution_batch_size {{ value: 9 }}",
            "greater than or equal to max_execution_batch_size",
        ),
        (
            SPLIT + " max_enqueued_batches { value: 0 }",
            "max_enqueued_batches must be within 1..",
        ),
        (b"\xff", "Error parsing text-format"),
    ],
)
def test_bad_parameters_have_one_code_and_the_originals_words(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert caught.value.code == "serve_config.batching"
    assert words in caught.value.message
    assert caught.value.where == str(tmp_path / "batching.pbtxt")


def test_a_queue_of_none_is_a_queue_of_one_as_in_the_original(tmp_path: Path) -> None:
    assert read(tmp_path, "max_enqueued_batches { value: 0 }").max_enqueued_batches == 1


@settings(max_examples=50)
@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    with contextlib.suppress(SealserveError):
        read(tmp_path_factory.mktemp("any"), text)


def test_the_flags(tmp_path: Path) -> None:
    assert flags.parse([BASE]).batching is None
    plain = flags.parse([BASE, "--enable_batching"])
    assert plain.batching is not None
    assert plain.batching.common.thread_pool_name == "model_server_batch_threads"
    assert not plain.batching.per_model
    assert plain.runtime.throughput
    # Requests keep their thread while they wait for others.
    assert (plain.grpc_threads, plain.rest_threads) == (128, 128)
    assert flags.parse([BASE]).grpc_threads == 4 * CORES
    file = tmp_path / "b.pbtxt"
    file.write_text("max_batch_size { value: 32 }")
    given = flags.parse([BASE, "--enable_batching", f"--batching_parameters_file={file}",
                         "--enable_per_model_batching_parameters"])  # fmt: skip
    assert given.batching is not None
    assert given.batching.common.max_batch_size == 32
    assert given.batching.common.thread_pool_name == "batch_threads"
    assert given.batching.per_model
    assert given.grpc_threads == max(64, 4 * CORES)
    with pytest.raises(Unavailable):
        flags.parse([BASE, "--enable_batching", f"--batching_parameters_file={file}x"])
    ignored = flags.parse([BASE, "--enable_per_model_batching_parameters"]).ignored
    assert [flag for flag, _ in ignored] == ["--enable_per_model_batching_parameters"]
