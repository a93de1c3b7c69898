"""Which way to evidence is taken, and what is said about it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx.detect import Choice, Devices, choice_of, find
from tests.tdx.fake_kernel import error, fake_kernel

AZURE_TAG = "7783-7084-3265-9085-8269-3286-77\n"


class Machine:
    """A machine with some of the devices."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root / "sys"
        self.devices = Devices(tdx=root / "tdx_guest", tpm=root / "tpmrm0")

    def has_dmi(self, name: str, text: str) -> None:
        directory = self.sysfs / "class/dmi/id"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)

    def find(
        self, choice: Choice = Choice.AUTO, *, allow_simulation: bool = False
    ) -> tuple[str, str]:
        found = find(choice, self.sysfs, allow_simulation=allow_simulation, devices=self.devices)
        return found.provider.name, found.reason


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_configfs_comes_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.devices.tdx.touch()
    with fake_kernel(machine.sysfs, monkeypatch):
        name, reason = machine.find()
    assert name == "configfs"
    assert "configfs-tsm has a TDX provider" in reason
    assert "Google" not in reason


def test_google_cloud_is_configfs_with_a_boot_log(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_dmi("product_name", "Google Compute Engine\n")
    with fake_kernel(machine.sysfs, monkeypatch):
        name, reason = machine.find()
    assert name == "configfs"
    assert "Google Cloud" in reason
    assert "CCEL" in reason


def test_the_device_comes_next(machine: Machine) -> None:
    machine.devices.tdx.touch()
    name, reason = machine.find()
    assert name == "qgs"
    assert "no configfs-tsm" in reason


def test_a_configfs_without_a_provider_is_passed_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.devices.tdx.touch()
    with fake_kernel(machine.sysfs, monkeypatch) as kernel:
        kernel.provider = [error(errno.ENXIO)]
        assert machine.find()[0] == "qgs"


def test_azure_is_known_by_chassis_and_tpm(machine: Machine) -> None:
    machine.has_dmi("chassis_asset_tag", AZURE_TAG)
    with pytest.raises(Unavailable):
        machine.find()
    machine.devices.tpm.touch()
    name, reason = machine.find()
    assert name == "azure"
    assert "tpmrm0" in reason


def test_a_tpm_alone_is_not_azure(machine: Machine) -> None:
    machine.devices.tpm.touch()
    machine.has_dmi("chassis_asset_tag", "none\n")
    with pytest.raises(Unavailable) as caught:
        machine.find()
    assert caught.value.code == "tdx.no_evidence"
    for way in ("configfs", "qgs", "azure"):
        assert f"{way}: " in caught.value.message


def test_another_tee_or_a_simulation_ends_the_search(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.devices.tdx.touch()
    with fake_kernel(machine.sysfs, monkeypatch) as kernel:
        kernel.provider = [b"sev_guest\n"]
        with pytest.raises(Refused) as caught:
            machine.find()
        assert caught.value.code == "tdx.provider"
        kernel.provider = [b"tdx_guest_SIMULATION\n"]
        with pytest.raises(Refused) as caught:
            machine.find()
        assert caught.value.code == "tdx.simulation_denied"
        assert machine.find(allow_simulation=True)[0] == "configfs"
        kernel.provider = [error(errno.EACCES)]
        with pytest.raises(Unavailable) as denied:
            machine.find()
        assert denied.value.code == "tdx.permission"


@pytest.mark.parametrize("choice", [Choice.CONFIGFS, Choice.QGS, Choice.AZURE])
def test_what_was_chosen_is_used_and_nothing_else(machine: Machine, choice: Choice) -> None:
    assert machine.find(choice) == (choice.value, "it was chosen")
    found = find(choice, machine.sysfs, devices=machine.devices)
    with pytest.raises(Unavailable) as caught:
        found.provider.collect(bytes(64))
    expected = {"configfs": "tdx.no_configfs", "qgs": "tdx.no_device", "azure": "tdx.tpm"}
    assert caught.value.code == expected[choice]


def test_choices_have_names() -> None:
    assert [choice_of(name) for name in ("auto", "configfs", "qgs", "azure")] == list(Choice)
    with pytest.raises(InputError) as caught:
        choice_of("sev")
    assert caught.value.code == "tdx.provider_unknown"
