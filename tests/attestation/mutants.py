"""Seeded damage to a good quote and its collateral."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

__all__ = ["collateral_mutants", "quote_mutants"]


def quote_mutants(quote: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of a quote with one thing wrong with each."""
    chance = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(quote)
        chance.choice(_DAMAGE)(mutant, chance)
        yield bytes(mutant)


def collateral_mutants(collateral: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of a collateral object with one field damaged in each."""
    chance = random.Random(seed)
    fields: dict[str, str] = json.loads(collateral)
    for _ in range(count):
        name = chance.choice(sorted(fields))
        mutant = bytearray(fields[name].encode())
        chance.choice(_TEXT_DAMAGE)(mutant, chance)
        yield json.dumps({**fields, name: mutant.decode("latin-1")}).encode()


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def _set(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.choice(b"\x00\x01\x7f\x80\xff")


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _drop(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randrange(1, 65)]


def _insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = chance.randbytes(chance.randrange(1, 65))


def _overwrite(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    content = chance.randbytes(chance.randrange(1, 65))
    data[start : start + len(content)] = content


def _move(data: bytearray, chance: random.Random) -> None:
    """A piece of the thing itself in another of its places."""
    size = chance.choice((2, 4, 32, 64, 384))
    source, target = (chance.randrange(len(data)) for _ in range(2))
    data[target : target + size] = data[source : source + size]


def _letter(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.choice(b'09afAF{}[]:,"-=+/ \n')


_DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _flip, _set, _cut, _drop, _insert, _overwrite, _move,
)  # fmt: skip
_TEXT_DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _letter, _letter, _letter, _flip, _cut, _drop, _move,
)  # fmt: skip
