"""The simulator stays off real machines, and what it makes says what it is."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.simulator import fence
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd, report_of
from sealserve.tdx.eventlog import extend
from sealserve.tdx.quote import parse_quote
from tests.simulated import NOW, platform


@pytest.mark.parametrize("real", ["device", "configfs"])
def test_a_real_tdx_guest_is_refused(tmp_path: Path, real: str) -> None:
    paths = {"device": tmp_path / "tdx_guest", "configfs": tmp_path / "report"}
    fence.require_no_tdx(**paths)
    paths[real].mkdir()
    with pytest.raises(Refused) as caught:
        fence.require_no_tdx(**paths)
    assert caught.value.code == "simulator.real_tdx"


def test_every_certificate_says_simulation() -> None:
    pki = platform().pki
    for signer in (pki.root, pki.pck_ca, pki.pck, pki.tcb_signer):
        assert "SIMULATION" in signer.certificate.subject.rfc4514_string()


def test_a_platform_survives_its_files(tmp_path: Path) -> None:
    made = SimulatedPlatform.create(tmp_path / "p", NOW)
    loaded = SimulatedPlatform.load(tmp_path / "p")
    for path in (tmp_path / "p").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    verifier = Verifier(Anchor.load(tmp_path / "p" / ANCHOR_FILE))
    collateral = Collateral.load(tmp_path / "p" / COLLATERAL_FILE)
    for owner in (made, loaded):
        verifier.verify(SoftwareTd(owner).quote(bytes(64)), collateral, NOW)


def test_a_platform_is_renewed_not_replaced(tmp_path: Path) -> None:
    SimulatedPlatform.create(tmp_path, NOW)
    with pytest.raises(InputError) as caught:
        SimulatedPlatform.create(tmp_path, NOW)
    assert caught.value.code == "file.exists"
    later = NOW + timedelta(days=40)
    renewed = SimulatedPlatform.create_or_renew(tmp_path, later)
    anchor = x509.load_der_x509_certificate((tmp_path / ANCHOR_FILE).read_bytes())
    assert anchor == renewed.pki.root.certificate
    collateral = Collateral.load(tmp_path / COLLATERAL_FILE)
    Verifier(Anchor.load(tmp_path / ANCHOR_FILE)).verify(
        SoftwareTd(renewed).quote(bytes(64)), collateral, later
    )


def test_platform_trouble_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as absent:
        SimulatedPlatform.load(tmp_path)
    assert absent.value.code == "file.unreadable"
    (tmp_path / "platform.json").write_text("{}")
    with pytest.raises(InputError) as broken:
        SimulatedPlatform.load(tmp_path)
    assert broken.value.code == "simulator.platform_malformed"
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable) as taken:
        SimulatedPlatform.create(tmp_path / "file" / "p", NOW)
    assert taken.value.code == "file.unwritable"


def test_firmware_decides_measurements() -> None:
    assert report_of("a") == report_of("a")
    assert report_of("a").mrtd != report_of("b").mrtd
    for register in ("rtmr0", "rtmr1", "rtmr2"):
        assert getattr(report_of("a"), register) != getattr(report_of("b"), register)
    assert report_of("a").rtmr3 == bytes(48)


def test_a_software_td_keeps_its_registers() -> None:
    td = SoftwareTd(platform())
    td.extend(3, b"d" * 48)
    quoted = parse_quote(td.quote(b"r" * 64)).report
    assert quoted.rtmr3 == extend(bytes(48), b"d" * 48)
    assert quoted.report_data == b"r" * 64
    with pytest.raises(InputError):
        td.quote(b"short")
