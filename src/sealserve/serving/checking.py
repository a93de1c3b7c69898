"""What a server would do with a model: said beforehand, by loading it as the server would."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sealserve.logs import make_log
from sealserve.serving.batching.rows import Verdict, judge
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.known_answers import check_against
from sealserve.serving.runtimes.choice import Choice, ChoosingRuntime

__all__ = ["Checked", "check", "check_answers"]


@dataclass(frozen=True)
class Checked:
    """One signature.

    Attributes:
        choice: who serves it, and how.
        verdict: whether ``--enable_batching`` would join its requests; None if nobody serves it.
    """

    choice: Choice
    verdict: Verdict | None

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = asdict(self.choice)
        if self.verdict is not None:
            found["batched"], found["batching"] = self.verdict.batched, self.verdict.reason
        return found

    def __str__(self) -> str:
        choice = self.choice
        lines = [choice.signature, f"  {choice.runtime or 'NOT SERVED'}: {choice.reason}"]
        if choice.tuning:
            lines.append(f"  {choice.tuning}")
        if self.verdict is not None:
            may = "can be batched" if self.verdict.batched else "cannot be batched"
            lines.append(f"  {may}: {self.verdict.reason}")
        return "\n".join(lines)


def check(version: Path, config: RuntimeConfig) -> list[Checked]:
    """Load a version directory and look at each of its signatures.

    Raises:
        SealserveError: a ``servable.*`` or ``file.*`` code: it is no model.
    """
    model, choices = ChoosingRuntime(config, make_log(io.StringIO())).choose(version)
    try:
        return [
            Checked(
                choice,
                judge(model, choice.signature) if choice.signature in model.signatures else None,
            )
            for choice in choices
        ]
    finally:
        model.close()


def check_answers(version: Path, config: RuntimeConfig, known: Path, tolerance: float) -> int:
    """Load a version directory and compare its answers with known ones.

    Returns:
        How many answers were compared.

    Raises:
        SealserveError: see `check` and `known_answers.check_against`.
    """
    model, _ = ChoosingRuntime(config, make_log(io.StringIO())).choose(version)
    try:
        return check_against(model, known, tolerance)
    finally:
        model.close()
