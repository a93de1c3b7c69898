"""The guest's life: attest, open, measure, serve, and the way back down."""

from __future__ import annotations

from sealserve.guest.bring_up import GuestConfig, up

__all__ = ["GuestConfig", "up"]
