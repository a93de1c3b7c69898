"""What a doctor found: findings, in the order in which they will hurt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

__all__ = ["Finding", "Kind", "Report", "State"]

Kind = Literal["lock-out", "risk", "notice"]
"""Guests will get no key; something else is wrong; worth knowing, and nothing is due."""

State = Literal["now", "soon", "later"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that an operator should know.

    Attributes:
        code: stable name of the check (``"collateral.ends"``).
        kind: what it will do.
        subject: what it is about: a resource, a document, a file.
        message: what is or will be the case, in one sentence.
        advice: what to do.
        due: when it happens; ``None``: it is so already, or the day is not known.
        notice_days: how many days before ``due`` it begins to count.
    """

    code: str
    kind: Kind
    subject: str
    message: str
    advice: str
    due: datetime | None = None
    notice_days: int = 0

    def state(self, now: datetime, within_days: int | None = None) -> State:
        """How near it is.

        Args:
            now: the time to look from.
            within_days: what "soon" means; by default the finding's own notice.
        """
        if self.due is None:
            return "later" if self.kind == "notice" else "now"
        if self.due <= now:
            return "now"
        days = self.notice_days if within_days is None else within_days
        return "soon" if self.due - now <= timedelta(days=days) else "later"

    def to_dict(self, now: datetime, within_days: int | None = None) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "code": self.code,
            "kind": self.kind,
            "state": self.state(now, within_days),
            "subject": self.subject,
            "message": self.message,
            "advice": self.advice,
            "due": None if self.due is None else self.due.isoformat(timespec="seconds"),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of one examination, the most urgent first.

    Attributes:
        examined: when.
        findings: sorted by date; what is so already comes first, what has no date last.
    """

    examined: datetime
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding], now: datetime) -> Report:
        """Sort findings into a report."""
        last = datetime.max.replace(tzinfo=UTC)

        def urgency(finding: Finding) -> tuple[datetime, bool, str, str]:
            undated = last if finding.kind == "notice" else now
            when = max(now, finding.due or undated)
            return when, finding.kind != "lock-out", finding.code, finding.subject

        return cls(now, tuple(sorted(findings, key=urgency)))

    def due(self, within_days: int | None = None) -> tuple[Finding, ...]:
        """The findings that are so already or will be within these days; never a notice."""
        return tuple(
            finding
            for finding in self.findings
            if finding.kind != "notice" and finding.state(self.examined, within_days) != "later"
        )

    def to_dict(self, within_days: int | None = None) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "examined": self.examined.isoformat(timespec="seconds"),
            "due": len(self.due(within_days)),
            "findings": [each.to_dict(self.examined, within_days) for each in self.findings],
        }

    def to_text(self, within_days: int | None = None) -> str:
        """The report for people."""
        lines = []
        for finding in self.findings:
            state = finding.state(self.examined, within_days)
            day = f"{finding.due:%Y-%m-%d}" if finding.due is not None else ""
            when = day or {"now": "now", "later": "-"}.get(state, state)
            mark = "!" if finding in self.due(within_days) else " "
            lines += [
                f"{mark} {when:10}  {finding.kind:8}  {finding.subject}: {finding.message}",
                f"{'':24}{finding.advice} [{finding.code}]",
            ]
        count = len(self.due(within_days))
        summary = f"{count} finding(s) due" if count else "nothing is due"
        return "\n".join([*lines, summary])
