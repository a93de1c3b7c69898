"""A request's body: read up to a limit, within a time, and unpacked up to the same limit.

Rules this module keeps:

* Neither the bytes on the wire nor what they unpack to is read beyond the limit: a
  gzip bomb costs what an honest request of the greatest size costs.
* Only gzip and deflate (zlib, RFC 1950) are unpacked; a body that ends early, or has
  something behind it, is refused.
"""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from sealserve.errors import InputError, Unavailable

__all__ = ["read_body", "unzip"]

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body, unpacked.

    Raises:
        InputError: ``request.too_large`` or ``request.encoding``.
        Unavailable: ``request.too_late``: the client is too slow;
            ``request.cancelled``: it has gone.
    """
    encoding = request.headers.get("content-encoding", "identity").lower().strip()
    if encoding != "identity" and encoding not in _WINDOWS:
        raise InputError("request.encoding", f"bodies of encoding {encoding!r} are not read")
    if int(request.headers.get("content-length", "0")) > limit:  # digits, or it is no request
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except ClientDisconnect:
        raise Unavailable(
            "request.cancelled", "the client has gone before it had sent its request"
        ) from None
    except TimeoutError:
        raise Unavailable("request.too_late", f"the body did not come within {seconds} s") from None
    return bytes(body) if encoding == "identity" else unzip(bytes(body), limit, encoding)


def unzip(packed: bytes, limit: int, encoding: str = "gzip") -> bytes:
    """Unpack gzip or deflate.

    Raises:
        InputError: ``request.too_large`` or ``request.encoding``.
    """
    machine = zlib.decompressobj(_WINDOWS[encoding])
    try:
        unpacked = machine.decompress(packed, limit + 1)
    except zlib.error:
        raise InputError("request.encoding", "Failed to uncompress the request body") from None
    if len(unpacked) > limit:
        raise _too_large(limit)
    if not machine.eof or machine.unused_data:
        raise InputError("request.encoding", "Failed to uncompress the request body")
    return unpacked


def _too_large(limit: int) -> InputError:
    return InputError("request.too_large", f"the body is larger than {limit} bytes")
