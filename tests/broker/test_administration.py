"""What administrators may do, and what needs two of them: decided in one place."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from sealserve.broker.administration import OPERATIONS, Administration, Look, Operation
from sealserve.broker.config import AdminConfig, BrokerConfig
from sealserve.broker.config_file import render
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker, create
from sealserve.broker.principals import Caller, make_identity, person_of
from sealserve.broker.store import Store
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.admin import (
    ALICE,
    BOB,
    EVE,
    NAME,
    ROOT,
    SECRET,
    Person,
    policy,
    put_request,
    with_two_person,
)  # fmt: skip
from tests.broker.conftest import BOTH_STORES
from tests.soak import times


@pytest.fixture
def staffed(broker: Broker, tmp_path: Path) -> Broker:
    """A broker with one secret, two administrators and an auditor."""
    Administration(broker).perform(ROOT, put_request(broker))
    for name, role in (("alice", "admin"), ("bob", "admin"), ("eve", "auditor")):
        Person.make(name, tmp_path).add_to(broker, role)
    return broker


def lines(broker: Broker, event: str | None = None) -> list[dict[str, Any]]:
    """The audit lines; the chain is checked on the way."""
    broker.audit.verify()
    entries = [json.loads(line) for line in broker.audit.lines()]
    return [entry for entry in entries if event in (None, entry["event"])]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(SealserveError) as caught:
        act()
    assert isinstance(caught.value, (InputError, Refused, Unavailable))
    return caught.value.code


def destroy(version: int = 1) -> v1_pb2.SecretDestroyRequest:
    return v1_pb2.SecretDestroyRequest(secret=NAME, version=version)


def set_policy(*labels: str, **more: str) -> v1_pb2.PolicySetRequest:
    return v1_pb2.PolicySetRequest(resource=NAME, policy=policy(*labels, **more))


# --- acts and their audit lines -------------------------------------------------------


@BOTH_STORES
def test_a_secret_from_its_deposit_to_its_destruction(staffed: Broker) -> None:
    admin = Administration(staffed)

    def state(kind: type[Message]) -> str:
        result = admin.perform(ALICE, kind(secret=NAME, version=1))
        assert result["current_of"] == [NAME]
        return str(result["state"])

    assert staffed.store.secret(NAME, 1, staffed.kek) == SECRET
    assert state(v1_pb2.SecretDisableRequest) == "disabled"
    assert refusal(lambda: staffed.store.secret(NAME, 1, staffed.kek)) == "store.secret_not_live"
    assert state(v1_pb2.SecretEnableRequest) == "live"
    assert state(v1_pb2.SecretRetireRequest) == "retired"
    assert refusal(lambda: state(v1_pb2.SecretEnableRequest)) == "secret.state_forbids"
    assert state(v1_pb2.SecretDestroyRequest) == "destroyed"
    assert refusal(lambda: state(v1_pb2.SecretDestroyRequest)) == "secret.state_forbids"
    told = [(line["event"], line.get("principal")) for line in lines(staffed)][-6:]
    assert told == [
        ("secret.disable", "alice"), ("secret.enable", "alice"), ("secret.retire", "alice"),
        ("admin.refused", "alice"), ("secret.destroy", "alice"), ("admin.refused", "alice"),
    ]  # fmt: skip


def test_a_destroyed_version_is_gone_from_the_database(staffed: Broker) -> None:
    from sealserve.broker.tables import SecretRow

    Administration(staffed).perform(ALICE, destroy())
    with staffed.store.reading() as session:
        row = session.get_one(SecretRow, (NAME, 1))
        assert (row.state, row.wrapped) == ("destroyed", None)
    Administration(staffed).perform(ALICE, put_request(staffed, replace=True))
    with staffed.store.reading() as session:  # a later version does not make it retired
        assert session.get_one(SecretRow, (NAME, 1)).state == "destroyed"


@BOTH_STORES
def test_a_view_shows_what_is_there_and_no_secret(staffed: Broker) -> None:
    admin = Administration(staffed)
    shown = {
        type(request).__name__: admin.perform(EVE, request)
        for request in (
            v1_pb2.SecretListRequest(), v1_pb2.SecretShowRequest(secret=NAME),
            v1_pb2.ResourceListRequest(), v1_pb2.ResourceShowRequest(resource=NAME),
            v1_pb2.PolicyDiffRequest(resource=NAME, policy=policy("r0", "r1")),
            v1_pb2.AuditReadRequest(), v1_pb2.AuditSealRequest(), v1_pb2.LeaseListRequest(),
            v1_pb2.StatusRequest(), v1_pb2.PrincipalListRequest(), v1_pb2.ProposalListRequest(),
        )
    }  # fmt: skip
    looks = {kind.__name__ for kind, each in OPERATIONS.items() if isinstance(each, Look)}
    assert set(shown) == looks | {"StatusRequest"}
    assert b"PLANTED" not in json.dumps(shown).encode()
    assert shown["SecretShowRequest"]["versions"][0]["state"] == "live"
    assert [p["name"] for p in shown["PrincipalListRequest"]["principals"]] == [
        "alice", "bob", "eve",
    ]  # fmt: skip
    assert shown["PolicyDiffRequest"]["loosened"] is True
    assert shown["ResourceShowRequest"]["policy"].encode() == policy("r0")
    assert lines(staffed, "admin.refused") == []


def test_looking_writes_no_line(staffed: Broker) -> None:
    before = staffed.audit.length()
    for _ in range(3):
        Administration(staffed).perform(EVE, v1_pb2.AuditReadRequest())
    assert staffed.audit.length() == before


def test_an_auditor_changes_nothing_and_each_attempt_is_a_line(staffed: Broker) -> None:
    admin = Administration(staffed)
    acts = [kind for kind, each in OPERATIONS.items() if isinstance(each, Operation)]
    assert len(acts) == 12
    for kind in [*acts, v1_pb2.ProposalApproveRequest]:
        before = staffed.store.secrets(), staffed.store.resources()
        assert refusal(lambda kind=kind: admin.perform(EVE, kind())) == "admin.role_insufficient"
        assert (staffed.store.secrets(), staffed.store.resources()) == before
        last = lines(staffed)[-1]
        assert (last["event"], last["principal"], last["code"]) == (
            "admin.refused", "eve", "admin.role_insufficient",
        )  # fmt: skip


def test_an_admin_who_was_removed_meanwhile_acts_no_more(staffed: Broker) -> None:
    admin = Administration(staffed)
    admin.perform(ROOT, v1_pb2.PrincipalRemoveRequest(name="bob"))
    assert refusal(lambda: admin.perform(BOB, destroy())) == "admin.principal_unknown"
    assert staffed.store.secret(NAME, 1, staffed.kek) == SECRET


def test_a_policy_is_set_and_its_line_says_what_it_loosened(staffed: Broker) -> None:
    result = Administration(staffed).perform(ALICE, set_policy("r0", "r1", simulation="allowed"))
    assert result["loosened"] is True
    resource = staffed.store.resource(NAME)
    assert resource is not None
    assert resource.policy == policy("r0", "r1", simulation="allowed")
    (line,) = lines(staffed, "policy.set")
    assert line["policy_sha256"] == resource.policy_sha256
    assert [text.partition(":")[0] for text in line["loosened"]] == ["releases", "simulation"]


def test_a_removed_resource_is_gone_and_its_secret_stays(staffed: Broker) -> None:
    request = v1_pb2.ResourceRemoveRequest(resource=NAME)
    Administration(staffed).perform(ALICE, request)
    assert staffed.store.resources() == []
    assert staffed.store.secret(NAME, 1, staffed.kek) == SECRET
    assert refusal(lambda: Administration(staffed).perform(ALICE, request)) == "resource.unknown"


_BAD_INPUT: list[tuple[Message, str]] = [
    (v1_pb2.SecretShowRequest(secret="models/none"), "secret.unknown"),
    (v1_pb2.SecretShowRequest(secret="a\0b"), "resource.name_invalid"),
    (v1_pb2.SecretDisableRequest(secret=NAME), "secret.version_invalid"),
    (v1_pb2.SecretDisableRequest(secret=NAME, version=2**32 - 1), "secret.version_invalid"),
    (v1_pb2.SecretDestroyRequest(secret=NAME, version=9), "secret.unknown"),
    (v1_pb2.ResourceShowRequest(resource=""), "resource.name_invalid"),
    (v1_pb2.ResourceShowRequest(resource="x" * 200), "resource.name_invalid"),
    (v1_pb2.PolicySetRequest(resource="models/none", policy=policy("r")), "resource.unknown"),
    (v1_pb2.PolicySetRequest(resource=NAME, policy=b"surprise: 1"), "policy.malformed"),
    (v1_pb2.PolicyDiffRequest(resource=NAME, policy=b"["), "policy.malformed"),
    (v1_pb2.LeaseListRequest(resource="A B"), "resource.name_invalid"),
    (v1_pb2.LeaseRevokeRequest(lease="x"), "lease.id_invalid"),
    (v1_pb2.LeaseRevokeRequest(lease="0" * 32), "lease.unknown"),
    (v1_pb2.PrincipalAddRequest(name="A"), "principal.name_invalid"),
    (v1_pb2.PrincipalAddRequest(name="x", role="god"), "principal.role_unknown"),
    (v1_pb2.PrincipalAddRequest(name="x", role="admin"), "principal.certificate_unsuitable"),
    (v1_pb2.PrincipalRemoveRequest(name="nobody"), "principal.unknown"),
    (v1_pb2.PrincipalRemoveRequest(name="a\0"), "principal.name_invalid"),
    (v1_pb2.ProposalApproveRequest(id="0" * 16), "proposal.unknown"),
    (v1_pb2.ProposalApproveRequest(id="\0"), "proposal.unknown"),
    (v1_pb2.ProposalWithdrawRequest(id="x" * 999), "proposal.unknown"),
]  # fmt: skip


@BOTH_STORES
def test_bad_input_has_its_code_and_its_line(staffed: Broker) -> None:
    for request, code in _BAD_INPUT:
        before = staffed.audit.length()
        assert refusal(lambda r=request: Administration(staffed).perform(ALICE, r)) == code
        assert staffed.audit.length() == before + 1
        last = lines(staffed)[-1]
        assert (last["event"], last["code"]) == ("admin.refused", code)


def test_a_put_is_checked_before_anything_is_stored(staffed: Broker, tmp_path: Path) -> None:
    other = create(tmp_path / "other", name="other")
    cases: dict[str, dict[str, Any]] = {
        "sealing.not_opened": {"sealed_key": seal_for(other, SECRET)},
        "deposit.malformed": {"sealed_key": b"short"},
        "resource.record_too_large": {"record": bytes(1 << 20)},
        "resource.owner_key_invalid": {"record": b"{}", "owner_public_key": b"short"},
        "resource.lease_invalid": {"lease_seconds": 0},
        "resource.name_invalid": {"resource": "../etc"},
        "policy.malformed": {"policy": b""},
    }
    for code, changes in cases.items():
        request = put_request(staffed, **changes)
        if code == "policy.malformed":
            request.policy = b"surprise: 1"
        assert refusal(lambda r=request: Administration(staffed).perform(ALICE, r)) == code
    assert [(s.version, s.state) for s in staffed.store.secrets()] == [(1, "live")]


def test_a_principal_is_known_once(staffed: Broker, tmp_path: Path) -> None:
    again = Person.make("alice", tmp_path)
    assert refusal(lambda: again.add_to(staffed, "auditor")) == "principal.exists"
    same_key = replace(Person.make("carol", tmp_path), identity=again.identity)
    same_key.add_to(staffed, "auditor")
    other_name = replace(same_key, name="dave")
    assert refusal(lambda: other_name.add_to(staffed, "auditor")) == "principal.key_known"


def test_a_principal_gets_another_key_under_his_name(staffed: Broker, tmp_path: Path) -> None:
    two = Administration(with_two_person(staffed, "destroy"))

    def replace_key(name: str, role: str) -> v1_pb2.PrincipalAddRequest:
        certificate = make_identity(name, days=1).certificate_pem.decode()
        return v1_pb2.PrincipalAddRequest(
            name=name, role=role, certificate=certificate, replace=True
        )

    assert refusal(lambda: two.perform(BOB, replace_key("nobody", "auditor"))) == (
        "principal.unknown"
    )
    assert "proposal" not in two.perform(BOB, replace_key("eve", "auditor"))
    assert "proposal" in two.perform(BOB, replace_key("eve", "admin"))
    assert "proposal" in two.perform(BOB, replace_key("alice", "auditor"))
    proposal = two.perform(BOB, replace_key("bob", "admin"))["proposal"]
    done = two.perform(ALICE, v1_pb2.ProposalApproveRequest(id=proposal["id"]))
    (bob,) = [
        each
        for each in two.perform(EVE, v1_pb2.PrincipalListRequest())["principals"]
        if each["name"] == "bob"
    ]
    assert bob["spki_sha256"] == done["spki_sha256"]
    assert lines(staffed, "principal.replace")[-1]["approver"] == "alice"


# --- two people -----------------------------------------------------------------------


def test_without_configuration_nobody_waits(staffed: Broker) -> None:
    assert "proposal" not in Administration(staffed).perform(ALICE, destroy())


@BOTH_STORES
def test_a_destroy_waits_for_another_person(staffed: Broker) -> None:
    admin = Administration(with_two_person(staffed, "destroy"))
    proposal = admin.perform(ALICE, destroy())["proposal"]
    assert (proposal["state"], proposal["needs"]) == ("open", "destroy")
    assert staffed.store.secret(NAME, 1, staffed.kek) == SECRET
    approve = v1_pb2.ProposalApproveRequest(id=proposal["id"])
    assert refusal(lambda: admin.perform(ALICE, approve)) == "proposal.own"
    assert refusal(lambda: admin.perform(EVE, approve)) == "admin.role_insufficient"
    result = admin.perform(BOB, approve)
    assert (result["approved"], result["state"]) == (proposal["id"], "destroyed")
    assert refusal(lambda: admin.perform(BOB, approve)) == "proposal.not_open"
    (line,) = lines(staffed, "secret.destroy")
    assert (line["principal"], line["approver"]) == ("alice", "bob")
    (listed,) = admin.perform(EVE, v1_pb2.ProposalListRequest())["proposals"]
    assert (listed["state"], listed["approver"]) == ("done", "bob")
    events = [line["event"] for line in lines(staffed)]
    assert "proposal.made" in events
    assert "proposal.approve" in events


@pytest.mark.parametrize("proposer", [ROOT, ALICE])
def test_the_local_command_line_is_held_to_it_too(staffed: Broker, proposer: Caller) -> None:
    admin = Administration(with_two_person(staffed, "destroy"))
    proposal = admin.perform(proposer, destroy())["proposal"]
    approve = v1_pb2.ProposalApproveRequest(id=proposal["id"])
    namesake = Caller(f"local:{person_of(proposer.name)}", "admin")
    assert refusal(lambda: admin.perform(namesake, approve)) == "proposal.own"
    other = ALICE if proposer is ROOT else ROOT
    assert admin.perform(other, approve)["state"] == "destroyed"


def test_only_what_loosens_waits(staffed: Broker) -> None:
    admin = Administration(with_two_person(staffed, "loosen"))
    assert "proposal" in admin.perform(ALICE, set_policy("r0", "r1"))
    assert "proposal" in admin.perform(ALICE, set_policy("r0", simulation="allowed"))
    assert "proposal" in admin.perform(
        ALICE, put_request(staffed, replace=True, policy=policy("r0", "r1"))
    )
    assert "proposal" not in admin.perform(ALICE, set_policy())
    assert "proposal" in admin.perform(ALICE, set_policy("r0"))  # back again is loosening
    assert "proposal" not in admin.perform(
        ALICE, put_request(staffed, replace=True, policy=policy())
    )
    assert "proposal" not in admin.perform(ALICE, put_request(staffed, name="models/new"))
    assert "proposal" not in admin.perform(ALICE, destroy())


def test_an_rtmr3_that_guests_may_have_had_before_release_is_loosening(staffed: Broker) -> None:
    """Without one a release policy means an untouched RTMR3, so naming another lets more in."""
    admin = Administration(with_two_person(staffed, "loosen"))
    named = policy("r0").replace(b"  label: r0", b"  label: r0\n  rtmr3: " + b"ab" * 48)
    if named == policy("r0"):
        named = policy("r0").replace(b"- label: r0", b"- label: r0\n  rtmr3: " + b"ab" * 48)
    assert named != policy("r0")
    request = v1_pb2.PolicySetRequest(resource=NAME, policy=named)
    assert "proposal" in admin.perform(ALICE, request)


def test_an_approved_put_keeps_the_deposit_and_forgets_the_proposals_copy(
    staffed: Broker,
) -> None:
    from sealserve.broker.tables import ProposalRow

    admin = Administration(with_two_person(staffed, "loosen"))
    request = put_request(staffed, replace=True, policy=policy("r0", "r1"))
    proposal = admin.perform(ALICE, request)["proposal"]
    assert "r1" in " ".join(proposal["summary"])
    assert admin.perform(BOB, v1_pb2.ProposalApproveRequest(id=proposal["id"]))[
        "secret_version"
    ] == 2  # fmt: skip
    assert staffed.store.secret(NAME, 2, staffed.kek) == SECRET
    with staffed.store.reading() as session:
        row = session.get_one(ProposalRow, proposal["id"])
        assert json.loads(row.arguments)["request"] is None


@BOTH_STORES
def test_what_has_changed_since_is_not_approved(staffed: Broker) -> None:
    admin = Administration(with_two_person(staffed, "loosen", "destroy"))
    wider = admin.perform(ALICE, set_policy("r0", "r1"))["proposal"]["id"]
    gone = admin.perform(ALICE, destroy())["proposal"]["id"]
    admin.perform(ALICE, set_policy())
    admin.perform(ALICE, v1_pb2.SecretDisableRequest(secret=NAME, version=1))
    for each in (wider, gone):
        approve = v1_pb2.ProposalApproveRequest(id=each)
        assert refusal(lambda a=approve: admin.perform(BOB, a)) == "proposal.outdated"
    states = {p["state"] for p in admin.perform(BOB, v1_pb2.ProposalListRequest())["proposals"]}
    assert states == {"open"}
    assert staffed.store.resource(NAME).policy == policy()  # type: ignore[union-attr]


def test_a_proposal_ends(staffed: Broker) -> None:
    two = with_two_person(staffed, "destroy", hours=1)
    proposal = Administration(two).perform(ALICE, destroy())["proposal"]
    later = Administration(two, now=lambda: datetime.now(UTC) + timedelta(hours=1, seconds=1))
    approve = v1_pb2.ProposalApproveRequest(id=proposal["id"])
    assert refusal(lambda: later.perform(BOB, approve)) == "proposal.expired"
    later.perform(ALICE, destroy())  # making another one sweeps the first
    states = [p["state"] for p in later.perform(EVE, v1_pb2.ProposalListRequest())["proposals"]]
    assert sorted(states) == ["open", "void"]


def test_a_proposal_is_withdrawn_or_turned_down(staffed: Broker) -> None:
    admin = Administration(with_two_person(staffed, "destroy"))
    for who in (ALICE, BOB):
        proposal = admin.perform(ALICE, destroy())["proposal"]
        withdraw = v1_pb2.ProposalWithdrawRequest(id=proposal["id"])
        assert admin.perform(who, withdraw)["proposal"]["state"] == "withdrawn"
        approve = v1_pb2.ProposalApproveRequest(id=proposal["id"])
        assert refusal(lambda a=approve: admin.perform(BOB, a)) == "proposal.not_open"
        assert lines(staffed, "proposal.withdraw")[-1]["principal"] == who.name


def test_what_a_former_admin_proposed_is_not_approved(staffed: Broker) -> None:
    proposal = Administration(with_two_person(staffed, "destroy")).perform(ALICE, destroy())
    Administration(staffed).perform(ROOT, v1_pb2.PrincipalRemoveRequest(name="alice"))
    admin = Administration(with_two_person(staffed, "destroy"))
    approve = v1_pb2.ProposalApproveRequest(id=proposal["proposal"]["id"])
    assert refusal(lambda: admin.perform(BOB, approve)) == "proposal.proposer_gone"


def test_no_admin_makes_himself_a_second_person(broker: Broker, tmp_path: Path) -> None:
    admin = Administration(with_two_person(broker, "destroy"))

    def add(name: str, role: str) -> v1_pb2.PrincipalAddRequest:
        certificate = make_identity(name, days=1).certificate_pem.decode()
        return v1_pb2.PrincipalAddRequest(name=name, role=role, certificate=certificate)

    assert "proposal" not in admin.perform(ROOT, add("alice", "admin"))  # the first one
    proposal = admin.perform(ALICE, add("puppet", "admin"))["proposal"]
    assert proposal["needs"] == "principals"
    assert "proposal" not in admin.perform(ALICE, add("eve", "auditor"))
    assert "proposal" in admin.perform(ROOT, v1_pb2.PrincipalRemoveRequest(name="alice"))
    assert "proposal" not in admin.perform(ALICE, v1_pb2.PrincipalRemoveRequest(name="eve"))
    approve = v1_pb2.ProposalApproveRequest(id=proposal["id"])
    assert refusal(lambda: admin.perform(ALICE, approve)) == "proposal.own"
    assert admin.perform(ROOT, approve)["name"] == "puppet"


def test_proposals_are_bounded(staffed: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealserve.broker.proposals._MAX_OPEN", 2)
    admin = Administration(with_two_person(staffed, "destroy"))
    admin.perform(ALICE, destroy())
    admin.perform(ALICE, destroy())
    assert refusal(lambda: admin.perform(ALICE, destroy())) == "proposal.too_many"


@BOTH_STORES
def test_of_two_approvals_at_once_one_wins(staffed: Broker, tmp_path: Path) -> None:
    """Each on its own connections, as on two replicas."""
    Person.make("carol", tmp_path).add_to(staffed, "admin")
    carol = Caller("carol", "admin")
    for _ in range(times(200, 4)):
        two = with_two_person(staffed, "loosen")
        proposal = Administration(two).perform(
            ALICE, put_request(two, replace=True, policy=policy("r0", "r1"))
        )
        other = Store.open(staffed.config.store, staffed.root)
        admins = [Administration(two), Administration(replace(two, store=other))]
        approve = v1_pb2.ProposalApproveRequest(id=proposal["proposal"]["id"])
        start, outcomes = threading.Barrier(2), []

        def run(
            admin: Administration, who: Caller, start: threading.Barrier = start,
            approve: Message = approve, outcomes: list[str] = outcomes,
        ) -> None:  # fmt: skip
            start.wait()
            try:
                admin.perform(who, approve)
            except SealserveError as error:
                outcomes.append(error.code)
            else:
                outcomes.append("won")

        before = len(staffed.store.secrets())
        threads = [
            threading.Thread(target=run, args=pair)
            for pair in zip(admins, (BOB, carol), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.close()
        assert sorted(outcomes) == ["proposal.not_open", "won"]
        assert len(staffed.store.secrets()) == before + 1
        Administration(staffed).perform(ALICE, set_policy("r0"))
    staffed.audit.verify()


def test_a_bug_leaves_a_line_and_changes_nothing(
    staffed: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("PLANTED detail")

    monkeypatch.setattr(Broker, "keep", broken)
    with pytest.raises(RuntimeError):
        Administration(staffed).perform(ALICE, put_request(staffed, replace=True))
    last = lines(staffed)[-1]
    assert (last["event"], last["code"]) == ("admin.refused", "internal.unexpected")
    assert "PLANTED" not in json.dumps(last)


def test_kill_9_at_any_step_of_an_approval_leaves_all_of_it_or_nothing(
    staffed: Broker, tmp_path: Path
) -> None:
    """Every step under `make soak`; a few drawn ones, the last among them, otherwise."""
    two = with_two_person(staffed, "destroy")
    proposal = Administration(two).perform(ROOT, destroy())["proposal"]["id"]
    chosen = BrokerConfig(admin=AdminConfig(two_person=("destroy",)))
    (staffed.root / "broker.yaml").write_bytes(render(chosen))
    staffed.store.close()
    command = [sys.executable, "-m", "tests.broker.crashing_act", staffed.root, proposal]
    done = subprocess.run([*command, tmp_path, str(times(0, 12))], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["total"] > 100  # it saw the driver and the broker's own calls
    nothing = {"states": ["live"], "proposal": "open", "lines": [False, False]}
    everything = {"states": ["destroyed"], "proposal": "done", "lines": [True, True]}
    outcomes = [{k: v for k, v in each.items() if k != "step"} for each in result["tries"]]
    assert all(each in (nothing, everything) for each in outcomes), result["tries"]
    assert outcomes[0] == nothing
    assert outcomes[-1] == everything  # the last step is after the commit


def test_no_secret_is_in_the_database_not_even_while_its_put_waits(staffed: Broker) -> None:
    admin = Administration(with_two_person(staffed, "loosen"))
    proposal = admin.perform(ALICE, put_request(staffed, replace=True, policy=policy("r0", "r1")))[
        "proposal"
    ]
    waiting = b"".join(path.read_bytes() for path in staffed.root.glob("broker.db*"))
    admin.perform(BOB, v1_pb2.ProposalApproveRequest(id=proposal["id"]))
    stored = b"".join(path.read_bytes() for path in staffed.root.glob("broker.db*"))
    assert staffed.store.secret(NAME, 2, staffed.kek) == SECRET
    assert b"PLANTED" not in waiting + stored
