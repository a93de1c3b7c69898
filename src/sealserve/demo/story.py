"""What the demo tells: four roles, one flow, three refusals.

Every step is a ``sealserve`` command in a process of its own, so what is shown
is what a person would get by typing it.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sealserve.demo.runner import Outcome, Runner
from sealserve.errors import InternalError, Unavailable
from sealserve.volume.drivers import driver_named

__all__ = [
    "TRUST",
    "DemoResult",
    "Ports",
    "classify_a_photo",
    "guest_up",
    "make_models",
    "measure",
    "refuse_three_times",
    "run_demo",
    "seal_and_deposit",
    "serve_in_the_cloud",
    "start_td",
]

_HOST = "grpc.tf.service.com"
_RESOURCE = "models/demo"
_LITE0 = "efficientnet-lite0"
_RESNET = "resnet50-v15-fp32"
_REFUSED = 3
_LABELS = 3  # what `predict` prints, best first


@dataclass(frozen=True)
class Ports:
    """TCP ports of this machine, chosen beforehand so that each command can name them."""

    broker: int
    grpc: int
    rest: int
    impostor: int

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody listens on now."""
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in fields(cls)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return cls(*(each.getsockname()[1] for each in sockets))


@dataclass(frozen=True)
class DemoResult:
    """What the demo showed.

    Attributes:
        outcomes: every step with its time.
        label, probability: the best label of the photo.
        verified: what the client verified before it sent the photo.
        bench: the benchmark's summary line and its figures (ms, images/s).
        refusals: code and message of each of the three refusals.
        impostor: what reached the server with the stolen evidence.
    """

    outcomes: tuple[Outcome, ...]
    label: str
    probability: float
    verified: dict[str, Any]
    bench: dict[str, Any]
    refusals: dict[str, dict[str, str]]
    impostor: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "steps": [
                {
                    "title": step.title,
                    "command": ["sealserve", *step.command],
                    "seconds": round(step.seconds, 3),
                    "status": step.status,
                }
                for step in self.outcomes
            ],
            "label": self.label,
            "probability": self.probability,
            "verified": self.verified,
            "bench": self.bench,
            "refusals": self.refusals,
            "impostor": self.impostor,
        }


def run_demo(runner: Runner, *, loops: int = 50) -> DemoResult:
    """Play the whole flow in ``runner.directory``.

    Args:
        runner: runs the commands; ends their processes when it is closed.
        loops: requests of the benchmark.

    Raises:
        Unavailable: ``demo.step_failed``, naming the command.
        InternalError: ``demo.wrong_result``.
    """
    ports = Ports.free()
    make_models(runner)
    seal_and_deposit(runner, ports)
    serve_in_the_cloud(runner, ports)
    label, verified = classify_a_photo(runner, ports)
    bench = measure(runner, ports, loops)
    refusals, impostor = refuse_three_times(runner, ports)
    return DemoResult(
        tuple(runner.outcomes),
        label["name"],
        label["probability"],
        verified,
        bench,
        refusals,
        impostor,
    )


def make_models(runner: Runner) -> None:
    """Owner: keys, two models as SavedModels, and TLS files."""
    for part in ("owner/tree", "cloud", "client"):
        (runner.directory / part).mkdir(parents=True)
    runner.shell("Directories", "mkdir -p owner/tree cloud client")
    runner.run("Owner: make the key that signs volume records", "owner", "init", "owner")
    for name, built, about in (
        (_LITE0, "efficientnet-lite0", "real ImageNet weights"),
        (_RESNET, "resnet50-v15-seeded", "real architecture, seeded weights"),
    ):
        graph = f"owner/{name}.pb"
        runner.run(
            f"Owner: build {name}, a frozen graph ({about})",
            "model", "build", built, "--out", graph,
        )  # fmt: skip
        runner.run(
            f"Owner: import {name} as a SavedModel",
            "model", "import", graph, "--out", "owner/tree/models", "--name", name,
        )  # fmt: skip
    runner.run("Owner: list the models to serve", "model", "config", "owner/tree")
    runner.run(
        f"Owner: make TLS files for {_HOST}", "owner", "tls", _HOST, "--out", "owner/tree/tls"
    )


def seal_and_deposit(runner: Runner, ports: Ports, *sealing: str) -> None:
    """Owner and broker: the sealed volume, the policies, the deposited key.

    Args:
        runner: runs the commands.
        ports: where the broker is to listen.
        sealing: further options of ``volume create``.
    """
    runner.run(
        "Simulation: make a platform, in Intel's place",
        "simulate", "platform", "platform",
    )  # fmt: skip
    runner.run(
        "Broker: make its store, keys and identity",
        "broker", "init", "broker", "--name", "demo broker", "--host", "localhost",
    )  # fmt: skip
    runner.run(
        "Owner: seal models and TLS files into one volume",
        "volume", "create", "cloud/models.seal", "--from", "owner/tree",
        "--owner-key", "owner/owner.key", "--name", "demo", "--record", "owner/models.record.json",
        "--broker", "broker/broker.json", "--sealed-key", "owner/models.key.sealed", *sealing,
    )  # fmt: skip
    start_td(runner, "reference", "Owner: boot the guest image once, for its measurements")
    runner.run(
        "Owner: take a reference quote",
        "attest", "quote", "--sysfs", "cloud/reference", "--simulation", "--report-data", "00" * 64,
        stdout_to="owner/reference.quote",
    )  # fmt: skip
    runner.run(
        "Owner: write the policy: who may have the key",
        "policy", "init", "--from-quote", "owner/reference.quote", "--label", "demo image 1",
        "--server-platform", "--simulation", "-o", "owner/release-policy.yaml",
    )  # fmt: skip
    runner.run(
        "Owner: write the clients' policy: what they may trust",
        "policy", "client", "owner/release-policy.yaml", "--broker-identity", "broker/broker.json",
        "--record", "owner/models.record.json", "--owner-pub", "owner/owner.pub",
        "-o", "client/policy.yaml",
    )  # fmt: skip
    runner.run(
        "Owner: register key, record and policy with the broker",
        "secret", "put", _RESOURCE, "--broker", "broker", "--sealed-key", "owner/models.key.sealed",
        "--record", "owner/models.record.json", "--owner-pub", "owner/owner.pub",
        "--policy", "owner/release-policy.yaml",
    )  # fmt: skip
    runner.start(
        "Broker: listen",
        "broker",
        "broker", "serve", "broker", "--listen", f"127.0.0.1:{ports.broker}",
        "--collateral", "platform/collateral.json", "--simulation-anchor", "platform/anchor.der",
        "--ready-fd", "1",
    )  # fmt: skip


def serve_in_the_cloud(runner: Runner, ports: Ports) -> None:
    """Cloud: a TD that attests, opens the volume and serves."""
    start_td(runner, "td", "Cloud: boot a TD with the guest image")
    runner.start(
        f"Guest: attest, open the volume (driver {volume_driver()}), measure, serve",
        "guest",
        *guest_up("cloud/models.seal", "td", ports),
    )


def classify_a_photo(runner: Runner, ports: Ports) -> tuple[dict[str, Any], dict[str, Any]]:
    """Client: verify, then classify. The best label, and what was verified."""
    shutil.copy(_coffee(), runner.directory / "client" / "coffee.png")
    runner.shell(
        "Client: a photo from scikit-image",
        "cp \"$(python -c 'import skimage, pathlib; "
        'print(pathlib.Path(skimage.__file__).parent / "data/coffee.png")\')" client/coffee.png',
    )
    address = f"127.0.0.1:{ports.grpc}"
    verified = runner.run(
        "Client: verify the server's quote", "trust", address, *TRUST, "--json"
    ).result()
    outcome = runner.run(
        "Client: verify it again, then send a photo to be classified",
        "predict", "client/coffee.png", "--url", address, "--model", _LITE0, *TRUST,
        show=lambda lines: lines,
    )  # fmt: skip
    name, _, probability = outcome.stdout.splitlines()[-_LABELS].rpartition(": ")
    if name != "espresso" or float(probability) <= 0.9:
        raise InternalError(
            "demo.wrong_result", f"the photo of an espresso is called {name}, p = {probability}"
        )
    return {"name": name, "probability": float(probability)}, verified


def measure(runner: Runner, ports: Ports, loops: int) -> dict[str, Any]:
    """Client: the original system's benchmark; its summary."""
    shutil.copy(runner.directory / "owner/tree/tls/server.crt", runner.directory / "client")
    runner.shell("Client: get the server's certificate from its owner",
                 "cp owner/tree/tls/server.crt client/")  # fmt: skip
    command = (
        "bench", "--url", f"{_HOST}:{ports.grpc}", "--connect-to", f"127.0.0.1:{ports.grpc}",
        "--crt", "client/server.crt", "--batch", "1", "--cnum", "1", "--loop", str(loops),
    )  # fmt: skip
    outcome = runner.run(
        "Client: the original system's benchmark, ResNet50",
        *command,
        show=lambda lines: [*lines[:2], "...", lines[-1]],
    )
    summary = outcome.stdout.splitlines()[-1]
    figures = [float(each) for each in re.findall(r"\d+\.\d+", summary)]
    return {
        "summary": summary,
        **dict(zip(("seconds", "average_latency_ms", "images_per_second"), figures, strict=True)),
    }


def refuse_three_times(
    runner: Runner, ports: Ports
) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """The three refusals by name, and what reached the impostor."""
    refusals = {}

    start_td(runner, "other", "Cloud: boot a TD with another image", "--firmware", "not the image")
    refusals["other measurement"] = _refused(
        runner,
        "Refusal 1: a TD with another measurement asks for the key",
        *guest_up("cloud/models.seal", "other", ports),
    )

    _flip_one_bit(runner)
    start_td(runner, "fresh", "Cloud: boot another TD with the guest image")
    refusals["flipped bit"] = _refused(
        runner,
        "Refusal 2: the volume has one flipped bit",
        *guest_up("cloud/flipped.seal", "fresh", ports),
    )

    impostor = runner.start(
        "Cloud: a server with the guest's evidence and a key of its own",
        "impostor",
        "simulate", "impostor", "--victim", f"127.0.0.1:{ports.grpc}",
        "--listen", f"127.0.0.1:{ports.impostor}",
    )  # fmt: skip
    refusals["foreign quote"] = _refused(
        runner,
        "Refusal 3: a server whose quote does not match its key",
        "predict", "client/coffee.png", "--url", f"127.0.0.1:{ports.impostor}", *TRUST,
    )  # fmt: skip
    counts: dict[str, int] = json.loads(impostor.stop())
    if counts["application_bytes"]:
        raise InternalError("demo.wrong_result", f"the impostor was sent something: {counts}")
    return refusals, counts


TRUST = (
    "--policy", "client/policy.yaml", "--collateral", "platform/collateral.json",
    "--simulation-anchor", "platform/anchor.der",
)  # fmt: skip


def start_td(runner: Runner, name: str, title: str, *options: str) -> None:
    """Boot a simulated TD whose sysfs appears under ``cloud/name``."""
    runner.start(
        f"{title} (SIMULATION)",
        name,
        "simulate", "td", "--platform", "platform", "--mount", f"cloud/{name}", *options,
    )  # fmt: skip


def volume_driver() -> str:
    """The production driver where this machine can run it, else the one in user space."""
    try:
        driver_named("kernel").require()
    except Unavailable:
        return "fuse"
    return "kernel"


def guest_up(
    volume: str, td: str, ports: Ports, *, grpc: int | None = None, rest: int | None = None
) -> tuple[str, ...]:
    """The command that starts a guest on a volume in a TD; on other ports if given."""
    return (
        "guest", "up", volume, "--resource", _RESOURCE, "--broker", f"127.0.0.1:{ports.broker}",
        "--broker-identity", "broker/broker.json", "--owner-pub", "owner/owner.pub",
        "--driver", volume_driver(), "--sysfs", f"cloud/{td}", "--simulation",
        "--state-dir", f"cloud/state-{td}",
        "--port", str(ports.grpc if grpc is None else grpc),
        "--rest-api-port", str(ports.rest if rest is None else rest),
    )  # fmt: skip


def _refused(runner: Runner, title: str, *command: str) -> dict[str, str]:
    """Run a command that must be refused; its error, as printed."""
    outcome = runner.run(title, *command, expect=_REFUSED, show_errors=_error_lines)
    message, _, code = _error_lines(outcome.stderr.splitlines())[0].rpartition(" [")
    message = message.removeprefix("error: ")
    return {"code": code.rstrip("]"), "message": message}


def _error_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("error: ", "next: "))]


def _flip_one_bit(runner: Runner) -> None:
    """Copy the sealed volume and change one bit in the middle of its data."""
    source = runner.directory / "cloud/models.seal"
    copy = runner.directory / "cloud/flipped.seal"
    shutil.copy(source, copy)
    middle = copy.stat().st_size // 2
    with copy.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    runner.shell(
        "Host: copy the volume and flip one bit in the middle of its data",
        "cp cloud/models.seal cloud/flipped.seal; "
        "python -c \"f = open('cloud/flipped.seal', 'r+b'); "
        f'f.seek({middle}); b = f.read(1)[0]; f.seek({middle}); f.write(bytes([b ^ 1]))"',
    )


def _coffee() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data" / "coffee.png"
