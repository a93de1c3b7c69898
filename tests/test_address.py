"""HOST:PORT, read in one place."""

from __future__ import annotations

import pytest

from sealserve.address import Address
from sealserve.errors import InputError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:8500", "localhost", 8500),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("grpc.tf.service.com:65535", "grpc.tf.service.com", 65535),
        ("[::1]:8500", "::1", 8500),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = Address.parse(text, where="--url")
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "localhost", ":8500", "localhost:", "h:65536", "h:-1", "h:٣", "::1:8500", "h:x"],
)
def test_anything_else_is_refused_and_says_where_it_stood(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Address.parse(text, where="--url")
    assert caught.value.code == "address.malformed"
    assert caught.value.where == "--url"
