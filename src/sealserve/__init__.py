"""Confidential model serving for Intel TDX.

A model owner seals a model; only an attested TDX guest can open it; clients
can check what they talk to before they send a tensor. ``docs/architecture.md``
draws the house; each sub-package says in its docstring what it may know.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
