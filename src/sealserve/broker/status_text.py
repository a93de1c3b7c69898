"""A broker's status as text for people, from the JSON object of `status`. No database."""

from __future__ import annotations

from typing import Any

__all__ = ["text_of"]


def text_of(status: dict[str, Any]) -> str:
    """The status for people.

    Args:
        status: as `BrokerStatus.to_dict` made it.
    """
    secrets, audit, resources = status["secrets"], status["audit"], status["resources"]
    lines = [
        f"broker {status['name']!r}, fingerprint {status['spki_sha256']}",
        f"certificate ends {status['certificate_ends'][:10]}",
        f"secrets: {secrets['live']} live, {secrets['retired']} retired",
        f"audit chain: {audit['lines']} lines, {audit['problem'] or _checked(audit['checked'])}",
        f"leases: {status['leases']['active']} active",
        f"denials in the last hour: {status['denials_last_hour']}",
        "resources:" if resources else "resources: none",
    ]
    for resource in resources:
        name, version = resource["name"], resource["secret_version"]
        loud = "  SIMULATION allowed" if resource["simulation"] == "allowed" else ""
        held = f"{status['leases']['by_resource'].get(name, 0)} lease(s)"
        policy = resource["policy_sha256"][:16]
        lines.append(f"  {name}  version {version}  policy {policy}  {held}{loud}")
    return "\n".join(lines)


def _checked(checked: dict[str, Any]) -> str:
    if checked["first"] == 1:
        return f"whole (checked until {checked['time']})"
    return (
        f"whole from line {checked['first']} on (checked until {checked['time']};"
        " `audit verify` checks all)"
    )
