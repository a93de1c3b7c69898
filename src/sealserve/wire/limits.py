"""Sizes that more than one room holds to."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_RECORD_BYTES"]

MAX_RECORD_BYTES: Final = 48 * 1024
"""Bytes of a signed volume record: room for about 200 models.

So that record, secret and HPKE's overhead fit into one message of the broker.
"""
