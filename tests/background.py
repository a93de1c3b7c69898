"""Work that is begun before the tests that need it, in processes beside the others.

A test with the mark ``begun_first`` begins it; `tests/conftest.py` puts those tests before
all others. Most tests keep one processor busy, so with two the suite is shorter by that
work. Whoever looks at this process's children leaves these out.
"""

from __future__ import annotations

__all__ = ["PROCESSES"]

PROCESSES: set[int] = set()
"""Process ids of what was begun."""
