"""ResNet50 v1.5 with seeded weights, as a frozen graph.

Architecture: the ResNet of TensorFlow's official models (``tensorflow/models``,
``official/r1/resnet``, version 1, in the "v1.5" form that strides in the 3x3
convolution), which is also what Intel's ``resnet50_fp32_pretrained_model.pb``
holds: 224 x 224 x 3 in, fixed padding before every strided convolution, 1001
classes out with "background" at 0.

The weights are RANDOM, drawn with a stated seed: the right shape and the right
amount of work (about 4.1 billion multiply-adds an image) for measuring, and no
accuracy at all. The published weights are ``sealserve model fetch
resnet50-v15-fp32``.

Input ``input``: float32 [batch, 224, 224, 3]. Output ``predict``: float32
[batch, 1001], probabilities.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from sealserve.model.graphdef import GraphBuilder
from sealserve.wire.tensorflow import graph_pb2 as graph_pb

__all__ = ["SEED", "build"]

SEED = 20180815

_EPSILON = 1e-5
_BLOCKS = (3, 4, 6, 3)
_CLASSES = 1001
# The scale of the last normalisation in each block. With 1, each of the 16 sums
# would double the variance, and the softmax would pick one class for any image.
_BRANCH_SCALE = 0.25
# Pixels of 0..255 have a variance of about 70 squared and He's kernels double it:
# the first normalisation brings that back to one.
_STEM_VARIANCE = 2 * 70.0**2


def build(seed: int = SEED) -> graph_pb.GraphDef:
    """The whole network; the same seed gives the same bytes.

    Args:
        seed: for numpy's PCG64. Kernels are He normal, the classifier's has a
            variance of 1 / fan-in; means and offsets are N(0, 0.1), variances
            and scales uniform in 0.5..1.5 (times the constants above).
    """
    net = _Network(seed)
    graph = net.graph
    x = graph.placeholder("input", [None, 224, 224, 3])
    x = net.conv("resnet_model/stem", x, 3, 64, kernel=7, stride=2)
    x = net.batch_norm("resnet_model/stem", x, 64, variance=_STEM_VARIANCE)
    x = graph.relu("resnet_model/stem/relu", x)
    x = graph.max_pool("resnet_model/max_pool", x, size=3, stride=2)
    width = 64
    for stage, blocks in enumerate(_BLOCKS):
        filters = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            name = f"resnet_model/stage{stage + 1}/block{block + 1}"
            x = net.bottleneck(name, x, width, filters, stride)
            width = 4 * filters
    x = graph.mean("resnet_model/pool", x, [1, 2])
    kernel = net.normal([width, _CLASSES], sqrt(1 / width))
    x = graph.dense("resnet_model/dense", x, kernel, net.normal([_CLASSES], 0.1))
    graph.softmax("predict", x)
    return graph.graph


class _Network:
    """A graph and the generator of its weights."""

    def __init__(self, seed: int) -> None:
        self.graph = GraphBuilder()
        self._random = np.random.Generator(np.random.PCG64(seed))

    def normal(self, shape: list[int], deviation: float) -> npt.NDArray[np.float32]:
        return self._random.standard_normal(shape, np.float32) * np.float32(deviation)

    def conv(
        self, name: str, x: str, channels: int, filters: int, *, kernel: int = 1, stride: int = 1
    ) -> str:
        """A convolution; a strided one is padded by its kernel and not by the image's size."""
        padding = "SAME"
        if stride > 1:
            before, after = (kernel - 1) // 2, kernel // 2
            x = self.graph.pad(f"{name}/pad", x, [[0, 0], [before, after], [before, after], [0, 0]])
            padding = "VALID"
        shape = [kernel, kernel, channels, filters]
        weights = self.normal(shape, sqrt(2 / (kernel * kernel * channels)))
        return self.graph.conv2d(f"{name}/conv", x, weights, stride=stride, padding=padding)

    def batch_norm(
        self, name: str, x: str, channels: int, *, scale: float = 1, variance: float = 1
    ) -> str:
        spread = self._random.uniform(0.5, 1.5, (2, channels)).astype(np.float32)
        return self.graph.batch_norm(
            f"{name}/bn",
            x,
            scale=spread[0] * np.float32(scale),
            offset=self.normal([channels], 0.1),
            mean=self.normal([channels], 0.1 * sqrt(variance)),
            variance=spread[1] * np.float32(variance),
            epsilon=_EPSILON,
        )

    def bottleneck(self, name: str, x: str, width: int, filters: int, stride: int) -> str:
        """1x1, 3x3 (which strides), 1x1, and the shortcut around them."""
        graph, out = self.graph, 4 * filters
        shortcut = x
        if width != out:
            shortcut = self.conv(f"{name}/shortcut", x, width, out, stride=stride)
            # He's kernels double the variance, also where no ReLU halves it again.
            shortcut = self.batch_norm(f"{name}/shortcut", shortcut, out, variance=2)
        y = self.conv(f"{name}/conv1", x, width, filters)
        y = graph.relu(f"{name}/conv1/relu", self.batch_norm(f"{name}/conv1", y, filters))
        y = self.conv(f"{name}/conv2", y, filters, filters, kernel=3, stride=stride)
        y = graph.relu(f"{name}/conv2/relu", self.batch_norm(f"{name}/conv2", y, filters))
        y = self.conv(f"{name}/conv3", y, filters, out)
        y = self.batch_norm(f"{name}/conv3", y, out, scale=_BRANCH_SCALE)
        return graph.relu(f"{name}/relu", graph.add(f"{name}/add", y, shortcut))
