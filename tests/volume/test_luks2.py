"""LUKS2 headers: ours are accepted, every other one is refused before any derivation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import Refused
from sealserve.volume import luks2
from sealserve.volume.luks2 import Header, Layout, parse_header, unlock
from tests.volume.conftest import KEY, Sealed, tool
from tests.volume.headers import CRAFTED, metadata, with_text

MIB = 1 << 20


@pytest.fixture(scope="module")
def area(sealed: Sealed) -> bytes:
    with sealed.path.open("rb") as file:
        return file.read(sealed.record.header.size)


@pytest.fixture
def no_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> bytes:
        raise AssertionError("a key derivation was started")

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", fail)
    monkeypatch.setattr(luks2, "Argon2id", fail)


def parse(area: bytes, sealed: Sealed) -> Header:
    return parse_header(area, uuid=sealed.record.uuid, layout=Layout(16 * MIB))


def test_our_own_header_is_accepted(area: bytes, sealed: Sealed) -> None:
    header = parse(area, sealed)
    assert header.layout.segment_offset == 16 * MIB
    assert len(unlock(header, area, sealed.key)) == 64


@pytest.mark.parametrize("name", CRAFTED)
def test_hostile_headers_are_refused(
    name: str, area: bytes, sealed: Sealed, no_derivation: None
) -> None:
    hostile = CRAFTED[name](area)
    assert hostile != area
    with pytest.raises(Refused) as caught:
        parse(hostile, sealed)
    assert caught.value.code == "volume.header_refused"


def test_the_maker_of_hostile_headers_makes_valid_ones(area: bytes, sealed: Sealed) -> None:
    """Otherwise the refusals above might be for a bad checksum only."""
    again = with_text(area, json.dumps(metadata(area)).encode())
    assert again != area
    assert parse(again, sealed) == parse(area, sealed)


@pytest.mark.parametrize("name", ["null segment cipher", "weak pbkdf2", "token"])
def test_cryptsetup_itself_takes_some_of_them(name: str, area: bytes, tmp_path: Path) -> None:
    """The danger is real: these pass cryptsetup's own parser."""
    hostile = tmp_path / "hostile"
    hostile.write_bytes(CRAFTED[name](area) + bytes(MIB))
    assert "Keyslots:" in tool("cryptsetup", "luksDump", str(hostile))


@pytest.mark.parametrize(
    "kdf",
    [
        ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"],
        [
            "--pbkdf=argon2id", "--pbkdf-force-iterations=4", "--pbkdf-memory=32768",
            "--pbkdf-parallel=2",
        ],
    ],
    ids=["pbkdf2", "argon2id"],
)  # fmt: skip
@pytest.mark.parametrize("key", [KEY, b"\n", b"\0", b"\xff" * 64], ids=["mixed", "lf", "nul", "ff"])
def test_the_volume_key_is_cryptsetups(tmp_path: Path, kdf: list[str], key: bytes) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    volume, key_file, dumped = tmp_path / "v", tmp_path / "k", tmp_path / "dumped"
    key_file.write_bytes(key)
    volume.write_bytes(b"")
    with volume.open("r+b") as file:
        file.truncate(17 * MIB)
    tool(
        "cryptsetup", "luksFormat", "-q", "--type=luks2", "--key-size=512", "--sector-size=4096",
        f"--uuid={uuid}", *kdf, "--key-file", str(key_file), str(volume),
    )  # fmt: skip
    tool(
        "cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", str(dumped),
        "--key-file", str(key_file), str(volume),
    )  # fmt: skip
    area = volume.read_bytes()[: 16 * MIB]
    header = parse_header(area, uuid=uuid, layout=Layout(16 * MIB))
    assert unlock(header, area, key) == dumped.read_bytes()
    with pytest.raises(Refused) as caught:
        unlock(header, area, key + b"\n")
    assert caught.value.code == "volume.key_wrong"


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("kib", [16 << power for power in range(9)])
def test_every_layout_of_cryptsetups(tmp_path: Path, kib: int, sector_size: int) -> None:
    """All metadata sizes, both sector sizes; a header of another layout than asked is refused."""
    uuid = "11111111-2222-3333-4444-555555555555"
    volume, key_file, dumped = tmp_path / "v", tmp_path / "k", tmp_path / "dumped"
    key_file.write_bytes(KEY)
    layout = Layout(16 * MIB, sector_size, kib << 10)
    with volume.open("wb") as file:
        file.truncate(17 * MIB)
    tool(
        "cryptsetup", "luksFormat", "-q", "--type=luks2", "--key-size=512",
        f"--sector-size={sector_size}", f"--luks2-metadata-size={kib}k",
        f"--luks2-keyslots-size={layout.keyslots_size >> 10}k", "--offset=32768",
        f"--uuid={uuid}", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
        "--key-file", str(key_file), str(volume),
    )  # fmt: skip
    tool(
        "cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", str(dumped),
        "--key-file", str(key_file), str(volume),
    )  # fmt: skip
    area = volume.read_bytes()[: 16 * MIB]
    assert unlock(parse_header(area, uuid=uuid, layout=layout), area, KEY) == dumped.read_bytes()
    for other in (
        replace(layout, sector_size=4608 - sector_size),
        replace(layout, sector_size=1024),
        replace(layout, metadata_size=(kib << 10) * 2),
        replace(layout, metadata_size=(kib << 10) // 2),
        replace(layout, metadata_size=4096),
    ):
        with pytest.raises(Refused) as caught:
            parse_header(area, uuid=uuid, layout=other)
        assert caught.value.code == "volume.header_refused"
    for wrong in (area[:-1], area[: 2 * layout.metadata_size], b""):
        with pytest.raises(Refused):
            parse_header(wrong, uuid=uuid, layout=replace(layout, segment_offset=len(wrong)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutants_raise_only_our_error(area: bytes, sealed: Sealed, data: st.DataObject) -> None:
    """Splices into the JSON text, checksums made right: accepted only if nothing was changed."""
    text = json.dumps(metadata(area)).encode()
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 40))
    put = data.draw(st.one_of(st.binary(max_size=12), st.sampled_from(_PIECES)))
    mutant = text[:at] + put + text[at + cut :]
    _accepted_only_if_equal(with_text(area, mutant[:12288]), area, sealed)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 0x8000 - 1), st.binary(min_size=1, max_size=8))
def test_changed_bytes_raise_only_our_error(
    area: bytes, sealed: Sealed, at: int, put: bytes
) -> None:
    mutant = bytearray(area)
    mutant[at : at + len(put)] = put
    _accepted_only_if_equal(bytes(mutant[: len(area)]), area, sealed)


_PIECES = [b"{}", b"[]", b'"0"', b"null", b"true", b"1e9", b"-1", b"9" * 30, b'":', b"\\ud800"]
_FREE = ("slot", "digest_iterations", "digest_salt", "digest")


def _accepted_only_if_equal(mutant: bytes, area: bytes, sealed: Sealed) -> None:
    refusal = ""
    try:
        header = parse(mutant, sealed)
    except Refused as error:
        refusal = error.code
    if refusal:
        assert refusal == "volume.header_refused"
        return
    # What the whitelist leaves open are bounded derivation costs and random values.
    expected = parse(area, sealed)
    fixed = {k: v for k, v in vars(header).items() if k not in _FREE}
    assert fixed == {k: v for k, v in vars(expected).items() if k not in _FREE}
    assert 1000 <= header.digest_iterations <= 10_000_000
    assert header.slot.iterations <= 10_000_000
    assert len(header.slot.salt) == len(header.digest_salt) == len(header.digest) == 32
