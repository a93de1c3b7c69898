"""The error tree."""

from __future__ import annotations

import pytest

from sealserve import errors


@pytest.mark.parametrize("code", ["", "x", "Tcb.out", "tcb.", "tcb out", "tcb.out-of-date"])
def test_a_malformed_code_is_a_bug(code: str) -> None:
    with pytest.raises(ValueError, match="not an error code"):
        errors.InputError(code, "message")


def test_an_error_reads_as_one_line_with_place_hint_and_code() -> None:
    error = errors.Refused("quote.too_large", "70000 bytes", where="q.bin", hint="cut it")
    assert str(error) == "q.bin: 70000 bytes (cut it) [quote.too_large]"
    assert error.to_dict() == {
        "code": "quote.too_large",
        "message": "70000 bytes",
        "where": "q.bin",
        "hint": "cut it",
    }


def test_the_class_decides_the_exit_status() -> None:
    statuses = {
        errors.InputError: 2,
        errors.Refused: 3,
        errors.Unavailable: 4,
        errors.InternalError: 70,
    }
    assert {kind: kind.exit_status for kind in statuses} == statuses
