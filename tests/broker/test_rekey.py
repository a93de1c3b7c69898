"""`broker rekey`: all or nothing, while a broker serves, whenever it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.broker import config_file
from sealserve.broker import rekey as rekeying
from sealserve.broker.config import BrokerConfig
from sealserve.broker.config_file import CONFIG_FILE
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker, create, open_broker
from sealserve.broker.kek_provider import NEXT_CONFIG
from sealserve.broker.rekey import rekey
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker import vault as double
from tests.broker.conftest import BOTH_STORES, RESOURCE, World, policy_for
from tests.broker.softhsm import KEY, PIN, TOKEN
from tests.broker.vault import Vault

SECRET = b"PLANTED-SECRET" + bytes(range(50))


@pytest.fixture
def vault() -> Iterator[Vault]:
    with double.running() as running:
        yield running


@pytest.fixture
def kept(broker_root: Path, platform: SimulatedPlatform) -> Path:
    """A broker's directory with two secrets."""
    with open_broker(broker_root) as broker:
        for resource in (RESOURCE, "models/other"):
            _put(broker, resource, SECRET, platform)
    return broker_root


def _put(broker: Broker, resource: str, secret: bytes, platform: SimulatedPlatform) -> None:
    broker.put_secret(
        resource, seal_for(broker.identity, secret),
        record=b"", owner_public_key=b"", policy=policy_for(SoftwareTd(platform)),
    )  # fmt: skip


def vault_settings(vault: Vault, tmp_path: Path) -> list[str]:
    token = tmp_path / "token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(double.TOKEN)
    return [f"vault_url={vault.url}", "vault_key=sealserve", f"vault_token_file={token}"]


def hsm_settings(module: Path, tmp_path: Path) -> list[str]:
    pin = tmp_path / "pin"
    if not pin.exists():
        pin.touch(mode=0o600)
        pin.write_text(PIN)
    return [
        f"pkcs11_module={module}", f"pkcs11_token={TOKEN}", f"pkcs11_key={KEY}",
        f"pkcs11_pin_file={pin}",
    ]  # fmt: skip


def _secret(root: Path, version: int = 1) -> bytes:
    with open_broker(root) as broker:
        broker.audit.verify()
        return broker.store.secret(RESOURCE, version, broker.kek)


@BOTH_STORES
def test_from_file_to_vault_to_hsm_to_file(
    kept: Path, vault: Vault, softhsm: Path, tmp_path: Path
) -> None:
    first = rekey(kept, "vault", vault_settings(vault, tmp_path))
    assert first.values == 5  # three keys of the broker, two secrets
    assert _secret(kept) == SECRET
    (kept / "kek").unlink()  # nothing needs it any more
    second = rekey(kept, "pkcs11", hsm_settings(softhsm, tmp_path))
    assert _secret(kept) == SECRET
    vault.mode = "sealed"  # nor Vault
    third = rekey(kept, "file")
    assert _secret(kept) == SECRET
    assert (kept / third.kek.file).stat().st_mode & 0o777 == 0o600
    with open_broker(kept) as broker:
        lines = [json.loads(line) for line in broker.audit.lines()]
    told = [(e["kek_before"], e["kek_after"]) for e in lines if e["event"] == "broker.rekey"]
    assert told == [(each.before, each.after) for each in (first, second, third)]
    assert first.after == second.before
    assert not (kept / NEXT_CONFIG).exists()


def test_an_operators_comments_stay(kept: Path, tmp_path: Path) -> None:
    file = kept / CONFIG_FILE
    file.write_text(file.read_text().replace("kek:", "kek:  # ask Carol"))
    before = file.read_text().splitlines()
    made = rekey(kept, "file")
    after = file.read_text().splitlines()
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [
        ('  # file: "kek"', f'  file: "{made.kek.file}"')
    ]
    assert made.old_config is None


def test_a_file_that_has_to_be_written_anew_is_kept(kept: Path) -> None:
    own = b"# ask Carol\nkek: {provider: file}\n"
    (kept / CONFIG_FILE).write_bytes(own)
    made = rekey(kept, "file")
    assert made.old_config is not None
    assert made.old_config.read_bytes() == own
    assert _secret(kept) == SECRET


def test_a_serving_broker_goes_on(world: World, vault: Vault, tmp_path: Path) -> None:
    root = world.broker.root
    assert bytes(world.ask().secret) == world.key
    rekey(root, "vault", vault_settings(vault, tmp_path))
    assert bytes(world.ask().secret) == world.key
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, b"next"),
        record=b"", owner_public_key=b"", policy=policy_for(world.td),
    )  # fmt: skip
    assert bytes(world.ask().secret) == b"next"
    vault.mode = "sealed"  # fails closed, and recovers by itself
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.unavailable"
    vault.mode = "well"
    assert bytes(world.ask().secret) == b"next"
    entry = [line for line in world.lines() if line["verdict"] == "failed"][-1]
    assert entry["reasons"][0]["code"] == "kek.vault_sealed"


def test_what_does_not_work_changes_nothing(kept: Path, vault: Vault, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.name != "broker.db"}
    settings = vault_settings(vault, tmp_path)
    cases: list[tuple[type[SealserveError], str, str, list[str]]] = [
        (InputError, "broker.config_invalid", "vault", settings[:-1]),
        (InputError, "broker.config_invalid", "vault", [*settings, "surprise=1"]),
        (InputError, "broker.config_invalid", "vault", ["vault_url"]),
        (InputError, "broker.config_invalid", "tpm", []),
        (
            InputError,
            "broker.config_invalid",
            "vault",
            [*settings[1:], "vault_url=http://192.0.2.1"],
        ),
        (InputError, "broker.config_invalid", "file", ["file=../kek"]),
        (Refused, "kek.file_exists", "file", ["file=kek"]),
        (Refused, "kek.vault_bad_request", "vault", [*settings[::2], "vault_key=absent"]),
    ]
    for kind, code, provider, given in cases:
        with pytest.raises(kind) as caught:
            rekey(kept, provider, given)
        assert caught.value.code == code
    vault.mode = "sealed"
    with pytest.raises(Unavailable):
        rekey(kept, "vault", settings)
    vault.mode = "well"
    after = {path.name: path.read_bytes() for path in kept.iterdir() if path.name != "broker.db"}
    assert {k: v for k, v in after.items() if not k.startswith("broker.db-")} == before
    assert _secret(kept) == SECRET


def test_the_same_key_again_is_refused(kept: Path, vault: Vault, tmp_path: Path) -> None:
    settings = vault_settings(vault, tmp_path)
    rekey(kept, "vault", settings)
    with pytest.raises(Refused) as caught:
        rekey(kept, "vault", settings)
    assert caught.value.code == "kek.same_key"
    assert _secret(kept) == SECRET


def test_a_secret_put_meanwhile_is_wrapped_anew_too(
    kept: Path, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, once = rekeying._under, iter([True])

    def meanwhile(*given: object) -> bytes:
        if next(once, False):
            with open_broker(kept) as other:
                _put(other, RESOURCE, b"put meanwhile", platform)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rekeying, "_under", meanwhile)
    assert rekey(kept, "file").values == 6
    assert _secret(kept, 2) == b"put meanwhile"


_KILLED = """
import os, signal, sys
from pathlib import Path
from sealserve.broker import rekey, kek_provider
step = sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "before the rows":
    rekey._rows = die
elif step == "before the commit":
    from sealserve.broker import audit
    audit.append = die
elif step == "after the commit":
    replace = Path.replace
    Path.replace = lambda path, to: die() if path.suffix == ".next" else replace(path, to)
rekey.rekey(Path(sys.argv[1]), "file")
"""


@pytest.mark.parametrize(
    ("step", "changed"),
    [("before the rows", False), ("before the commit", False), ("after the commit", True)],
)
def test_kill_9_leaves_the_old_state_or_the_new(kept: Path, step: str, changed: bool) -> None:
    with open_broker(kept) as broker:
        before = broker.kek.id
    done = subprocess.run([sys.executable, "-c", _KILLED, str(kept), step], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (kept / NEXT_CONFIG).exists()
    assert _secret(kept) == SECRET
    with open_broker(kept) as broker:
        assert (broker.kek.id != before) is changed
        assert broker.store.kek_id() == broker.kek.id
    assert (kept / NEXT_CONFIG).exists() is not changed
    rekey(kept, "file")
    assert not (kept / NEXT_CONFIG).exists()
    assert _secret(kept) == SECRET


def test_a_broker_left_behind_wraps_nothing(kept: Path, platform: SimulatedPlatform) -> None:
    """A replica whose directory still names the old key, on a database that was rekeyed."""
    old = (kept / CONFIG_FILE).read_bytes()
    rekey(kept, "file")
    new = (kept / CONFIG_FILE).read_bytes()
    (kept / CONFIG_FILE).write_bytes(old)
    with pytest.raises(Refused) as caught:
        open_broker(kept)
    assert caught.value.code == "kek.unwrap_failed"
    (kept / CONFIG_FILE).write_bytes(new)
    with open_broker(kept) as broker:
        object.__setattr__(broker.kek, "_stamp", None)
        (kept / CONFIG_FILE).write_bytes(old)
        with pytest.raises(Unavailable) as stale:
            _put(broker, RESOURCE, b"x", platform)
        assert stale.value.code == "kek.changed"


def test_a_new_broker_may_begin_with_vault(vault: Vault, tmp_path: Path) -> None:
    chosen = config_file.with_kek(
        BrokerConfig(), "vault", vault_settings(vault, tmp_path), where="--kek"
    )
    root = tmp_path / "broker"
    create(root, name="acme", chosen=chosen)
    assert not (root / "kek").exists()
    with open_broker(root) as broker:
        assert broker.kek.id.startswith("vault:")
    planted = (double.TOKEN.encode(), SECRET)
    for path in root.iterdir():
        assert not any(part in path.read_bytes() for part in planted)
    vault.mode = "sealed"
    with pytest.raises(Unavailable):
        create(tmp_path / "second", name="acme", chosen=chosen)
    assert not (tmp_path / "second").exists()
