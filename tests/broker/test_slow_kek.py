"""A key-encryption key that takes its time (an HSM, Vault) holds up nobody but who asked it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sealserve.broker.administration import Administration
from sealserve.broker.keys import KeyEncryptionKey
from sealserve.errors import Refused
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.admin import ROOT, put_request
from tests.broker.conftest import BOTH_STORES, World

pytestmark = BOTH_STORES


class Held:
    """A key whose one method waits until it is let go."""

    def __init__(self, kek: KeyEncryptionKey, method: str) -> None:
        self.kek, self.method = kek, method
        self.reached, self.released = threading.Event(), threading.Event()

    @property
    def id(self) -> str:
        return self.kek.id

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        self._wait("wrap")
        return self.kek.wrap(plaintext, name=name, version=version)

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        self._wait("unwrap")
        return self.kek.unwrap(wrapped, name=name, version=version)

    def close(self) -> None:
        pass

    def _wait(self, method: str) -> None:
        if method == self.method:
            self.reached.set()
            assert self.released.wait(60)


@pytest.fixture
def held(world: World, request: pytest.FixtureRequest) -> Iterator[Held]:
    made = Held(world.broker.kek, request.param)
    yield made
    made.released.set()


@pytest.mark.parametrize("held", ["wrap", "unwrap"], indirect=True)
def test_releases_go_on_while_a_put_waits_for_it(world: World, held: Held) -> None:
    admin = Administration(replace(world.broker, kek=held))
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(admin.perform, ROOT, put_request(world.broker, "models/slow"))
        assert held.reached.wait(60)
        assert bytes(world.ask().secret) == world.key
        Administration(world.broker).perform(ROOT, put_request(world.broker, "models/quick"))
        assert not put.done()
        held.released.set()
        assert put.result(60)["secret_version"] == 1
    world.broker.audit.verify()


@pytest.mark.parametrize("held", ["wrap"], indirect=True)
def test_of_two_next_versions_at_once_the_second_is_refused(world: World, held: Held) -> None:
    """Each administrator meant to follow the version that he saw."""
    Administration(world.broker).perform(ROOT, put := put_request(world.broker, "models/new"))
    rotation = v1_pb2.SecretRotateRequest(secret="models/new", sealed_key=put.sealed_key)
    slow = Administration(replace(world.broker, kek=held))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(slow.perform, ROOT, rotation)
        assert held.reached.wait(60)
        first = Administration(world.broker).perform(ROOT, rotation)
        held.released.set()
        with pytest.raises(Refused) as caught:
            second.result(60)
    assert first["secret_version"] == 2
    assert caught.value.code == "secret.version_taken"
    assert [each.version for each in world.broker.store.secrets() if each.id == "models/new"] == [
        1,
        2,
    ]
