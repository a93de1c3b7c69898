"""The administration port: who gets through, what is there, and what any bytes do."""

from __future__ import annotations

import gc
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.address import Address
from sealserve.broker import admin_protocol
from sealserve.broker.admin_client import AdminClient
from sealserve.broker.admin_protocol import METHODS, SERVICE, decode_error, encode_error
from sealserve.broker.admin_service import AdminServer
from sealserve.broker.administration import OPERATIONS, OWN, Administration
from sealserve.broker.audit_export import check
from sealserve.broker.audit_pages import export_parts, newest, since
from sealserve.broker.directory import Broker, create
from sealserve.broker.identity import SERVER_NAME
from sealserve.broker.principals import AdminIdentity
from sealserve.broker.protocol import CHALLENGE_METHOD, RELEASE_METHOD
from sealserve.certificates import key_pem
from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.logs import make_log
from sealserve.wire.broker import v1_pb2 as guest_pb2
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.admin import NAME, ROOT, Person, policy, put_request
from tests.broker.conftest import World
from tests.broker.wire import Relay, Wire
from tests.conftest import ROOT as REPOSITORY
from tests.soak import times


@dataclass
class Port:
    """A broker that can be administered, and the people who may."""

    broker: Broker
    server: AdminServer
    log: io.StringIO
    alice: Person
    eve: Person

    def client(
        self, person: Person, address: Address | None = None, timeout: float = 20
    ) -> AdminClient:
        return AdminClient(
            address or self.server.address, self.broker.identity, person.identity, timeout=timeout
        )

    def lines(self) -> list[dict[str, Any]]:
        self.broker.audit.verify()
        return [json.loads(line) for line in self.broker.audit.lines()]


@pytest.fixture
def port(broker: Broker, tmp_path: Path) -> Iterator[Port]:
    Administration(broker).perform(ROOT, put_request(broker))
    alice, eve = Person.make("alice", tmp_path), Person.make("eve", tmp_path)
    alice.add_to(broker, "admin")
    eve.add_to(broker, "auditor")
    log = io.StringIO()
    server = AdminServer(broker, Address("127.0.0.1", 0), make_log(log))
    server.start()
    yield Port(broker, server, log, alice, eve)
    server.stop()


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(SealserveError) as caught:
        act()
    return caught.value.code


def raw_call(
    address: Address, identity: AdminIdentity, root: str, method: str, raw: bytes
) -> tuple[str, str]:
    credentials = grpc.ssl_channel_credentials(
        root.encode(), identity.key_pem, identity.certificate_pem
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(str(address), credentials, options=options) as channel:
        try:
            channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)(
                raw, timeout=20
            )
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


# --- who gets through -------------------------------------------------------------------


def test_an_admin_acts_and_an_auditor_looks(port: Port) -> None:
    with port.client(port.alice) as alice, port.client(port.eve) as eve:
        request = v1_pb2.SecretDisableRequest(secret=NAME, version=1)
        assert refusal(lambda: eve.perform(request)) == "admin.role_insufficient"
        assert alice.perform(request)["state"] == "disabled"
        assert eve.perform(v1_pb2.SecretListRequest())["secrets"][0]["state"] == "disabled"
    refused, done = port.lines()[-2:]
    assert (refused["principal"], refused["code"]) == ("eve", "admin.role_insufficient")
    assert (done["event"], done["principal"], done["peer"]) == (
        "secret.disable", "alice", "127.0.0.1",
    )  # fmt: skip


def test_the_brokers_errors_come_out_as_they_were_raised(port: Port) -> None:
    with port.client(port.alice) as alice, pytest.raises(Refused) as caught:
        alice.perform(v1_pb2.ResourceShowRequest(resource="models/none"))
    assert caught.value.code == "resource.unknown"
    assert "models/none" in caught.value.message
    assert caught.value.hint == "`sealserve resource list` shows them"


def test_an_unknown_certificate_does_not_get_through_the_handshake(
    port: Port, tmp_path: Path
) -> None:
    before = port.broker.audit.length()
    with port.client(Person.make("mallory", tmp_path), timeout=20) as mallory:
        assert refusal(lambda: mallory.perform(v1_pb2.StatusRequest())) == "admin.unreachable"
    assert port.broker.audit.length() == before


def test_without_a_certificate_nobody_gets_through(port: Port) -> None:
    root = port.broker.identity.certificate.encode()
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
    credentials = grpc.ssl_channel_credentials(root)
    with grpc.secure_channel(str(port.server.address), credentials, options=options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Status")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_a_principals_key_signed_is_nobodys(port: Port, tmp_path: Path) -> None:
    """The trust is in the key itself: a principal cannot make others."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    signer = load_pem_private_key(port.alice.identity.key_pem, password=None)
    own = x509.load_pem_x509_certificate(port.alice.identity.certificate_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    child = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "child")]))
        .issuer_name(own.subject)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    identity = AdminIdentity(key_pem(key), child.public_bytes(Encoding.PEM))
    forged = Person("child", identity, tmp_path, tmp_path)
    with port.client(forged) as client:
        assert refusal(lambda: client.perform(v1_pb2.StatusRequest())) == "admin.unreachable"


def test_who_is_added_gets_in_and_who_is_removed_is_out_on_an_open_connection(
    port: Port, tmp_path: Path
) -> None:
    bob = Person.make("bob", tmp_path)
    with port.client(port.alice) as alice, port.client(bob) as knocking:
        assert refusal(lambda: knocking.perform(v1_pb2.StatusRequest())) == "admin.unreachable"
        alice.perform(
            v1_pb2.PrincipalAddRequest(
                name="bob", role="admin", certificate=bob.identity.certificate_pem.decode()
            )
        )
        with port.client(bob) as inside:
            assert inside.perform(v1_pb2.PrincipalListRequest())["principals"][1]["name"] == "bob"
            alice.perform(v1_pb2.PrincipalRemoveRequest(name="bob"))
            code = refusal(lambda: inside.perform(v1_pb2.StatusRequest()))
            assert code == "admin.principal_unknown"
    last = port.lines()[-1]
    assert (last["event"], last["code"]) == ("admin.refused", "admin.principal_unknown")
    assert last["principal"].startswith("key ")


def test_a_certificate_that_ends_meanwhile_is_out_on_an_open_connection(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=2)

    with port.client(port.alice) as alice:
        alice.perform(v1_pb2.PrincipalListRequest())
        monkeypatch.setattr("sealserve.broker.admin_service.datetime", Later)
        code = refusal(lambda: alice.perform(v1_pb2.PrincipalListRequest()))
    assert code == "admin.certificate_expired"
    assert port.lines()[-1]["code"] == code


def test_a_broker_without_principals_lets_nobody_in(broker: Broker, tmp_path: Path) -> None:
    server = AdminServer(broker, Address("127.0.0.1", 0), make_log(io.StringIO()))
    server.start()
    own = AdminIdentity(broker.tls_private_key(), broker.identity.certificate.encode())
    for identity in (Person.make("alice", tmp_path).identity, own):
        status, _ = raw_call(
            server.address, identity, broker.identity.certificate, f"/{SERVICE}/Status", b""
        )
        assert status == "UNAVAILABLE"
    server.stop()


def test_another_server_is_not_spoken_to(port: Port, tmp_path: Path) -> None:
    other = create(tmp_path / "other", name="other")
    with AdminClient(port.server.address, other, port.alice.identity, timeout=20) as client:
        assert refusal(lambda: client.perform(v1_pb2.StatusRequest())) == "admin.broker_unproven"


def test_a_port_in_use_is_refused(port: Port) -> None:
    again = lambda: AdminServer(port.broker, port.server.address, make_log(io.StringIO()))  # noqa: E731
    assert refusal(again) == "admin.listen_failed"


def test_nobody_there_and_no_answer_in_time(port: Port) -> None:
    nowhere = Address("127.0.0.1", 1)
    with port.client(port.alice, nowhere) as client:
        assert refusal(lambda: client.perform(v1_pb2.StatusRequest())) == "admin.unreachable"
    with port.client(port.alice, timeout=0.000001) as client:
        assert refusal(lambda: client.perform(v1_pb2.StatusRequest())) == "admin.timeout"


# --- what is where ----------------------------------------------------------------------


def test_each_service_is_on_its_own_port_only(port: Port, world: World) -> None:
    with Wire(world) as guest:
        for method in METHODS:
            answer = guest.call(f"/{SERVICE}/{method}", b"")
            assert (answer.status, answer.sealed) == ("UNIMPLEMENTED", None)
    identity, root = port.alice.identity, port.broker.identity.certificate
    request = guest_pb2.ChallengeRequest(resource=NAME).SerializeToString()
    paths = [CHALLENGE_METHOD, RELEASE_METHOD, "/grpc.health.v1.Health/Check"]
    for path in [*paths, f"/{SERVICE}/Nonsense"]:
        assert raw_call(port.server.address, identity, root, path, request)[0] == "UNIMPLEMENTED"


def test_the_definition_the_messages_and_the_operations_name_the_same() -> None:
    text = (REPOSITORY / "src/sealserve/wire/broker/admin/v1.proto").read_text()
    defined = dict(re.findall(r"rpc (\w+)\((\w+)\) returns \(Result\);", text))
    assert {name: kind.DESCRIPTOR.name for name, kind in METHODS.items()} == defined
    assert {*OPERATIONS, *OWN} == set(METHODS.values())


def test_every_method_answers_or_refuses_an_empty_request(port: Port) -> None:
    with port.client(port.alice) as alice:
        for kind in METHODS.values():
            try:
                assert isinstance(alice.perform(kind()), dict)
            except (InputError, Refused):
                continue
    assert "unexpected" not in port.log.getvalue()


# --- the audit chain from afar ------------------------------------------------------------


def test_an_export_over_the_port_verifies_and_is_the_local_one(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.broker.views.MAX_PAGE_LINES", 7)
    for number in range(30):
        port.broker.audit.append({"event": "note", "number": number})
        if number % 10 == 0:
            port.broker.audit.checkpoint(port.broker.audit_signer())
    with port.client(port.eve) as eve:
        parts = list(export_parts(eve.perform))
        checked = check(parts, port.broker.identity)
        assert checked.head == port.broker.audit.verify()
        assert checked.checkpoints == 4
        assert newest(eve.perform, 20) == list(port.broker.audit.lines(last=20))
        assert newest(eve.perform, 999) == list(port.broker.audit.lines())
        following = since(eve.perform, newest(eve.perform, 3))
        assert next(following) == list(port.broker.audit.lines(last=3))
        assert next(following) == []
        port.broker.audit.append({"event": "note", "number": 31})
        assert next(following) == list(port.broker.audit.lines(last=1))


def test_a_port_that_lies_about_the_chain_is_found() -> None:
    def answer(**changes: object) -> Callable[[Message], dict[str, Any]]:
        return lambda _: {"lines": [], "length": 0, "checkpoints": [], **changes}

    for changes in ({"lines": None}, {"lines": [1]}, {"length": "x"}):
        assert refusal(lambda c=changes: newest(answer(**c), 5)) == "admin.answer_malformed"
    assert refusal(lambda: list(export_parts(answer()))) == "audit.checkpoint_malformed"
    line = json.dumps({"sequence": 5, "previous": "00" * 32})
    cut = since(answer(), [line])
    next(cut)
    assert refusal(lambda: next(cut)) == "audit.truncated"
    assert refusal(lambda: next(since(answer(), ["{}"]))) == "admin.answer_malformed"
    swapped = json.dumps({"sequence": 7, "previous": "00" * 32})
    assert refusal(lambda: next(since(answer(), [line, swapped]))) == "audit.order_broken"


# --- what passes the wire -----------------------------------------------------------------


def test_a_recorded_put_holds_no_secret(port: Port) -> None:
    relay = Relay(port.server.address.port)
    with port.client(port.alice, Address("127.0.0.1", relay.port)) as alice:
        request = put_request(port.broker, replace=True)
        assert b"PLANTED" not in request.SerializeToString()
        alice.perform(request)
        alice.perform(v1_pb2.SecretShowRequest(secret=NAME))
    relay.close()
    assert b"PLANTED" not in bytes(relay.recorded)
    assert b"models/demo" not in bytes(relay.recorded)  # TLS
    assert b"PLANTED" not in port.log.getvalue().encode()


def test_a_request_beyond_the_limit_is_refused(port: Port) -> None:
    request = v1_pb2.PolicySetRequest(resource=NAME, policy=bytes(3 << 20))
    with port.client(port.alice) as alice, pytest.raises(Unavailable):
        alice.perform(request)
    status, _ = raw_call(
        port.server.address, port.alice.identity, port.broker.identity.certificate,
        f"/{SERVICE}/PolicySet", request.SerializeToString(),
    )  # fmt: skip
    assert status == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("method", "raw", "code"),
    [
        ("ProposalApprove", b"\x0a\x01x", "proposal.unknown"),
        ("ProposalApprove", b"\xff", "admin.request_malformed"),
        ("SecretDestroy", b"", "resource.name_invalid"),
    ],
)
def test_many_refused_calls_on_one_connection_are_all_answered(
    port: Port, channel: grpc.Channel, method: str, raw: bytes, code: str
) -> None:
    """gRPC counts a call until it is collected: none may be part of a cycle."""
    gc.disable()
    try:
        for _ in range(150):
            error = _error_of(channel, f"/{SERVICE}/{method}", raw)
            assert error is not None
            assert error.details() == code
    finally:
        gc.enable()


def test_an_auditors_calls_that_never_arrive_do_not_stop_an_admin(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.broker.door._ARRIVAL_SECONDS", 3600.0)
    never = threading.Event()

    def silence() -> Iterator[bytes]:
        never.wait(60)
        yield from ()

    credentials = grpc.ssl_channel_credentials(
        port.broker.identity.certificate.encode(),
        port.eve.identity.key_pem,
        port.eve.identity.certificate_pem,
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
    with (
        grpc.secure_channel(str(port.server.address), credentials, options=options) as channel,
        port.client(port.alice) as alice,
        port.client(port.eve) as eve,
    ):
        begun = [
            channel.stream_unary(f"/{SERVICE}/Status").future(silence(), timeout=60)
            for _ in range(30)
        ]
        codes = set()
        for _ in range(400):  # until sixteen of hers have reached the broker
            try:
                eve.perform(v1_pb2.LeaseListRequest())
            except Unavailable as error:
                codes.add(error.code)
                break
            time.sleep(0.02)
        assert codes == {"admin.too_many_calls"}
        assert alice.perform(v1_pb2.LeaseListRequest()) == {"leases": []}
        never.set()
        for call in begun:
            call.cancel()


def test_an_answer_beyond_the_limit_is_said_so(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealserve.broker.admin_service.MAX_ANSWER_BYTES", 100)
    with port.client(port.alice) as alice:
        assert refusal(lambda: alice.perform(v1_pb2.StatusRequest())) == "admin.answer_too_large"


def test_a_bug_tells_nothing_but_that_it_is_one(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("PLANTED detail")

    monkeypatch.setattr(Broker, "keep", broken)
    with port.client(port.alice) as alice, pytest.raises(InternalError) as caught:
        alice.perform(put_request(port.broker, replace=True))
    assert caught.value.code == "internal.unexpected"
    assert "PLANTED" not in str(caught.value) + port.log.getvalue()
    assert port.lines()[-1]["code"] == "internal.unexpected"


_FUZZ = settings(
    max_examples=times(20_000, 150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def channel(port: Port) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(
        port.broker.identity.certificate.encode(),
        port.alice.identity.key_pem,
        port.alice.identity.certificate_pem,
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(str(port.server.address), credentials, options=options) as opened:
        yield opened


def _shaped(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """Requests of this kind with anything in their fields."""
    values: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.TYPE_STRING: st.sampled_from([NAME, "eve"]) | st.text(max_size=30),
        FieldDescriptor.TYPE_BYTES: st.just(policy("r0")) | st.binary(max_size=200),
        FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
        FieldDescriptor.TYPE_BOOL: st.booleans(),
    }
    fields = {field.name: values[field.type] for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda f: kind(**f).SerializeToString())


@_FUZZ
@given(st.data())
def test_any_bytes_get_a_code_and_any_refusal_a_line(
    port: Port, channel: grpc.Channel, data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from(sorted(METHODS)))
    raw = data.draw(st.one_of(st.binary(max_size=120), _shaped(METHODS[method])))
    before = port.broker.audit.length()
    error = _error_of(channel, f"/{SERVICE}/{method}", raw)
    assert "unexpected" not in port.log.getvalue()
    if error is None:
        return
    assert error.code().name in ("INVALID_ARGUMENT", "PERMISSION_DENIED"), error
    (value,) = [i.value for i in error.trailing_metadata() if i.key == admin_protocol.ERROR_KEY]
    told = decode_error(value, address="here")
    assert told is not None
    assert told.code == error.details()
    assert port.broker.audit.length() == before + 1


def _error_of(channel: grpc.Channel, path: str, raw: bytes) -> grpc.RpcError | None:
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(raw, timeout=20)
    except grpc.RpcError as error:
        return error
    return None


@given(st.one_of(st.binary(max_size=200), st.dictionaries(st.text(), st.text()).map(
    lambda d: json.dumps({"class": "Refused", "code": "a.b", "message": "m", **d}).encode()
)))  # fmt: skip
def test_any_bytes_for_an_error(raw: bytes) -> None:
    told = decode_error(raw, address="here")
    assert told is None or isinstance(told, SealserveError)


@pytest.mark.parametrize("kind", [InputError, Refused, Unavailable, InternalError])
def test_an_error_survives_the_wire(kind: type[SealserveError]) -> None:
    error = kind("a.b", "what happened", where="there", hint="what to do")
    told = decode_error(encode_error(error), address="elsewhere")
    assert type(told) is kind
    assert told.to_dict() == error.to_dict()
