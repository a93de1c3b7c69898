"""The guest as a whole: what stands before its quotes and registers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sealserve.errors import Refused, Unavailable
from sealserve.tdx.evidence import TdxEvidence
from sealserve.tdx.guest import TdxGuest, read_boot_id
from sealserve.tdx.quote import parse_quote
from tests.tdx.fake_kernel import fake_kernel

DATA = bytes(64)
USES: list[Callable[[TdxGuest], object]] = [
    lambda guest: guest.simulated,
    lambda guest: guest.quote(DATA),
    lambda guest: guest.read_rtmr(3),
    lambda guest: guest.read_mrtd(),
    lambda guest: guest.extend_rtmr3(bytes(48)),
]


class Elsewhere:
    """A provider that is neither configfs nor a simulation."""

    name = "elsewhere"
    simulated = False

    def collect(self, report_data: bytes) -> TdxEvidence:
        return TdxEvidence(b"quote for " + report_data)


@pytest.mark.parametrize("use", USES)
def test_simulation_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[TdxGuest], object]
) -> None:
    with fake_kernel(tmp_path, monkeypatch) as kernel:
        kernel.provider = [b"tdx_guest_SIMULATION\n"]
        with pytest.raises(Refused) as caught:
            use(TdxGuest(tmp_path, sleep=lambda _: None))
        assert caught.value.code == "tdx.simulation_denied"
        allowed = TdxGuest(tmp_path, allow_simulation=True)
        assert allowed.simulated is True
        assert parse_quote(allowed.quote(DATA)).report.report_data == DATA


@pytest.mark.parametrize("use", USES)
def test_a_machine_without_tdx_is_told_what_it_lacks(
    tmp_path: Path, use: Callable[[TdxGuest], object]
) -> None:
    with pytest.raises(Unavailable) as caught:
        use(TdxGuest(tmp_path))
    assert caught.value.code == "tdx.no_configfs"


def test_quotes_come_by_the_provider_that_is_given(tmp_path: Path) -> None:
    guest = TdxGuest(tmp_path, provider=Elsewhere())
    assert guest.simulated is False
    assert guest.quote(DATA) == b"quote for " + DATA
    with pytest.raises(Unavailable) as caught:
        guest.read_rtmr(3)
    assert caught.value.code == "tdx.no_rtmr"


def test_the_boot_id_is_16_bytes_and_stays() -> None:
    assert len(read_boot_id()) == 16
    assert read_boot_id() == read_boot_id()


@pytest.mark.parametrize("content", [None, "", "not a uuid"])
def test_no_boot_id(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "boot_id"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unavailable) as caught:
        read_boot_id(path)
    assert caught.value.code == "tdx.no_boot_id"
