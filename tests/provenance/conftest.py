"""A model of two files, and those who sign it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealserve.provenance import Signing, Trust, load_trust, make_signing_key, sign_model


@dataclass(frozen=True)
class Signer:
    """Somebody with a key pair."""

    private: Path
    public: Path

    @classmethod
    def new(cls, directory: Path) -> Signer:
        return cls(*make_signing_key(directory))

    @property
    def signing(self) -> Signing:
        return Signing.load(self.private)

    @property
    def trust(self) -> Trust:
        return load_trust(self.public)


def make_model(directory: Path, mark: bytes = b"one") -> Path:
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph of " + mark)
    (directory / "variables" / "data").write_bytes(b"weights of " + mark)
    return directory


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path / "signer")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "net" / "1")


@pytest.fixture
def signed(model: Path, signer: Signer) -> Path:
    sign_model(model, signer.signing)
    return model


def theirs(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command of the `model-signing` project itself, in a process of its own."""
    command = [sys.executable, "-P", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
