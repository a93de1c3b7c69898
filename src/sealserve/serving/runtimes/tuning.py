"""Threads and streams of a model on OpenVINO, chosen from the cores and from what it is.

A *stream* runs one inference at a time; a model's threads are shared out among its streams.
One stream on all cores answers a lone request soonest; more streams answer more requests
a second once there are several. With batching it depends on what a batch shares: dense
layers read their weights once for all its rows, so that one large batch is best;
convolutions share next to nothing. Flags go before all of this.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import openvino as ov

from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Tuning

__all__ = ["Tuner"]

_SMALL_BYTES: Final = 2**20
_HEAVY = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "LSTMSequence",
          "GRUSequence", "RNNSequence", "Loop", "TensorIterator")  # fmt: skip
_LATENCY, _THROUGHPUT = "LATENCY", "THROUGHPUT"
_BY_FLAGS = "set by flags"


@dataclass(frozen=True)
class Tuner:
    """Chooses for each graph.

    Attributes:
        config: the flags.
        cores: that this process may use.
    """

    config: RuntimeConfig
    cores: int

    @classmethod
    def here(cls, config: RuntimeConfig) -> Tuner:
        """For the cores of this process."""
        return cls(config, len(os.sched_getaffinity(0)))

    def properties(self, graph: ov.Model) -> tuple[dict[str, Any], str]:
        """What to tell OpenVINO's compiler, and why."""
        hint, streams, reason = self._choose(graph)
        properties = {
            "INFERENCE_PRECISION_HINT": self.config.precision,
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": self.config.threads or self.cores,
            "CACHE_DIR": "",
        }
        if streams:
            properties["NUM_STREAMS"] = streams
        return properties, reason

    def tuning(self, model: ov.CompiledModel, reason: str) -> Tuning:
        """What has become of it."""
        precise = model.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
        if self.config.precision != "f32" and precise:
            reason += "; the processor has no bfloat16"
        return Tuning(
            streams=model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"),
            threads=model.get_property("INFERENCE_NUM_THREADS"),
            precision="f32" if precise else "bf16",
            reason=reason,
        )

    def _choose(self, graph: ov.Model) -> tuple[str, int, str]:
        """The hint, the streams (0: the hint's), and the reason."""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        if self.config.streams:
            return _LATENCY, self.config.streams, f"{_BY_FLAGS}, on {cores}"
        by = f"threads {_BY_FLAGS}; " if self.config.threads else ""
        weights = _plain_weights(graph)
        if weights is not None and weights <= _SMALL_BYTES:
            streams = min(self.cores, self.config.threads or self.cores)
            why = (
                f"small ({weights} bytes of weights, no convolution or loop): to split one "
                f"inference over {cores} would cost more than it saves"
            )
            return _THROUGHPUT, streams, by + why
        if self.config.throughput and weights is not None:
            why = f"one batch at a time on all {cores}, which reads the weights once for all rows"
            return _LATENCY, 1, by + why
        if self.config.throughput:
            why = f"a batch of convolutions or loops shares little: OpenVINO's choice on {cores}"
            return _THROUGHPUT, 0, by + why
        return _LATENCY, 1, f"{by}one inference at a time on all {cores}: the lowest latency"


def _plain_weights(graph: ov.Model) -> int | None:
    """The weights in bytes of a graph that uses each of them once a row; None for others."""
    total = 0
    for node in graph.get_ops():
        kind = node.get_type_name()
        if kind in _HEAVY:
            return None
        if kind == "Constant":
            total += node.get_byte_size()
    return total
