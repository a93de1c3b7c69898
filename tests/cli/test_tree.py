"""Every command there is: help with an example, JSON, and a clear no to bad input."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from sealserve.broker.directory import create
from sealserve.cli import main
from sealserve.cli.main import app
from sealserve.stopping import endings

ADMINISTRATION = {
    "broker", "secret", "resource", "policy", "collateral", "lease", "proposal", "audit",
}  # fmt: skip

NO_JSON = {
    "broker serve": "a service: its log is JSON",
    "guest up": "a service: its log is JSON",
    "simulate pccs": "a service: its ready line is JSON",
    "simulate td": "a service: its ready line is JSON",
    "simulate impostor": "a service: its ready line is JSON",
    "serve": "takes TensorFlow Serving's flags, and no others",
    "entrypoint": "takes the arguments of TensorFlow Serving's container",
    "policy schema": "its result is a JSON schema",
    "get-secret": "its result is the secret's bytes, and nothing else",
}

BAD: dict[str, tuple[str, int, str]] = {
    "broker init": ("DIR --name acme", 2, "broker.directory_exists"),
    "broker rekey": ("DIR --kek tpm", 2, "broker.config_invalid"),
    "broker backup": ("NOWHERE OUT", 4, "broker.directory_missing"),
    "broker restore": ("JUNK NEW", 2, "backup.malformed"),
    "broker serve": ("DIR --listen nowhere --collateral JUNK", 2, "address.malformed"),
    "broker status": ("NOWHERE", 4, "broker.directory_missing"),
    "broker admin-identity": ("../alice", 2, "principal.name_invalid"),
    "broker doctor": ("DIR --collateral JUNK", 2, "collateral.malformed"),
    "broker principal add": (
        "alice --certificate JUNK --broker DIR",
        2,
        "principal.certificate_unsuitable",
    ),
    "broker principal list": ("", 2, "admin.which_broker"),
    "broker principal remove": ("nobody --broker DIR", 3, "principal.unknown"),
    "secret put": ("s --policy JUNK --sealed-key JUNK --broker DIR", 2, "policy.malformed"),
    "secret rotate": ("s --sealed-key JUNK --broker DIR", 3, "resource.unknown"),
    "secret import": ("JUNK --policy JUNK --broker DIR", 2, "secret.import_malformed"),
    "secret list": ("--admin nowhere --identity JUNK", 2, "address.malformed"),
    "secret show": ("../s --broker DIR", 2, "resource.name_invalid"),
    "secret disable": ("s --version 1 --broker DIR", 3, "secret.unknown"),
    "secret enable": ("s --version 1 --broker DIR", 3, "secret.unknown"),
    "secret retire": ("s --version 1 --broker DIR", 3, "secret.unknown"),
    "secret destroy": ("s --version 1 --broker DIR", 2, "secret.destroy_unconfirmed"),
    "resource list": ("--broker NOWHERE", 4, "broker.directory_missing"),
    "resource show": ("s --broker DIR", 3, "resource.unknown"),
    "resource remove": ("s --broker DIR", 3, "resource.unknown"),
    "policy init": ("--from-quote JUNK -o OUT", 2, "quote.truncated"),
    "policy check": ("JUNK", 2, "policy.malformed"),
    "policy schema": ("surprise", 2, "usage"),
    "policy diff": ("JUNK JUNK", 2, "policy.malformed"),
    "policy set": ("s JUNK --broker DIR", 2, "policy.malformed"),
    "policy explain": ("JUNK --policy JUNK --collateral JUNK", 2, "policy.malformed"),
    "policy client": (
        "JUNK --broker-identity JUNK --record JUNK --owner-pub JUNK -o OUT",
        2,
        "owner.public_malformed",
    ),
    "collateral fetch": ("--fmspc junk", 2, "collateral.fmspc_malformed"),
    "collateral show": ("--file JUNK", 2, "collateral.malformed"),
    "collateral export": ("-o OUT --store JUNK", 2, "usage.invalid"),
    "collateral import": ("JUNK", 2, "collateral.bundle_malformed"),
    "lease list": ("--resource ../s --broker DIR", 2, "resource.name_invalid"),
    "lease revoke": ("junk --broker DIR", 2, "lease.id_invalid"),
    "proposal list": ("--broker DIR --admin nowhere", 2, "admin.which_broker"),
    "proposal approve": ("junk --broker DIR", 3, "proposal.unknown"),
    "proposal withdraw": ("junk --broker DIR", 3, "proposal.unknown"),
    "audit show": ("", 2, "admin.which_broker"),
    "audit tail": ("--broker NOWHERE", 4, "broker.directory_missing"),
    "audit verify": ("--export JUNK --identity JUNK", 2, "identity.malformed"),
    "audit export": ("OUT --broker NOWHERE", 4, "broker.directory_missing"),
}
"""By command: arguments, exit status, and the error's code."""


def _walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        yield " ".join(path), command
        return
    for name in command.list_commands(None):
        yield from _walk(command.get_command(None, name), (*path, name))


COMMANDS = dict(_walk(get_command(app)))


def test_every_command_has_help_with_an_example_of_itself() -> None:
    without = set()
    for name, command in COMMANDS.items():
        _, _, example = " ".join((command.help or "").split()).partition("Example: ")
        if not re.search(rf"\bsealserve {name}( |$)", example):
            without.add(name)
    assert without == {"serve"}  # it shows TensorFlow Serving's own


def test_every_command_speaks_json() -> None:
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in COMMANDS.items()
    }
    assert {name for name, given in options.items() if "--json" not in given} == set(NO_JSON)


def test_every_option_is_explained() -> None:
    unexplained = [
        f"{name}: {parameter.name}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if not getattr(parameter, "help", "") and not getattr(parameter, "hidden", False)
    ]
    assert unexplained == []


def test_every_command_of_administration_is_in_the_table() -> None:
    assert set(BAD) == {name for name in COMMANDS if name.split()[0] in ADMINISTRATION}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for what in the table: a broker's directory, a file of junk, nothing."""
    root = tmp_path_factory.mktemp("tree")
    create(root / "broker", name="acme")
    (root / "junk").write_bytes(b"\x00junk: [")
    names = {"DIR": "broker", "JUNK": "junk", "NOWHERE": "nowhere", "NEW": "new", "OUT": "out"}
    return {mark: str(root / name) for mark, name in names.items()}


def _run() -> object:
    """The program on `sys.argv`; its exit status."""
    handlers = {number: signal.getsignal(number) for number in endings()}
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ended.value.code


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_with_its_code(
    name: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, status, code = BAD[name]
    given = [places.get(each, each) for each in arguments.split()]
    as_json = [] if name in NO_JSON else ["--json"]
    monkeypatch.setattr(sys, "argv", ["sealserve", *name.split(), *given, *as_json])
    ended = _run()
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert ended == status, said.err
    if as_json:
        error = json.loads(said.err)["error"]
        assert error["code"] == code
        assert error["message"]
    else:
        assert (code == "usage" and "Usage:" in said.err) or f"[{code}]" in said.err


def test_a_usage_error_is_json_when_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["secret", "put"], ["secret", "put", "--surprise"], ["secret", "nonsense"]):
        monkeypatch.setattr(sys, "argv", ["sealserve", *wrong, "--json"])
        assert _run() == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert json.loads(said.err)["error"]["code"] == "usage.invalid"
