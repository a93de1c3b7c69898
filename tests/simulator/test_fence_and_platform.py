"""The simulator stays off real machines, and what it makes says what it is."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.cli.simulate import app
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.simulator import fence
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd, report_of
from sealserve.tdx import tpm
from sealserve.tdx.eventlog import extend
from sealserve.tdx.quote import parse_quote
from tests.simulated import NOW, platform
from tests.tdx.azure_guest import FakeVtpm

AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"  # as Microsoft documents it


@pytest.fixture
def machine(tmp_path: Path) -> fence.Machine:
    """One without TDX."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme hypervisor\n")
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    return fence.Machine(
        device=tmp_path / "tdx_guest",
        sysfs=tmp_path / "sys",
        cpuinfo=tmp_path / "cpuinfo",
        tpm=tmp_path / "tpmrm0",
    )


def refused(machine: fence.Machine) -> str:
    with pytest.raises(Refused) as caught:
        fence.require_no_tdx(machine)
    assert caught.value.code == "simulator.real_tdx"
    return caught.value.message


def test_a_machine_without_tdx_may_simulate(machine: fence.Machine) -> None:
    fence.require_no_tdx(machine)
    machine.cpuinfo.unlink()
    fence.require_no_tdx(machine)
    machine.tpm.touch()  # a TPM alone means nothing
    fence.require_no_tdx(machine)


@pytest.mark.parametrize("real", ["tdx_guest", "sys/kernel/config/tsm/report"])
def test_a_machine_with_an_evidence_provider_is_refused(
    machine: fence.Machine, tmp_path: Path, real: str
) -> None:
    (tmp_path / real).mkdir(parents=True)
    assert "evidence provider" in refused(machine)


def test_a_td_whose_driver_is_not_loaded_is_refused(machine: fence.Machine) -> None:
    machine.cpuinfo.write_text("flags\t\t: fpu tdx_guest_not\nmodel : tdx_guest\n")
    fence.require_no_tdx(machine)
    machine.cpuinfo.write_text("flags\t\t: fpu tdx_guest vme\n")
    assert "tdx_guest" in refused(machine)


def test_an_azure_confidential_guest_is_refused(
    machine: fence.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has neither device nor flag nor configfs-tsm: its paravisor keeps TDX to itself."""
    (machine.sysfs / "class/dmi/id/chassis_asset_tag").write_text(AZURE_CHASSIS + "\n")
    fence.require_no_tdx(machine)
    machine.tpm.write_bytes(b"")  # nothing that answers as a TPM does: it cannot be ruled out
    assert "cannot be seen" in refused(machine)
    vtpm = FakeVtpm()
    monkeypatch.setattr(tpm, "device_transmit", lambda _: vtpm)
    assert "paravisor" in refused(machine)
    vtpm.codes = [0x922]
    assert "cannot be seen" in refused(machine)
    vtpm.has_report = False
    fence.require_no_tdx(machine)


@pytest.mark.parametrize(
    "command",
    [
        ["platform", "x"],
        ["pccs", "--platform", "x"],
        ["td", "--platform", "x", "--mount", "y"],
        ["impostor", "--victim", "h:1", "--listen", "h:2"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_goes_round_the_fence(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def real(_: fence.Machine | None = None) -> None:
        raise Refused("simulator.real_tdx", "here")

    monkeypatch.setattr(fence, "require_no_tdx", real)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, Refused), result.output


def test_every_command_is_in_the_test_above() -> None:
    names = {
        each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands
    }
    assert names == {"platform", "pccs", "td", "impostor"}


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
