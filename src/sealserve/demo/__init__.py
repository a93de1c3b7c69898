"""The three roles end to end on one machine, by the commands a person would type."""

from __future__ import annotations

from sealserve.demo.runner import Outcome, Runner
from sealserve.demo.story import DemoResult, run_demo

__all__ = ["DemoResult", "Outcome", "Runner", "run_demo"]
