"""Operations that OpenVINO's frontends translate wrongly, translated by us.

The frontends of SavedModels and TensorFlow Lite move transposes through a graph until they
cancel (convolutions come with some), and take ``LogSoftmax`` for an operation on each number
by itself: it goes on along the last axis where that has become another one (seen in 2026.4).
So ``log_softmax`` over the channels behind a convolution, and over any axis but the last,
came out wrong. Spelled out, its maximum and its softmax are moved rightly.

The plugin's own ``SoftPlus`` is up to 4e-6 above nothing where next to nothing is right
(of -34), which shows once it is multiplied. Spelled out it is right to 1e-7.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.frontend import ConversionExtension, FrontEnd, FrontEndManager

__all__ = ["load_frontend"]


def load_frontend(framework: str) -> FrontEnd:
    """A frontend of OpenVINO that translates as this module says."""
    frontend = FrontEndManager().load_by_framework(framework)
    for kind, translation in _TRANSLATIONS.get(framework, {}).items():
        frontend.add_extension(ConversionExtension(kind, translation))
    return frontend


def _log_softmax(node: Any) -> list[Any]:
    """``x - max(x) - log(sum(exp(x - max(x))))``, whose sum is 1 / max(softmax(x))."""
    given = node.get_input(0)
    last = ops.constant(np.array([-1]))
    below = ops.subtract(given, ops.reduce_max(given, last, keep_dims=True))
    largest = ops.reduce_max(ops.softmax(given, -1), last, keep_dims=True)
    # It is never so small; said so, its logarithm need not be watched for NaN.
    least = ops.constant(np.float32(1e-30))
    if given.get_element_type() != ov.Type.f32:  # or not known yet
        least = ops.convert_like(least, given)
    return [ops.add(below, ops.log(ops.maximum(largest, least))).output(0)]


def _softplus(node: Any) -> list[Any]:
    """``max(x, 0) + log(1 + exp(-abs(x)))``, whose last part is -log(sigmoid(abs(x)))."""
    given = node.get_input(0)
    logarithm = ops.log(ops.sigmoid(ops.absolute(given)))
    return [ops.subtract(ops.relu(given), logarithm).output(0)]


_TRANSLATIONS: Final = {
    "tf": {"LogSoftmax": _log_softmax, "Softplus": _softplus},
    "tflite": {"LOG_SOFTMAX": _log_softmax},
}
