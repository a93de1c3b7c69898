"""AES-256-XTS in numbers that others published."""

from __future__ import annotations

from typing import NamedTuple


class Vector(NamedTuple):
    """One data unit. Its number is the tweak, as it is a sector's."""

    count: int
    number: int
    key: bytes
    plain: bytes
    cipher: bytes


def _vector(count: int, number: int, *texts: str) -> Vector:
    return Vector(count, number, *map(bytes.fromhex, texts))


# NIST CAVP, XTSVS, "format tweak value input - data unit seq no", XTSGenAES256.rsp, [ENCRYPT]:
# the first six with data units of 256 bits, and the first six of 384 bits whose number three
# divides: 512 times another number is no address of a 48-byte unit.
NIST = (
    _vector(
        1,
        187,
        "ef010ca1a3663e32534349bc0bae62232a1573348568fb9ef41768a7674f507a"
        "727f98755397d0e0aa32f830338cc7a926c773f09e57b357cd156afbca46e1a0",
        "ed98e01770a853b49db9e6aaf88f0a41b9b56e91a5a2b11d40529254f5523e75",
        "ca20c55e8dc149687d2541de39c3df6300bb5a163c10ced3666b1357db8bd39d",
    ),
    _vector(
        2,
        223,
        "c4e6b37e1075969d41a7601aa105dd41b18200a028da1f79f55c4d2db478c4e9"
        "8d9ed491cfe52f31ecb7cbb4891eb779e057392b3b27c19cbe9b4875c8c31c22",
        "87ede402d0561359799a41be042ced9a8e15639165ef1a4d2f6785c394d61e5f",
        "a51037198f3f9fe5d05bef52363acec40e86e3abb834180348d2e08627733e65",
    ),
    _vector(
        3,
        229,
        "f7f7946f6188cdf68967293603b82ebf645918462a6727863a9ff9f62400a7d4"
        "14df18cadf5fbd9573f2d9c181aab717a32764326f192f77ac3685b95c28f8eb",
        "9b001eff6bbc3793f3be6f9e71df425a6828bc892d4aac9345889a4d1412b3ba",
        "94d20be24a8246010281c9155ebf3fffd1832c88556d8901c51a4e3c4fdbac47",
    ),
    _vector(
        4,
        10,
        "1dd0d86d63eafbd1011e4a4493f508b4e515c47aae63d4dba1de1f07bdffe559"
        "5f01f5a27bff8441104ec73b15473f7246db7d48218c11dc1c9bfc865f3d768f",
        "5d540dd2cc12f7e1b447f5c3605e0816c4c946166485e9b18db3e00e446c490e",
        "dfe1945125f8cc77df69379eb47112737a532ce5c249898b838aee6860b9bd03",
    ),
    _vector(
        5,
        151,
        "7fddb3044f1a6105052d47081b4eca23ea5412078822125e6f9f178ec4a9cde0"
        "4fe046c9961d835dd5967ffeb39b714554938c2b93260534ccd3aea68dbb882e",
        "202e98470a1138798152e5de50d18b13d16ddf38b838260668569957fd5f70df",
        "bd19fac7605af8bef63f0f2e8095d5883c04c8981de213684903a59c22fc2fe6",
    ),
    _vector(
        6,
        200,
        "9e2f4c3dfcdae5d9c6f959fc5a9e68428daab13d050a941c705fff11a3b8e311"
        "fb252a9ca503d1a4f71787be16e34e82a73403b5a0c0d0ae857f10058682b589",
        "29899ec917532a57815aa4c603d209204cd05e94aa80060ba36f16bb4342b023",
        "9bc9da843270fdfa4263240c3a82e45f63dbbb0e743bcf6ca2b231111eb3b094",
    ),
    _vector(
        107,
        21,
        "61b49070a09d70dc8a6be275ea70aee649034c7188d3e9fe1b65251e4462f517"
        "2ecd2b3cab70f3a3bb289dd47c5955cdf683a33a53126aa0750dada4da94d71e",
        "871e5e5cdcac7a47ce86f5dd0482e4ceb0ddd40eb363e553c397e351d7a4af3e"
        "68d9e252930b8f58746610c4a2aacb65",
        "399080a1e6770a932224a683011fad4a39f9371045b42ea05bad3c7b3799f4a7"
        "010e992fdd5e19a599039b83d7c3d117",
    ),
    _vector(
        108,
        39,
        "87dc84c8b403b8588a4c9fa5d70a0e9fd34a1c8994c6fd4f20589a1b226a4d12"
        "91c03a8cd06edb0243693b382810cdc41ba06380c72b4adf22e0f86c81ee7235",
        "e859c05a755299db2dc4ef8bfb6ad4e46f30887365ec8a5cac916fa18bb4ef64"
        "fe0c52365e267baf8cf2b77a97ffa002",
        "ba68c1e2bb95799272dfb7b7ca23306daddb6e67144c5f2f82586229e798ffdf"
        "12f7382ce2191886e6eb172ed570f700",
    ),
    _vector(
        109,
        162,
        "92e0f1a9c7d1faf5590596a0181c75c688878626d9bcd937343ebaf961945fd8"
        "c2cc29b49d6ec8a0e1ab9bcdb193c2e8746fceab70648dc9bc83b4c136db7824",
        "67aa0f5c1c62f8397745c043565b1ab9c60033a0300b42a72116023fd8f3f063"
        "88551c41811cd56c662c6302599c24a5",
        "89e22655a13e64569d75dcdc6d06c9541b76a1925876c4f8c8c33686b54f17dd"
        "f792a8417f1fbde1a0d89fa9e4736128",
    ),
    _vector(
        112,
        207,
        "454070609ea00e4941f89afda3b3460290f19d1c81c0eb8a90d9d95627158506"
        "6939b5791800a5bf2a282c109bde530ca0e405baa86607f57043dbf6776ee9ad",
        "127344348d0ac7a14352c8516b22d7d3a67ec8e8a225b6d55b193f7e59abd631"
        "a46028a5082879fced7a439c58643073",
        "72ae8078bc226f20856d0095548ebfae570925abc197458dfca0761d9bdf29c0"
        "960c1030ac545671b9b1b8528ad174ba",
    ),
    _vector(
        113,
        183,
        "1d5c5abf6de509fd2481be55dd7c57ae2af7e6af668668b959c9b4af7cb72e5d"
        "74d2ad9d3520e8e60b4f35e369b002d23d96053b1b6dd930c6e6abc7fe046319",
        "10f9a7211f29f5ba740518bcb323c14b75387a8484eb3c2a24cbe97711e063c7"
        "3bc6c4e7faf637122a9277c2af0cd56c",
        "7e9c6572f49c65f57c5d3451523f6f2c6d766d549641c8b7568dfd99ce197a39"
        "2702f66a6106a59f3a15af2dfee8216a",
    ),
    _vector(
        115,
        204,
        "a03716d0512dffc48ba7aef79b2b374d84b9e336a646da3704e93a024848be62"
        "4b22157ba595460e3c0ee0934d19cb3a6105b6afc6a0c1bc8fad468def2bb665",
        "1e922233078105fd2b39474b12a4502600d6602fcbc0aeec2aa123e32e0fb82d"
        "f754d32fe948ccca33280a646c0833ca",
        "18c0631031aa8c52347529899687041e8e2548c07d155e7d0669ac6fe48cf1cc"
        "5fc3c83bb1e28dc969080e5023636e46",
    ),
)
