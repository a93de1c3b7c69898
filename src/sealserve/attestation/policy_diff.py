"""What a change of policy lets in, and what it keeps out.

Rules this module keeps:

* Every change is one of three kinds. *Loosened* means that evidence can be
  accepted which was not; *tightened* the reverse; *renamed* neither.
* In doubt a change is told as both: nothing that lets more in goes without
  being called loosened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from sealserve.attestation.policy import MaskedValue, Policy, Release

__all__ = ["Change", "diff"]

_NO_RULE = "no rule"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two policies.

    Attributes:
        rule: the rule's name in the policy.
        kind: what it does to the set of accepted evidence.
        before, after: what the rule said and says.
    """

    rule: str
    kind: Literal["loosened", "tightened", "renamed"]
    before: str
    after: str

    def to_dict(self) -> dict[str, str]:
        """The change as a JSON object."""
        return {
            "rule": self.rule,
            "kind": self.kind,
            "before": self.before,
            "after": self.after,
        }


def diff(old: Policy, new: Policy) -> tuple[Change, ...]:
    """The changes from one policy to another, by rule; none if they accept the same."""
    lists = ("mrseam", "mrconfigid", "mrowner", "mrownerconfig", "platform_ids")
    return tuple(
        chain(
            _releases(old.releases, new.releases),
            *(_one_of(name, getattr(old, name), getattr(new, name)) for name in lists),
            _masked("td_attributes", old.td_attributes, new.td_attributes),
            _masked("xfam", old.xfam, new.xfam),
            _flags(old, new),
            _statuses(old, new),
            _advisories(old, new),
            _least("min_tcb_evaluation", old.min_tcb_evaluation, new.min_tcb_evaluation),
            _events(old, new),
            _simulation(old, new),
        )
    )


def _releases(old: tuple[Release, ...], new: tuple[Release, ...]) -> Iterator[Change]:
    for release in new:
        if not any(_covers(other, release) for other in old):
            yield Change("releases", "loosened", "not accepted", f"accepted: {_told(release)}")
    for release in old:
        if not any(_covers(other, release) for other in new):
            yield Change("releases", "tightened", f"accepted: {_told(release)}", "not accepted")
    for release in new:
        names = {o.label for o in old if replace(o, label=release.label) == release}
        if names and release.label not in names:
            before = ", ".join(sorted(names))
            yield Change("releases", "renamed", f"label {before}", f"label {release.label}")


def _covers(wide: Release, narrow: Release) -> bool:
    """Whether all that ``narrow`` matches, ``wide`` matches too."""
    registers = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    same = all(getattr(wide, name) == getattr(narrow, name) for name in registers)
    return same and wide.rtmr3 in (None, narrow.rtmr3)


def _told(release: Release) -> str:
    values = (
        f"{name} {getattr(release, name)[:16]}..."
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
        if getattr(release, name) is not None
    )
    return f"{release.label} ({', '.join(values)})"


def _one_of(
    rule: str, old: tuple[str, ...] | None, new: tuple[str, ...] | None
) -> Iterator[Change]:
    if old is None or new is None:
        if old is not new:
            kind: Literal["loosened", "tightened"] = "loosened" if new is None else "tightened"
            yield Change(rule, kind, _listed(old), _listed(new))
        return
    for value in sorted(set(new) - set(old)):
        yield Change(rule, "loosened", "not accepted", f"accepted: {value}")
    for value in sorted(set(old) - set(new)):
        yield Change(rule, "tightened", f"accepted: {value}", "not accepted")


def _listed(values: tuple[str, ...] | None) -> str:
    return _NO_RULE if values is None else "one of: " + (", ".join(values) or "nothing")


def _masked(rule: str, old: MaskedValue | None, new: MaskedValue | None) -> Iterator[Change]:
    before, after = _mask_told(old), _mask_told(new)
    if not _implies(new, old):
        yield Change(rule, "loosened", before, after)
    if not _implies(old, new):
        yield Change(rule, "tightened", before, after)


def _implies(strong: MaskedValue | None, weak: MaskedValue | None) -> bool:
    """Whether every word that keeps ``strong`` keeps ``weak``."""
    if weak is None:
        return True
    weak_mask = int(weak.mask, 16)
    if strong is None:
        return weak_mask == 0
    agree = int(strong.value, 16) & weak_mask == int(weak.value, 16)
    return weak_mask & ~int(strong.mask, 16) == 0 and agree


def _mask_told(value: MaskedValue | None) -> str:
    return _NO_RULE if value is None else f"{value.value} under mask {value.mask}"


def _flags(old: Policy, new: Policy) -> Iterator[Change]:
    for name in ("dynamic_platform", "cached_keys", "smt"):
        was, is_now = getattr(old.platform_flags, name), getattr(new.platform_flags, name)
        if was != is_now:
            told = {True: "allowed", False: "refused"}
            kind: Literal["loosened", "tightened"] = "loosened" if is_now else "tightened"
            yield Change(f"platform_flags.{name}", kind, told[was], told[is_now])


def _statuses(old: Policy, new: Policy) -> Iterator[Change]:
    before = {entry.status: entry.grace_days for entry in old.tcb_statuses}
    after = {entry.status: entry.grace_days for entry in new.tcb_statuses}
    for status in {**before, **after}:
        was, is_now = _days(before, status), _days(after, status)
        if was != is_now:
            kind: Literal["loosened", "tightened"] = "loosened" if is_now > was else "tightened"
            yield Change(f"tcb_statuses.{status}", kind, _grace(was), _grace(is_now))


def _days(accepted: dict[Any, int | None], status: str) -> float:
    """For how many days a status is accepted; -1 for not at all."""
    if status not in accepted:
        return -1
    days = accepted[status]
    return float("inf") if days is None else days


def _grace(days: float) -> str:
    if days < 0:
        return "refused"
    return "accepted" if days == float("inf") else f"accepted for {days:.0f} days"


def _advisories(old: Policy, new: Policy) -> Iterator[Change]:
    before, after = set(old.rejected_advisories), set(new.rejected_advisories)
    for advisory in sorted(before - after):
        yield Change("rejected_advisories", "loosened", f"rejects {advisory}", "does not")
    for advisory in sorted(after - before):
        yield Change("rejected_advisories", "tightened", "does not", f"rejects {advisory}")


def _least(rule: str, old: int, new: int) -> Iterator[Change]:
    if old != new:
        kind: Literal["loosened", "tightened"] = "loosened" if new < old else "tightened"
        yield Change(rule, kind, f"at least {old}", f"at least {new}")


def _events(old: Policy, new: Policy) -> Iterator[Change]:
    """By event name: which payloads must be there, and which may."""
    before, after = _payloads(old), _payloads(new)
    for name in {**before, **after}:
        was, is_now = before.get(name, frozenset()), after.get(name, frozenset())
        told = _events_told(was), _events_told(is_now)
        if not _demands(is_now, was) or not _permits(was, is_now):
            yield Change(f"required_events.{name}", "loosened", *told)
        if not _demands(was, is_now) or not _permits(is_now, was):
            yield Change(f"required_events.{name}", "tightened", *told)


def _payloads(policy: Policy) -> dict[str, frozenset[str | None]]:
    names = {event.name for event in policy.required_events}
    return {
        name: frozenset(e.payload for e in policy.required_events if e.name == name)
        for name in sorted(names)
    }


def _demands(strong: frozenset[str | None], weak: frozenset[str | None]) -> bool:
    """Whether whoever has all events that ``strong`` demands has those of ``weak``."""
    if not weak:
        return True
    return bool(strong) and weak - {None} <= strong


def _permits(wide: frozenset[str | None], narrow: frozenset[str | None]) -> bool:
    """Whether each payload that ``narrow`` permits, ``wide`` permits too."""
    if not wide or None in wide:
        return True
    return bool(narrow) and None not in narrow and narrow <= wide


def _events_told(payloads: frozenset[str | None]) -> str:
    if not payloads:
        return _NO_RULE
    told = sorted("any payload" if p is None else p or "an empty payload" for p in payloads)
    return "required with " + " and ".join(told)


def _simulation(old: Policy, new: Policy) -> Iterator[Change]:
    if old.simulation != new.simulation:
        kind: Literal["loosened", "tightened"] = (
            "loosened" if new.simulation == "allowed" else "tightened"
        )
        yield Change("simulation", kind, old.simulation, new.simulation)
