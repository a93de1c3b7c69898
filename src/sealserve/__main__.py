"""``python -m sealserve``: the same as the ``sealserve`` command."""

from __future__ import annotations

from sealserve.cli import main

if __name__ == "__main__":
    main()
