"""Volumes whose models must be signed: checked when sealed, demanded by the record for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sealserve.errors import InputError, Refused
from sealserve.provenance import Trust, sign_model, verify_model
from sealserve.volume.maker import create_sealed
from sealserve.volume.mount import mount_sealed
from sealserve.volume.provenance import Provenance
from sealserve.volume.record import VolumeRecord, decode_payload, open_record
from sealserve.volume.rotate import rotate
from tests.provenance.conftest import Signer, make_model
from tests.volume.conftest import KEY, need_tools
from tests.volume.test_record import example

NEW_KEY = bytes(range(32))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path / "signer")


@pytest.fixture
def tree(tmp_path: Path, signer: Signer) -> Path:
    """Two signed versions of a model."""
    need_tools()
    for version in ("1", "2"):
        sign_model(
            make_model(tmp_path / "tree" / "models" / "net" / version, version.encode()),
            signer.signing,
        )
    return tmp_path / "tree"


def seal(path: Path, tree: Path, owner: Ed25519PrivateKey, signers: Trust) -> VolumeRecord:
    raw = create_sealed(path, tree, key=KEY, owner_key=owner, name="models", signers=signers)
    return open_record(raw, owner.public_key())


def test_the_record_demands_it_and_the_mounted_volume_has_it(
    tree: Path, signer: Signer, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    path = tmp_path / "models.seal"
    record = seal(path, tree, owner, signer.trust)
    assert record.provenance is not None
    assert record.provenance.trust == signer.trust
    with mount_sealed(path, record, KEY, tmp_path / "mnt", driver="fuse"):
        for version in ("1", "2"):
            place = tmp_path / "mnt" / "models" / "net" / version
            assert verify_model(place, record.provenance.trust).files == 2
    raw = rotate(path, record, KEY, new_key=NEW_KEY, owner_key=owner, target=tmp_path / "new.seal")
    assert open_record(raw, owner.public_key()).provenance == record.provenance


@pytest.mark.parametrize("spoil", ["unsigned", "changed", "by another"])
def test_what_is_not_signed_is_not_sealed(
    spoil: str, tree: Path, signer: Signer, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    model, trust = tree / "models" / "net" / "2", signer.trust
    if spoil == "unsigned":
        (model / "model.sig").unlink()
    elif spoil == "changed":
        (model / "saved_model.pb").write_bytes(b"another graph")
    else:
        trust = Signer.new(tmp_path / "other").trust
    with pytest.raises(Refused) as caught:
        seal(tmp_path / "models.seal", tree, owner, trust)
    assert caught.value.code.startswith("provenance.")
    shutil.rmtree(tree)
    assert not list(tmp_path.glob("models.seal*"))


def test_a_record_without_a_demand_is_the_document_it_always_was(signer: Signer) -> None:
    plain = example()
    assert "provenance" not in json.loads(plain.to_json())
    demanding = example(provenance=Provenance.of(signer.trust))
    assert decode_payload(demanding.to_json()) == demanding
    with_null = json.dumps(
        {**json.loads(plain.to_json()), "provenance": None},
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        decode_payload(with_null.encode())
    assert caught.value.code == "record.malformed"


def test_a_demand_has_one_form(signer: Signer) -> None:
    pem = signer.trust.pem.decode()
    assert Provenance(signers=pem)
    for text in ("", "junk", pem * 2, pem + "\n", "# mine\n" + pem, pem.replace("\n", "\r\n")):
        with pytest.raises(ValidationError):
            Provenance(signers=text)


def test_a_writable_volume_can_demand_nothing(signer: Signer) -> None:
    with pytest.raises(ValidationError, match="no record can vouch"):
        example(kind="writable", verity=None, models=(), provenance=Provenance.of(signer.trust))
