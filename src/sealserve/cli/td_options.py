"""The options by which `attest quote` and `guest` are told where the TD is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["SYSFS", "SimulationOption", "SysfsOption"]

SYSFS = Path("/sys")

SysfsOption = Annotated[
    Path, typer.Option(help="Root of the kernel's TDX interfaces.", file_okay=False)
]
SimulationOption = Annotated[
    bool, typer.Option("--simulation", help="SIMULATION ONLY: accept a simulated TD.")
]
