"""The demo's three roles, running for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealserve.demo import Outcome, Runner, story
from tests.conftest import missing


@dataclass(frozen=True)
class Flow:
    """A guest that serves, and everything that led to it.

    Attributes:
        runner: its directory and its processes.
        ports: where broker and guest listen.
    """

    runner: Runner
    ports: story.Ports

    @property
    def directory(self) -> Path:
        return self.runner.directory

    def run(self, *command: str, expect: int = 0) -> Outcome:
        """Run one sealserve command in the demo's directory."""
        return self.runner.run(" ".join(command[:2]), *command, expect=expect)

    @property
    def trust(self) -> tuple[str, ...]:
        """The options by which a client verifies the guest."""
        return story.TRUST


@pytest.fixture(scope="package")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """Owner, broker and guest as in the demo, up to the point where clients may ask.

    The models are signed, which the demo does without: its packages are fewer.
    """
    if not Path("/dev/fuse").exists():
        missing("/dev/fuse", "modprobe fuse, or pass the device to the container")

    def ignore(_: Any) -> None:
        return None

    directory = tmp_path_factory.mktemp("flow")
    with Runner(directory, on_start=ignore, on_end=ignore) as runner:
        ports = story.Ports.free()
        story.make_models(runner)
        runner.run("Owner: a key for models", "model", "keygen", "owner/signer")
        story.seal_and_deposit(runner, ports, "--sign-models", "owner/signer/model-signer.key")
        story.serve_in_the_cloud(runner, ports)
        yield Flow(runner, ports)
