"""The doctor: each thing it warns of is brought about, and one that is well has nothing due."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sealserve.attestation import policy_file
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_outlook import PlatformTcb, status_under
from sealserve.attestation.policy import AcceptedStatus, Policy, Release
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker
from sealserve.broker.operation.checks import CHECKS
from sealserve.broker.operation.doctor import examine, report_on
from sealserve.broker.operation.findings import Finding, Report
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.seen import Platform, Seen
from sealserve.broker.operation.snapshot import (
    AuditState,
    Proposal,
    ResourceState,
    SecretVersion,
    Snapshot,
)
from sealserve.broker.tables import AuditLineRow, SecretRow
from sealserve.errors import Unavailable
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import BOTH_STORES, RESOURCE, World, policy_for, utc_now
from tests.simulated import EVENTS, fitting_policy, verified

NOW = utc_now().replace(microsecond=0)
DAY = timedelta(days=1)
TCB = PlatformTcb(
    bytes.fromhex("51494d000000"),
    bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8),
    11,
    bytes([6, 1, 3]) + bytes(13),
    bytes([6, 1, 3]) + bytes(13),
)
RELEASE = Release(label="good", **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), "00" * 48))
POLICY = Policy(releases=(RELEASE,), simulation="allowed")


def secret(version: int = 1, **changes: Any) -> SecretVersion:
    made = SecretVersion("demo", version, "volume-key", "live", NOW - 100 * DAY, None)
    return replace(made, **changes)


def resource(**changes: Any) -> ResourceState:
    made = ResourceState("models/demo", 1, (secret(),), POLICY, "ab" * 32, 600, 1)
    return replace(made, **changes)


def healthy_seen() -> Seen:
    seen = Seen()
    seen.matched["models/demo", "good"] = NOW - DAY
    return seen


def look(platform: SimulatedPlatform, **changes: Any) -> Look:
    """At a broker that is well: collateral for 60 days, one resource, a guest of yesterday."""
    collateral = platform.collateral(NOW, CollateralOptions(lifetime=60 * DAY))
    snapshot = Snapshot(
        taken=NOW,
        clock=NOW,
        resources=(resource(),),
        leases=(),
        active_leases=0,
        principals=(("alice", "admin", NOW + 300 * DAY),),
        proposals=(),
        audit=AuditState(5, "cd" * 32, 3, NOW - DAY, NOW - DAY / 2),
    )
    well: dict[str, Any] = {
        "now": NOW,
        "snapshot": snapshot,
        "seen": healthy_seen(),
        "certificate_ends": NOW + 1000 * DAY,
        "simulated": True,
        "collateral": (Collateral.from_json(collateral),),
        "audit_problem": None,
        "kek_problem": None,
        "free_bytes": 10 << 30,
    }
    for name in ("resources", "principals", "audit", "clock", "proposals"):
        if name in changes:
            well["snapshot"] = replace(well["snapshot"], **{name: changes.pop(name)})
    return Look(**(well | changes))


def due(report: Report, within: int | None = None) -> list[str]:
    return [finding.code for finding in report.due(within)]


def test_a_broker_that_is_well_has_nothing_due_but_dates(platform: SimulatedPlatform) -> None:
    report = report_on(look(platform))
    assert due(report) == []
    days = [finding.due for finding in report.findings]
    assert days == sorted(days, key=lambda day: day or NOW)
    assert {finding.code for finding in report.findings} == {
        "collateral.ends",
        "certificate.broker_ends",
        "certificate.principal_ends",
    }
    # Each signed document and CRL has its own date.
    parts = {f.subject.partition(" ")[0] for f in report.findings if f.code == "collateral.ends"}
    assert {"tcb_info", "qe_identity", "root_ca_crl", "pck_crl"} <= parts


def with_policy(**changes: Any) -> tuple[ResourceState, ...]:
    return (resource(policy=replace(POLICY, **changes)),)


def with_seen(**fields: Any) -> Seen:
    seen = healthy_seen()
    for name, value in fields.items():
        setattr(seen, name, value)
    return seen


SICK: list[tuple[str, str, dict[str, Any]]] = [
    ("certificate.broker_ends", "lock-out", {"certificate_ends": NOW + 80 * DAY}),
    ("certificate.principal_ends", "risk", {"principals": (("bob", "auditor", NOW + 9 * DAY),)}),
    (
        "collateral.too_old_for_policy",
        "lock-out",
        {"resources": with_policy(min_tcb_evaluation=99)},
    ),
    ("policy.unreadable", "lock-out", {"resources": (resource(policy=None),)}),
    ("policy.no_releases", "lock-out", {"resources": with_policy(releases=())}),
    (
        "policy.no_live_measurement",
        "lock-out",
        {"seen": with_seen(matched={}, denied_by_policy={"models/demo": NOW - DAY})},
    ),
    ("secret.not_live", "lock-out", {"resources": (resource(versions=()),)}),
    (
        "secret.not_live",
        "lock-out",
        {"resources": (resource(versions=(secret(state="disabled"),)),)},
    ),
    (
        "secret.not_live",
        "lock-out",
        {"resources": (resource(versions=(secret(expires=NOW - DAY),)),)},
    ),
    (
        "secret.expires",
        "lock-out",
        {"resources": (resource(versions=(secret(expires=NOW + 13 * DAY),)),)},
    ),
    (
        "secret.rotation_forgotten",
        "risk",
        {"resources": (resource(versions=(secret(1), secret(2, created=NOW - 15 * DAY))),)},
    ),
    ("kek.unusable", "lock-out", {"kek_problem": "the key-encryption key has mode 0644"}),
    ("directory.open", "risk", {"open_directory": True}),
    ("clock.differs", "risk", {"clock": NOW - timedelta(seconds=40)}),
    (
        "release.failing",
        "lock-out",
        {"seen": with_seen(failed={"kek.vault_unreachable": NOW - timedelta(minutes=50)})},
    ),
    ("disk.low", "lock-out", {"free_bytes": 1 << 20}),
    ("audit.broken", "risk", {"audit_problem": "line 3: the line was changed"}),
    (
        "audit.checkpoint_old",
        "risk",
        {"audit": AuditState(9, "cd" * 32, 3, NOW - 20 * DAY, NOW - 8 * DAY)},
    ),
    ("policy.simulation_allowed", "risk", {"simulated": False}),
    ("policy.simulation_denied", "lock-out", {"resources": with_policy(simulation="denied")}),
]


@pytest.mark.parametrize(("code", "kind", "changes"), SICK)
def test_what_is_wrong_is_due(
    platform: SimulatedPlatform, code: str, kind: str, changes: dict[str, Any]
) -> None:
    report = report_on(look(platform, **changes))
    found = [finding for finding in report.due() if finding.code == code]
    assert [finding.kind for finding in found] == [kind]
    assert found[0].message
    assert found[0].advice
    assert due(report) == [code]  # and nothing else is


def test_collateral_is_due_part_by_part(platform: SimulatedPlatform) -> None:
    ending = Collateral.from_json(
        platform.collateral(NOW, CollateralOptions(lifetime=timedelta(days=10)))
    )
    report = report_on(look(platform, collateral=(ending,)))
    assert len(due(report)) == 4
    assert set(due(report)) == {"collateral.ends"}
    assert due(report, within=9) == []
    later = report_on(look(platform, collateral=(ending,), now=NOW + 11 * DAY))
    assert "has ended" in next(f for f in later.findings if f.code == "collateral.ends").message


def behind(platform: SimulatedPlatform, **changes: Any) -> Collateral:
    """Collateral with a newer level above the simulated platform's own, which is out of date."""
    document = json.loads(json.loads(platform.collateral(NOW))["tcb_info"])
    (level,) = document["tcbLevels"]
    above = json.loads(json.dumps(level))
    above["tcb"]["sgxtcbcomponents"][0] |= {"svn": 9, "type": "Microcode", "category": "BIOS"}
    above["tcbDate"] = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    level["tcbStatus"] = "OutOfDate"
    level["tcbDate"] = (NOW - 20 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    options = CollateralOptions(
        lifetime=60 * DAY, tcb_info={"tcbLevels": [above, level]}, **changes
    )
    return Collateral.from_json(platform.collateral(NOW, options))


def on_platform(last: datetime = NOW - DAY) -> Seen:
    seen = healthy_seen()
    seen.platforms[TCB] = Platform(last, "UpToDate", NOW - 100 * DAY, frozenset({"models/demo"}))
    return seen


def statuses(days: int | None) -> tuple[AcceptedStatus, ...]:
    return (
        AcceptedStatus(status="UpToDate"),
        AcceptedStatus(status="OutOfDate", grace_days=days),
    )


def grace(days: int | None) -> tuple[ResourceState, ...]:
    return with_policy(tcb_statuses=statuses(days))


def test_a_tcb_recovery_locks_a_seen_platform_out(platform: SimulatedPlatform) -> None:
    report = report_on(look(platform, seen=on_platform(), collateral=(behind(platform),)))
    (finding,) = report.due()
    assert (finding.code, finding.kind) == ("tcb.denied", "lock-out")
    assert "Microcode (BIOS) has 3, needs 9" in finding.message
    unseen = look(platform, seen=on_platform(NOW - 40 * DAY), collateral=(behind(platform),))
    assert due(report_on(unseen)) == []


def test_grace_ends_when_the_appraisal_says_so(platform: SimulatedPlatform) -> None:
    changes: dict[str, Any] = {"seen": on_platform(), "resources": grace(110)}
    report = report_on(look(platform, collateral=(behind(platform),), **changes))
    (finding,) = report.due()
    assert (finding.code, finding.kind) == ("tcb.grace_ends", "lock-out")
    assert finding.due is not None
    policy = fitting_policy(tcb_statuses=statuses(110))
    dated = status_under(TCB, behind(platform)).date
    td = verified(tcb_status="OutOfDate", tcb_date=dated, collateral_ends=NOW + 900 * DAY)
    for moment, trusted in ((finding.due - timedelta(seconds=1), True), (finding.due, False)):
        assert appraise(policy, td, EVENTS, now=moment).trusted is trusted
    changes["resources"] = grace(9)
    assert due(report_on(look(platform, collateral=(behind(platform),), **changes))) == [
        "tcb.denied"
    ]


def test_an_accepted_platform_behind_the_newest_level_is_a_notice(
    platform: SimulatedPlatform,
) -> None:
    changes = {"seen": on_platform(), "resources": grace(None)}
    report = report_on(look(platform, collateral=(behind(platform),), **changes))
    assert due(report) == []
    assert "tcb.newer_level" in [finding.code for finding in report.findings]


def test_the_next_evaluation_is_held_against_platforms(platform: SimulatedPlatform) -> None:
    early = behind(platform, evaluation_number=18)
    today = look(platform, seen=on_platform(), early=(early,))
    report = report_on(today)
    (finding,) = [f for f in report.findings if f.code == "tcb.denied_by_next_evaluation"]
    assert finding.due == today.collateral[0].ends  # until then the collateral of today may be kept
    assert "evaluation 18" in finding.message
    assert due(report, within=61)[0] in ("collateral.ends", "tcb.denied_by_next_evaluation")


def test_each_platform_model_has_its_own_end(platform: SimulatedPlatform) -> None:
    """A store for two models, of which one ends soon, and which lacks a third."""
    lasting, ending = (
        Collateral.from_json(
            platform.collateral(
                NOW, CollateralOptions(lifetime=days * DAY, tcb_info={"fmspc": fmspc})
            )
        )
        for days, fmspc in ((60, "51494D000000"), (10, "51494D000001"))
    )
    report = report_on(look(platform, seen=on_platform(), collateral=(lasting, ending)))
    subjects = {f.subject for f in report.due()}
    assert "tcb_info of 51494d000001 (platform CA)" in subjects
    assert not any("51494d000000" in subject for subject in subjects)
    report = report_on(look(platform, seen=on_platform(), collateral=(ending,)))
    (missing,) = [f for f in report.findings if f.code == "collateral.platform_missing"]
    assert missing.kind == "lock-out"
    assert "platforms 51494d000000" in missing.subject
    assert "--fmspc 51494d000000" in missing.advice


def test_without_collateral_the_audit_logs_own_word_is_used(platform: SimulatedPlatform) -> None:
    seen = on_platform()
    seen.platforms[TCB] = replace(seen.platforms[TCB], status="OutOfDate")
    report = report_on(look(platform, seen=seen, collateral=()))
    assert due(report) == ["tcb.denied"]
    assert "collateral.not_examined" in [finding.code for finding in report.findings]


def test_notices_are_never_due(platform: SimulatedPlatform) -> None:
    two = replace(POLICY, releases=(RELEASE, replace(RELEASE, label="old")))
    idle = report_on(look(platform, seen=Seen()))
    unused = report_on(look(platform, resources=(resource(policy=two),)))
    many = healthy_seen()
    for _ in range(20):
        many.feed(denial(NOW))
    denied = report_on(look(platform, seen=many))
    waiting = Proposal("ab" * 16, "secret.destroy", "alice", NOW + DAY)
    proposed = report_on(look(platform, proposals=(waiting,)))
    for report, code in (
        (proposed, "proposal.waiting"),
        (idle, "policy.no_live_measurement"),
        (unused, "policy.release_unused"),
        (denied, "release.many_denials"),
    ):
        assert due(report) == []
        assert code not in due(report, within=36500)
        (finding,) = [f for f in report.findings if f.code == code]
        assert finding.kind == "notice"
        # After everything that has a date, if it has none itself.
        assert finding.due or report.findings[-1] is finding


def denial(time: datetime, code: str = "policy.mrtd_unknown") -> str:
    entry = {
        "event": "release", "verdict": "denied", "code": "release.denied",
        "time": time.isoformat(timespec="milliseconds"), "resource": "models/demo",
        "peer": "192.0.2.7", "anchor": "SIMULATION", "reasons": [{"code": code}],
    }  # fmt: skip
    return json.dumps(entry)


def test_a_failure_inside_is_remembered_for_an_hour(world: World) -> None:
    """The audit line of a failed release names what the guest is not told."""
    with world.broker.store.writing() as session:
        session.get_one(SecretRow, (RESOURCE, 1)).wrapped = b"not under this key"
    with pytest.raises(Unavailable):
        world.ask()
    collateral = Collateral.load(world.judge.collateral._path)
    report = examine(world.broker.root, now=utc_now(), collateral=(collateral,))
    (finding,) = [each for each in report.due() if each.code == "release.failing"]
    assert "kek.unwrap_failed" in finding.message
    later = examine(world.broker.root, now=utc_now() + timedelta(hours=2), collateral=(collateral,))
    assert "release.failing" not in due(later)


def test_seen_is_bounded_and_survives_any_line() -> None:
    seen = Seen()
    for odd in ("", "{", "5", "[]", '"x"', '{"time": 3}', '{"time": "2026-01-01"}'):
        seen.feed(odd)
    seen.feed(json.dumps({"time": NOW.isoformat(), "event": "release", "reasons": [5]}))
    for minute in range(4000):
        seen.feed(denial(NOW + timedelta(minutes=minute)))
    assert len(seen.denials) == 25
    assert len(seen._denied_in_minute) <= 2881
    end = NOW + timedelta(minutes=3999)
    assert seen.denials_since(end - timedelta(minutes=9)) == 10
    for number in range(1100):
        line = {
            "time": NOW.isoformat(), "event": "release", "verdict": "released", "resource": "r",
            "image_release": "x", "tcb_date": "2026-01-01", "tcb_status": "UpToDate",
            "platform": replace(TCB, pce_svn=number).to_dict(),
        }  # fmt: skip
        seen.feed(json.dumps(line))
    assert len(seen.platforms) == 1024


def test_a_renewal_keeps_a_measurement_alive_and_is_no_release() -> None:
    seen = Seen()
    entry = json.loads(denial(NOW)) | {
        "event": "renewal", "verdict": "renewed", "image_release": "good", "reasons": [],
        "platform": TCB.to_dict(), "tcb_date": "2026-01-01", "tcb_status": "UpToDate",
    }  # fmt: skip
    seen.feed(json.dumps(entry))
    assert seen.matched == {("models/demo", "good"): NOW}
    assert list(seen.platforms) == [TCB]
    assert not seen.releases
    assert not seen.denials
    seen.feed(json.dumps(entry | {"verdict": "denied"}))
    assert len(seen.denials) == 1


def test_the_report_sorts_what_is_so_before_what_will_be() -> None:
    def finding(code: str, **changes: Any) -> Finding:
        made: dict[str, Any] = {"kind": "lock-out", "subject": "s", "message": "m", "advice": "a"}
        return Finding(code=code, **(made | changes))

    report = Report.of(
        [
            finding("x.later", due=NOW + 9 * DAY, notice_days=5),
            finding("x.notice", kind="notice"),
            finding("x.soon", due=NOW + 2 * DAY, notice_days=5),
            finding("x.risk", kind="risk"),
            finding("x.now"),
            finding("x.past", due=NOW - DAY),
        ],
        NOW,
    )
    order = [f.code for f in report.findings]
    assert order == ["x.now", "x.past", "x.risk", "x.soon", "x.later", "x.notice"]
    states = [each["state"] for each in report.to_dict()["findings"]]
    assert states == ["now", "now", "now", "soon", "later", "later"]
    assert due(report) == order[:4]
    assert due(report, within=9) == order[:5]
    assert report.to_text().splitlines()[-1] == "4 finding(s) due"


def test_every_check_is_documented(platform: SimulatedPlatform) -> None:
    guide = Path(__file__).parents[3] / "docs" / "guide-broker.md"
    text = guide.read_text()
    source = Path(CHECKS[0].__code__.co_filename).parent
    codes = {
        line.split('"')[1]
        for name in ("checks.py", "platform_checks.py")
        for line in (source / name).read_text().splitlines()
        if line.strip().startswith('code="')
    }
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in text} == set()


# --- against a real broker ---


@BOTH_STORES
def test_a_real_broker_after_a_release(world: World) -> None:
    world.ask()
    collateral = Collateral.load(world.judge.collateral._path)
    report = examine(world.broker.root, now=utc_now(), collateral=(collateral,))
    codes = [finding.code for finding in report.findings]
    assert "policy.simulation_allowed" not in codes  # it is a SIMULATION broker, and says so
    unmatched = [f.subject for f in report.findings if f.code == "policy.no_live_measurement"]
    assert unmatched == ["models/other"]
    assert due(report) == []


def test_a_real_denial_says_that_no_measurement_is_live(world: World) -> None:
    stranger = SoftwareTd(world.platform, firmware="another-firmware")
    with pytest.raises(Exception, match="denied"):
        world.ask(stranger)
    report = examine(world.broker.root, now=utc_now())
    assert due(report) == ["policy.no_live_measurement"]


@pytest.fixture
def examined(broker: Broker, platform: SimulatedPlatform) -> Callable[[], list[str]]:
    broker.put_secret(
        RESOURCE, seal_for(broker.identity, b"k" * 64),
        record=b"r", owner_public_key=b"o", policy=policy_for(SoftwareTd(platform)),
    )  # fmt: skip
    return lambda: due(examine(broker.root, now=utc_now()))


def test_a_kek_that_others_can_read_is_a_finding_and_no_error(
    broker: Broker, examined: Callable[[], list[str]]
) -> None:
    (broker.root / "kek").chmod(0o640)
    assert examined() == ["kek.unusable"]
    (broker.root / "kek").unlink()
    assert examined() == ["kek.unusable"]


def test_a_directory_that_others_can_write_is_a_finding(
    broker: Broker, examined: Callable[[], list[str]]
) -> None:
    broker.root.chmod(0o770)
    assert examined() == ["directory.open"]


def test_a_changed_line_is_a_finding(broker: Broker, examined: Callable[[], list[str]]) -> None:
    with broker.store.writing() as session:
        row = session.get_one(AuditLineRow, 1)
        row.line = row.line.replace("secret.put", "secret.pot")
    assert examined() == ["audit.broken"]


def test_an_old_unsigned_chain_is_a_finding(
    broker: Broker, examined: Callable[[], list[str]]
) -> None:
    report = examine(broker.root, now=utc_now() + 8 * DAY)
    assert set(due(report)) == {"audit.checkpoint_old", "clock.differs"}  # of another week


def test_a_secret_that_expires_is_a_finding(
    broker: Broker, examined: Callable[[], list[str]]
) -> None:
    with broker.store.writing() as session:
        session.get_one(SecretRow, (RESOURCE, 1)).expires = (utc_now() + DAY).isoformat()
    assert examined() == ["secret.expires"]


def test_policies_are_read_as_the_release_reads_them(
    broker: Broker, examined: Callable[[], list[str]]
) -> None:
    empty = policy_file.dump(Policy()).encode()
    broker.put_secret(
        "models/none", seal_for(broker.identity, b"k" * 64),
        record=b"r", owner_public_key=b"o", policy=empty,
    )  # fmt: skip
    assert examined() == ["policy.no_releases"]
