"""A model is admitted if all of it, and nothing else, was signed by somebody who is trusted."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.provenance import SIGNATURE_NAME, Trust, sign_model, verify_model
from sealserve.provenance.bundle import MAX_SIGNATURE_BYTES
from tests.provenance.conftest import Signer, make_model, theirs


def refusal(model: Path, trust: Trust) -> SealserveError:
    with pytest.raises((InputError, Refused)) as caught:
        verify_model(model, trust)
    return caught.value


def test_a_signed_model_is_admitted_and_its_signer_named(signed: Path, signer: Signer) -> None:
    verified = verify_model(signed, signer.trust)
    assert (verified.signer, verified.files) == (signer.trust.names[0], 2)


def change(model: Path) -> None:
    (model / "variables" / "data").write_bytes(b"weights of two")


def add(model: Path) -> None:
    (model / "variables" / "more").write_bytes(b"")


def remove(model: Path) -> None:
    (model / "variables" / "data").unlink()


def rename(model: Path) -> None:
    (model / "variables" / "data").rename(model / "variables" / "date")


def exchange(model: Path) -> None:
    graph, weights = model / "saved_model.pb", model / "variables" / "data"
    content = graph.read_bytes()
    graph.write_bytes(weights.read_bytes())
    weights.write_bytes(content)


def link(model: Path) -> None:
    """The same bytes, but whoever owns the target decides for how long."""
    weights = model / "variables" / "data"
    weights.rename(model.parent / "elsewhere")
    weights.symlink_to(model.parent / "elsewhere")


def link_directory(model: Path) -> None:
    (model / "assets").symlink_to(model / "variables")


def pipe(model: Path) -> None:
    os.mkfifo(model / "pipe")


def git(model: Path) -> None:
    """What the library ignores by default could still be read by a runtime."""
    (model / ".git").mkdir()
    (model / ".git" / "hooks").write_bytes(b"x")


def second_signature(model: Path) -> None:
    shutil.copy(model / SIGNATURE_NAME, model / "variables" / SIGNATURE_NAME)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (change, "'variables/data' was changed"),
        (add, "'variables/more' was not signed"),
        (remove, "'variables/data' is missing"),
        (rename, "'variables/date' was not signed"),
        (exchange, "'saved_model.pb', 'variables/data' was changed"),
        (link, "not the one that was signed"),
        (link_directory, "'assets' was not signed"),
        (pipe, "'pipe' was not signed"),
        (git, "'.git/hooks' was not signed"),
        (second_signature, "'variables/model.sig' was not signed"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_another_content_is_refused_and_named(
    spoil: Callable[[Path], None], named: str, signed: Path, signer: Signer
) -> None:
    spoil(signed)
    error = refusal(signed, signer.trust)
    assert error.code == "provenance.content_differs"
    assert named in error.message


def test_another_models_signature_is_refused(signed: Path, signer: Signer, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other" / "1", b"two")
    sign_model(other, signer.signing)
    shutil.copy(other / SIGNATURE_NAME, signed / SIGNATURE_NAME)
    assert refusal(signed, signer.trust).code == "provenance.content_differs"


def test_another_signer_is_refused(signed: Path, tmp_path: Path) -> None:
    other = Signer.new(tmp_path / "other")
    error = refusal(signed, other.trust)
    assert error.code == "provenance.signer_unknown"
    both = Trust.from_pem(other.trust.pem + Signer.new(tmp_path / "third").trust.pem)
    assert refusal(signed, both).code == "provenance.signer_unknown"


def test_a_signer_who_only_names_a_trusted_key_is_refused(
    model: Path, signer: Signer, tmp_path: Path
) -> None:
    other = Signer.new(tmp_path / "other")
    sign_model(model, other.signing)
    file = model / SIGNATURE_NAME
    (ours, _), (pretended, _) = other.trust.keys[0], signer.trust.keys[0]
    file.write_text(file.read_text().replace(ours, pretended))
    assert refusal(model, signer.trust).code == "provenance.signature_invalid"


def test_no_signature_is_refused(model: Path, signer: Signer) -> None:
    assert refusal(model, signer.trust).code == "provenance.signature_missing"
    (model / SIGNATURE_NAME).mkdir()
    assert refusal(model, signer.trust).code == "provenance.signature_missing"


def test_a_huge_signature_is_not_read(model: Path, signer: Signer) -> None:
    with (model / SIGNATURE_NAME).open("wb") as file:
        file.truncate(1 << 40)
    error = refusal(model, signer.trust)
    assert error.code == "file.too_large"
    assert str(MAX_SIGNATURE_BYTES) in error.message


def test_one_of_several_signers_is_enough(signed: Path, signer: Signer, tmp_path: Path) -> None:
    trust = Trust.from_pem(Signer.new(tmp_path / "other").trust.pem + signer.trust.pem)
    assert verify_model(signed, trust).signer == f"key sha256:{signer.trust.keys[0][0]}"


def test_a_version_may_be_reached_through_a_link(signed: Path, signer: Signer) -> None:
    (signed.parent / "2").symlink_to(signed)
    assert verify_model(signed.parent / "2", signer.trust).files == 2


def test_without_the_library_nothing_is_admitted(
    signed: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> object:
        return None if name == "model_signing" else find_spec(name)

    monkeypatch.setattr("sealserve.provenance.library.find_spec", without)
    with pytest.raises(Unavailable) as caught:
        verify_model(signed, signer.trust)
    assert caught.value.code == "provenance.extra_missing"
    assert "sealserve[provenance]" in str(caught.value)
    with pytest.raises(Unavailable):
        sign_model(signed, signer.signing, replace=True)


def test_nobody_is_asked_over_a_network(
    signed: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert verify_model(signed, signer.trust)


def test_no_descriptor_is_left_open(signed: Path, signer: Signer, tmp_path: Path) -> None:
    verify_model(signed, signer.trust)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    other = Signer.new(tmp_path / "other").trust
    for trust in (signer.trust, other):
        try:
            verify_model(signed, trust)
        except Refused:
            continue
    sign_model(signed, signer.signing, replace=True)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


class TestAgainstTheProjectsOwnCommand:
    """`model_signing` on one side, we on the other."""

    def test_it_verifies_what_we_sign(self, signed: Path, signer: Signer) -> None:
        signature = signed / SIGNATURE_NAME
        check = ("verify", "key", signed, "--signature", signature, "--public_key", signer.public)
        done = theirs(*check)
        assert done.returncode == 0, done.stderr
        change(signed)
        assert theirs(*check).returncode != 0

    def test_we_verify_what_it_signs(self, model: Path, signer: Signer) -> None:
        signature = model / SIGNATURE_NAME
        done = theirs(
            "sign", "key", model, "--signature", signature, "--private_key", signer.private
        )
        assert done.returncode == 0, done.stderr
        assert verify_model(model, signer.trust).files == 2
        git(model)  # its own command goes on saying yes
        assert theirs(
            "verify", "key", model, "--signature", signature, "--public_key", signer.public
        ).returncode == 0  # fmt: skip
        assert refusal(model, signer.trust).code == "provenance.content_differs"
