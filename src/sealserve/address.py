"""``HOST:PORT`` as people write it, read in one place."""

from __future__ import annotations

from dataclasses import dataclass

from sealserve.errors import InputError

__all__ = ["Address"]


@dataclass(frozen=True)
class Address:
    """A TCP address: a host name or IP address, and a port from 0 to 65535."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, where: str) -> Address:
        """Read ``host:port``; an IPv6 address stands in brackets (``[::1]:8500``).

        Args:
            text: the address as given.
            where: the flag or field it came from, for the error.

        Raises:
            InputError: ``address.malformed``.
        """
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""  # a bare IPv6 address: which colon ends it is anyone's guess
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise InputError(
                "address.malformed",
                f"{text!r} is not an address",
                where=where,
                hint="write it as HOST:PORT, for example grpc.tf.service.com:8500",
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
