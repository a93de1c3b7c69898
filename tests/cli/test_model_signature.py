"""`sealserve model keygen`, `sign` and `verify`, and volumes whose models are signed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sealserve.errors import SealserveError
from sealserve.provenance import load_trust
from tests.cli.test_model import as_json, run
from tests.cli.test_owner import sealserve
from tests.cli.test_volume import Made, made
from tests.provenance.conftest import make_model

__all__ = ["made"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    made = as_json("keygen", tmp_path / "signer")
    assert made["signing_key"] == str(tmp_path / "signer" / "model-signer.key")
    assert (tmp_path / "signer" / "model-signer.key").stat().st_mode & 0o777 == 0o600
    return tmp_path / "signer"


def test_sign_and_verify(keys: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "1")
    signed = as_json("sign", model, "--key", keys / "model-signer.key")
    assert signed["signature"] == str(model / "model.sig")
    verified = as_json("verify", model, "--signed-by", keys / "model-signer.pub")
    assert verified == {"directory": str(model), "signer": signed["trust"][0], "files": 2}
    assert run("sign", model, "--key", keys / "model-signer.key", "--force").exit_code == 0
    assert "signed by key sha256:" in run(
        "verify", model, "--signed-by", keys / "model-signer.pub"
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("sign", "MODEL", "--key", "PUB"), 2, "provenance.key_exposed"),
        (("sign", "nowhere", "--key", "KEY"), 2, "provenance.model_missing"),
        (("sign", "MODEL", "--key", "KEY", "--certificates", "PUB"), 2,
         "provenance.certificate_malformed"),
        (("verify", "MODEL", "--signed-by", "KEY"), 2, "provenance.trust_private"),
        (("verify", "MODEL", "--signed-by", "MODEL/saved_model.pb"), 2,
         "provenance.trust_malformed"),
        (("verify", "MODEL", "--signed-by", "PUB"), 3, "provenance.signature_missing"),
        (("keygen", "KEYS"), 2, "file.exists"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    arguments: tuple[str, ...], status: int, code: str, keys: Path, tmp_path: Path
) -> None:
    names = {
        "MODEL": str(make_model(tmp_path / "1")), "KEYS": str(keys),
        "KEY": str(keys / "model-signer.key"), "PUB": str(keys / "model-signer.pub"),
    }  # fmt: skip
    words = [arguments[0]]
    for word in arguments[1:]:
        first, slash, rest = word.partition("/")
        words.append(names.get(first, first) + slash + rest)
    with pytest.raises(SealserveError) as caught:
        run(*words, "--json")
    assert (caught.value.code, caught.value.exit_status) == (code, status)


def creating(made: Made, source: Path, directory: Path, *more: object) -> list[object]:
    arguments = list(made.arguments)
    arguments[2] = directory / "v.seal"
    arguments[arguments.index("--from") + 1] = source
    for name in ("--record", "--sealed-key"):
        arguments[arguments.index(name) + 1] = directory / name.strip("-")
    return [*arguments, *more]


def test_a_volume_of_signed_models_and_its_next_version(
    made: Made, keys: Path, tmp_path: Path
) -> None:
    tree, ours = tmp_path / "tree", keys / "model-signer.key"
    first = make_model(tree / "models" / "net" / "1")
    done = sealserve(*creating(made, tree, tmp_path, "--sign-models", ours))
    assert done.returncode == 0, done.stderr
    names = list(load_trust(keys / "model-signer.pub").names)
    assert json.loads(done.stdout)["signers"] == names
    shown = sealserve("volume", "record", "show", tmp_path / "record")
    assert f"signed by      {names[0]}" in shown.stdout

    # The next version demands the same: what is new must be signed.
    signature = (first / "model.sig").read_bytes()
    second = make_model(tree / "models" / "net" / "2", b"two")
    (tmp_path / "next").mkdir()
    arguments = creating(made, tree, tmp_path / "next")
    arguments[1] = "rebuild"
    del arguments[(at := arguments.index("--name")) : at + 2]
    arguments += ["--previous", tmp_path / "record"]
    done = sealserve(*arguments)
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (
        3, "provenance.signature_missing",
    )  # fmt: skip
    assert sealserve("model", "sign", second, "--key", ours).returncode == 0
    done = sealserve(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signers"] == names
    assert (first / "model.sig").read_bytes() == signature


def test_somebody_elses_models_must_be_signed_by_them(
    made: Made, keys: Path, tmp_path: Path
) -> None:
    tree, other = tmp_path / "tree", tmp_path / "other"
    model = make_model(tree / "models" / "net" / "1")
    assert sealserve("model", "keygen", other).returncode == 0
    assert sealserve("model", "sign", model, "--key", other / "model-signer.key").returncode == 0
    theirs = ("--signed-by", other / "model-signer.pub")
    for trusted, status in (
        (("--signed-by", keys / "model-signer.pub"), 3),
        (("--sign-models", keys / "model-signer.key"), 3),  # nobody's signature is replaced
        (theirs, 0),
    ):
        done = sealserve(*creating(made, tree, tmp_path, *trusted))
        assert done.returncode == status, done.stderr
    shutil.rmtree(tree)


def test_a_writable_volume_has_no_models(made: Made, keys: Path, tmp_path: Path) -> None:
    done = sealserve(
        *creating(
            made, tmp_path, tmp_path, "--kind", "writable", "--size", 8,
            "--sign-models", keys / "model-signer.key",
        )
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == "provenance.model_missing"
