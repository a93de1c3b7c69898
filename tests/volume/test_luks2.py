"""LUKS2 headers: ours are accepted, every other one is refused before any derivation."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sealserve.errors import Refused
from sealserve.volume import luks2
from sealserve.volume.luks2 import Header, Layout, parse_header, unlock
from tests.soak import times
from tests.volume.conftest import KEY, Sealed, tool
from tests.volume.header_mutants import mutants
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


SLOT_BYTES = 258_048


def _small(area: bytes, metadata_size: int) -> tuple[bytes, Layout]:
    """The same header with no room behind its keyslot, and copies of any size."""
    layout = Layout(2 * metadata_size + SLOT_BYTES, 4096, metadata_size)
    root = metadata(area)
    root["config"] = {"json_size": str(metadata_size - 4096), "keyslots_size": str(SLOT_BYTES)}
    root["segments"]["0"]["offset"] = str(layout.segment_offset)
    root["keyslots"]["0"]["area"]["offset"] = str(2 * metadata_size)
    copies = bytearray()
    for at in (0, metadata_size):
        binary = bytearray(area[:4096] if at == 0 else area[0x4000 : 0x4000 + 4096])
        binary[8:16] = metadata_size.to_bytes(8, "big")
        binary[256:264] = at.to_bytes(8, "big")
        binary[448:512] = bytes(64)
        text = json.dumps(root).encode().ljust(metadata_size - 4096, b"\0")
        binary[448:480] = hashlib.sha256(bytes(binary) + text).digest()
        copies += binary + text
    return bytes(copies) + area[0x8000 : 0x8000 + SLOT_BYTES], layout


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("metadata_size", "share"), [(0x4000, 0.98), (0x400000, 0.02)], ids=["16k", "4m"]
)
def test_mutants_raise_only_our_error(
    area: bytes, sealed: Sealed, no_derivation: None, metadata_size: int, share: float
) -> None:
    """Within 100 MB and half a second of computing each; accepted only if nothing counts."""
    base, layout = _small(area, metadata_size)
    expected = parse_header(base, uuid=sealed.record.uuid, layout=layout)
    number, seed = int(times(100_000, 2_000) * share), random.randrange(1 << 32)
    stream = mutants(base, metadata_size, seed)
    outcomes = {"refused": 0, "accepted": 0}
    for count in range(number):
        mutant = next(stream)
        try:
            with _half_a_second_and_100_mb():
                header = parse_header(mutant, uuid=sealed.record.uuid, layout=layout)
        except Refused as error:
            refusal = error.code
        except BaseException as error:
            raise AssertionError(f"mutant {count} of seed {seed}: {error!r}") from error
        else:
            _accepted_only_if_equal(header, expected)
            refusal = "accepted"
        assert refusal in ("accepted", "volume.header_refused")
        outcomes["accepted" if refusal == "accepted" else "refused"] += 1
    assert outcomes["refused"] > number * 0.9


@contextmanager
def _half_a_second_and_100_mb() -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, limit[1]))
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limit)


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError("half a second of computing")


_FREE = ("slot", "digest_iterations", "digest_salt", "digest")


def _accepted_only_if_equal(header: Header, expected: Header) -> None:
    """What the whitelist leaves open are bounded derivation costs and random values."""
    fixed = {k: v for k, v in vars(header).items() if k not in _FREE}
    assert fixed == {k: v for k, v in vars(expected).items() if k not in _FREE}
    assert 1000 <= header.digest_iterations <= 10_000_000
    assert 1000 <= header.slot.iterations <= 10_000_000
    assert len(header.slot.salt) == len(header.digest_salt) == len(header.digest) == 32
