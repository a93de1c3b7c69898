"""Runtimes: what computes a signature. One interface (`base`), one module each."""

from __future__ import annotations

__all__: list[str] = []
