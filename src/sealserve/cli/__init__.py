"""The command line: parse, call, print; no logic.

One module a command group. A command function imports the package it calls in
its own body, so that ``sealserve --help`` is quick and an extra that is not
installed is missed only by the commands that need it.
"""

from __future__ import annotations

from sealserve.cli.main import main

__all__ = ["main"]
