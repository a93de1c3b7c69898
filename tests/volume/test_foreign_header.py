"""Headers of others: cryptsetup's usual ones are accepted, all else is refused untouched."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from sealserve.errors import Refused
from sealserve.volume.foreign_header import MAX_AREA, ForeignHeader, parse_foreign
from tests.soak import times
from tests.volume.conftest import need_tools, tool
from tests.volume.foreign import CIPHER, MIB, QUICK
from tests.volume.header_mutants import mutants
from tests.volume.headers import CRAFTED

SMALL = ("--luks2-keyslots-size=258048", "--luks2-metadata-size=16k", "--offset=568")
SLOT = struct.Struct(">II32sII")
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD


def formatted(directory: Path, *options: str, kdf: tuple[str, ...] = QUICK) -> bytes:
    need_tools()
    path, key = directory / "volume", directory / "key"
    key.write_bytes(b"secret")
    path.write_bytes(bytes(20 * MIB))
    tool(
        "cryptsetup", "luksFormat", "-q", "--disable-locks", *CIPHER, *options, *kdf,
        f"--key-file={key}", str(path),
    )  # fmt: skip
    return path.read_bytes()


@pytest.fixture(scope="module")
def luks1(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return formatted(tmp_path_factory.mktemp("luks1"), "--type=luks1")[: 2 * MIB]


@pytest.fixture(scope="module")
def luks2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("luks2")
    return formatted(directory, "--type=luks2", "--sector-size=512")[: 16 * MIB]


def test_luks1(luks1: bytes) -> None:
    header = parse_foreign(luks1)
    assert (header.version, header.start, header.unit) == (1, 2 * MIB, 512)


def test_luks2(luks2: bytes) -> None:
    header = parse_foreign(luks2)
    assert header == ForeignHeader(2, header.uuid, 16 * MIB, 16 * MIB, 512, 0x4000)


@pytest.mark.parametrize(
    "options",
    [
        ("--type=luks1", "--hash=sha512"),
        ("--type=luks1", "--hash=sha1"),
        ("--type=luks2", "--hash=sha512", "--label=models"),
        ("--type=luks2", *SMALL),
    ],
    ids=" ".join,
)
def test_other_usual_ones(options: tuple[str, ...], tmp_path: Path) -> None:
    assert parse_foreign(formatted(tmp_path, *options)).version == int(options[0][-1])


@pytest.mark.parametrize("kind", ["argon2i", "argon2id"])
def test_the_derivations_of_their_time(kind: str, tmp_path: Path) -> None:
    """argon2i: the default of cryptsetup 2.3, which CentOS 8 had."""
    costs = (f"--pbkdf={kind}", "--pbkdf-memory=64", "--pbkdf-force-iterations=4")
    assert parse_foreign(formatted(tmp_path, "--type=luks2", kdf=costs)).version == 2


def test_further_keyslots(tmp_path: Path) -> None:
    area = formatted(tmp_path, "--type=luks2")
    path, key = str(tmp_path / "volume"), str(tmp_path / "key")
    tool("cryptsetup", "luksAddKey", "-q", "--disable-locks", *QUICK, "--key-file", key, path, key)
    both = (tmp_path / "volume").read_bytes()
    assert both != area
    assert parse_foreign(both) == parse_foreign(area)
    tool("cryptsetup", "luksKillSlot", "-q", "--disable-locks", "--key-file", key, path, "0")
    assert parse_foreign((tmp_path / "volume").read_bytes()) == parse_foreign(area)


@pytest.mark.parametrize(
    "options",
    [
        ("--type=luks1", "-c", "aes-cbc-essiv:sha256", "-s", "256"),
        ("--type=luks2", "-c", "aes-cbc-essiv:sha256", "-s", "256"),
        ("--type=luks2", "-s", "256"),
        ("--type=luks2", "--sector-size=1024"),
    ],
    ids=" ".join,
)
def test_other_ciphers_are_refused_with_the_way_out(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(Refused) as caught:
        parse_foreign(formatted(tmp_path, *options))
    assert caught.value.code == "volume.foreign_refused"
    assert "cryptsetup reencrypt" in (caught.value.hint or "")


# What changes nothing that counts, or what those who open by a record must not have
# and an owner who imports may.
HARMLESS = {
    "label", "subsystem", "another uuid", "argon2i", "keyslot priority", "sector size",
}  # fmt: skip


@pytest.fixture(scope="module")
def luks2_4096(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("luks2")
    return formatted(directory, "--type=luks2", "--sector-size=4096")[: 16 * MIB]


@pytest.mark.parametrize("name", sorted(set(CRAFTED) - HARMLESS))
def test_hostile_headers_are_refused(name: str, luks2_4096: bytes) -> None:
    hostile = CRAFTED[name](luks2_4096)
    assert hostile != luks2_4096
    if name in ("kdf hash", "digest hash"):  # sha1 was usual once
        assert parse_foreign(hostile).version == 2
        return
    with pytest.raises(Refused) as caught:
        parse_foreign(hostile)
    assert caught.value.code == "volume.foreign_refused"


def _put(area: bytes, offset: int, value: bytes) -> bytes:
    return area[:offset] + value + area[offset + len(value) :]


def _slot(area: bytes, number: int, *fields: object) -> bytes:
    return _put(area, 208 + 48 * number, SLOT.pack(*fields))


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("nothing", lambda _: b""),
        ("magic", lambda a: _put(a, 0, b"SKUL")),
        ("version", lambda a: _put(a, 6, b"\0\3")),
        ("null cipher", lambda a: _put(a, 8, b"cipher_null".ljust(32, b"\0"))),
        ("null mode", lambda a: _put(a, 40, b"ecb".ljust(32, b"\0"))),
        ("text behind the cipher", lambda a: _put(a, 20, b"x")),
        ("hash", lambda a: _put(a, 72, b"md5".ljust(32, b"\0"))),
        ("segment at the header", lambda a: _put(a, 104, bytes(4))),
        ("segment within a keyslot", lambda a: _put(a, 104, struct.pack(">I", 100))),
        ("segment beyond the end", lambda a: _put(a, 104, struct.pack(">I", 4097))),
        ("segment far beyond", lambda a: _put(a, 104, b"\xff" * 4)),
        ("key size", lambda a: _put(a, 108, struct.pack(">I", 32))),
        ("digest bomb", lambda a: _put(a, 164, b"\xff" * 4)),
        ("weak digest", lambda a: _put(a, 164, bytes(4))),
        ("uuid", lambda a: _put(a, 168, b"../../etc/passwd".ljust(40, b"\0"))),
        ("kdf bomb", lambda a: _slot(a, 0, ENABLED, 2**32 - 1, bytes(32), 8, 4000)),
        ("weak kdf", lambda a: _slot(a, 0, ENABLED, 1, bytes(32), 8, 4000)),
        ("stripes", lambda a: _slot(a, 0, ENABLED, 1000, bytes(32), 8, 1)),
        ("endless stripes", lambda a: _slot(a, 0, ENABLED, 1000, bytes(32), 8, 2**32 - 1)),
        ("keyslot in the header", lambda a: _slot(a, 0, ENABLED, 1000, bytes(32), 0, 4000)),
        ("keyslot far off", lambda a: _slot(a, 0, ENABLED, 1000, bytes(32), 2**32 - 1, 4000)),
        ("keyslots overlap", lambda a: _slot(a, 1, ENABLED, 1000, bytes(32), 100, 4000)),
        ("no keyslot", lambda a: _slot(a, 0, DISABLED, 0, bytes(32), 8, 4000)),
        ("keyslot's state", lambda a: _slot(a, 3, 7, 0, bytes(32), 8, 4000)),
        ("cut off", lambda a: a[:591]),
        ("cut off within a keyslot", lambda a: a[:100_000]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_luks1_headers_are_refused(what: str, spoil: object, luks1: bytes) -> None:
    hostile = spoil(luks1)  # type: ignore[operator]
    assert hostile != luks1, what
    with pytest.raises(Refused) as caught:
        parse_foreign(hostile)
    assert caught.value.code == "volume.foreign_refused"


def test_the_maker_of_hostile_luks1_headers_makes_valid_ones(luks1: bytes) -> None:
    same = _slot(luks1, 0, ENABLED, 1000, bytes(32), 8, 4000)
    assert same != luks1
    assert parse_foreign(same) == parse_foreign(luks1)


def test_mutants_of_luks2_raise_only_our_error(tmp_path: Path) -> None:
    area = formatted(tmp_path, "--type=luks2", *SMALL)[:290_816]
    stream, count = mutants(area, 0x4000, random.randrange(1 << 32)), times(50_000, 500)
    refused = sum(not _accepted(next(stream)) for _ in range(count))
    assert refused > count * 0.8


def test_mutants_of_luks1_raise_only_our_error(luks1: bytes) -> None:
    dice, count, refused = random.Random(), times(50_000, 500), 0
    for _ in range(count):
        mutant = bytearray(luks1[:592])
        for _ in range(dice.choice((1, 1, 2, 5))):
            at, size = dice.randrange(592), dice.choice((1, 4))
            mutant[at : at + size] = dice.choice(
                (bytes(size), b"\xff" * size, dice.randbytes(size))
            )
        refused += not _accepted(bytes(mutant[: dice.choice((592, 592, 592, dice.randrange(600)))])
                                 + luks1[592:300_000])  # fmt: skip
    assert refused > count * 0.3


def _accepted(area: bytes) -> bool:
    try:
        header = parse_foreign(area)
    except Refused:
        return False
    assert 0 < header.size <= header.start <= min(len(area), MAX_AREA)
    assert header.unit in (512, 4096)
    return True
