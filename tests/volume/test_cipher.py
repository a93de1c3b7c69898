"""AES-XTS against published vectors, and our two implementations against each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InternalError
from sealserve.volume.cipher import (
    SectorCipher,
    _Evp,
    _load_libcrypto,
    _Portable,
    sector_cipher,
    wipe,
)
from tests.volume.xts_vectors import NIST, Vector

# IEEE Std 1619-2007, annex B, vector 10: XTS-AES-256, a data unit of 512 bytes, number ff.
KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
PLAIN = bytes(range(256)) * 2
CIPHER = bytes.fromhex(
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
    "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"
    "5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0"
    "c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca"
    "2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0"
    "b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f"
    "93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec"
    "583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a"
    "84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1"
    "505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae"
    "9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29"
    "a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac"
    "6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f"
    "645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385"
    "1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa"
    "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"
)


@pytest.mark.parametrize("portable", [False, True])
def test_published_vector(portable: bool) -> None:
    cipher = sector_cipher(KEY, 512, portable=portable)
    buffer = bytearray(PLAIN)
    cipher.encrypt(buffer, 0xFF * 512)
    assert buffer == CIPHER
    cipher.decrypt(buffer, 0xFF * 512)
    assert buffer == PLAIN
    cipher.close()


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("vector", NIST, ids=lambda vector: str(vector.count))
def test_nist_vectors(vector: Vector, portable: bool) -> None:
    """Their data units are shorter than any sector: asked for past the public door."""
    cipher: SectorCipher
    if portable:
        cipher = _Portable(vector.key, len(vector.plain))
    else:
        library = _load_libcrypto()
        assert library
        cipher = _Evp(library, vector.key, len(vector.plain))
    buffer, offset = bytearray(vector.plain), vector.number * 512
    cipher.encrypt(buffer, offset)
    assert buffer == vector.cipher
    cipher.decrypt(buffer, offset)
    assert buffer == vector.plain
    cipher.close()


@settings(max_examples=30)
@given(
    st.binary(min_size=64, max_size=64).filter(lambda key: key[:32] != key[32:]),
    st.sampled_from([512, 4096]),
    st.integers(1, 9),
    st.integers(0, 1 << 40),
    st.randoms(use_true_random=False),
)
def test_both_implementations_agree(
    key: bytes, size: int, sectors: int, number: int, random: object
) -> None:
    plain = random.randbytes(size * sectors)  # type: ignore[attr-defined]
    results = []
    for portable in (False, True):
        cipher = sector_cipher(key, size, portable=portable)
        buffer = bytearray(plain)
        cipher.encrypt(buffer, number * size)
        results.append(bytes(buffer))
        cipher.decrypt(buffer, number * size)
        assert buffer == plain
        cipher.close()
    assert results[0] == results[1] != plain


def test_sectors_depend_on_their_address() -> None:
    cipher = sector_cipher(KEY, 4096)
    one, two = bytearray(4096), bytearray(4096)
    cipher.encrypt(one, 0)
    cipher.encrypt(two, 4096)
    assert one != two


@pytest.mark.parametrize("portable", [False, True])
def test_misuse_is_an_internal_error(portable: bool) -> None:
    with pytest.raises(InternalError):
        sector_cipher(KEY[:32], 4096, portable=portable)
    with pytest.raises(InternalError):
        sector_cipher(KEY, 1024, portable=portable)
    cipher = sector_cipher(KEY, 4096, portable=portable)
    for buffer, offset in ((bytearray(4095), 0), (bytearray(4096), 1)):
        with pytest.raises(InternalError):
            cipher.decrypt(buffer, offset)


def test_wipe() -> None:
    buffer = bytearray(b"secret")
    wipe(buffer)
    assert buffer == bytes(6)
