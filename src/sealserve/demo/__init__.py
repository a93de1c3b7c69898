"""The three roles end to end on one machine, by the commands a person would type."""

from __future__ import annotations

from sealserve.demo.story import run_demo

__all__ = ["run_demo"]
