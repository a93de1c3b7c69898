"""Threads and streams of a model on OpenVINO, chosen from the cores and from what it is.

A *stream* runs one inference at a time; a model's threads are shared out among its streams.
One stream on all cores answers a lone request soonest; more streams answer more requests
a second once there are several: a model is compiled for both (`lanes`), unless its weights
are too large to hold twice. With batching it depends on what a batch shares: dense
layers read their weights once for all its rows, so that one large batch is best;
convolutions share next to nothing. Flags go before all of this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import openvino as ov

from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Tuning

__all__ = ["Plan", "Tuner", "weights_of"]

_SMALL_BYTES: Final = 2**20
_TWICE_BYTES: Final = 512 * 2**20
_HEAVY = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "LSTMSequence",
          "GRUSequence", "RNNSequence", "Loop", "TensorIterator")  # fmt: skip
_LATENCY, _THROUGHPUT = "LATENCY", "THROUGHPUT"
_BY_FLAGS = "set by flags"


@dataclass(frozen=True)
class Plan:
    """How to compile a graph.

    Attributes:
        ways: properties for OpenVINO's compiler; the second way, if there is one, is for
            requests side by side.
        reason: why so.
    """

    ways: Sequence[Mapping[str, Any]]
    reason: str


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

    def plan(self, graph: ov.Model) -> Plan:
        """What to tell OpenVINO's compiler, and why."""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        if self.config.streams:
            return self._one_way(_LATENCY, self.config.streams, f"{_BY_FLAGS}, on {cores}")
        by = f"threads {_BY_FLAGS}; " if self.config.threads else ""
        weights, plain = weights_of(graph)
        if plain and weights <= _SMALL_BYTES:
            why = (
                f"small ({weights} bytes of weights, no convolution or loop): to split one "
                f"inference over {cores} would cost more than it saves"
            )
            return self._one_way(_THROUGHPUT, min(self.cores, self._threads), by + why)
        if self.config.throughput and plain:
            why = f"one batch at a time on all {cores}, which reads the weights once for all rows"
            return self._one_way(_LATENCY, 1, by + why)
        if self.config.throughput:
            why = f"a batch of convolutions or loops shares little: OpenVINO's choice on {cores}"
            return self._one_way(_THROUGHPUT, 0, by + why)
        return self._both_ways(weights, f"{by}one inference at a time on all {cores}")

    def tuning(self, ways: Sequence[ov.CompiledModel], reason: str) -> Tuning:
        """What has become of it."""
        precise = ways[0].get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
        if self.config.precision != "f32" and precise:
            reason += "; the processor has no bfloat16"
        streams = [way.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") for way in ways]
        return Tuning(
            streams=streams[0],
            threads=ways[0].get_property("INFERENCE_NUM_THREADS"),
            precision="f32" if precise else "bf16",
            reason=reason,
            beside=sum(count for count in streams[1:] if count > 1),
        )

    @property
    def _threads(self) -> int:
        return self.config.threads or self.cores

    def _one_way(self, hint: str, streams: int, reason: str) -> Plan:
        """With so many streams (0: the hint's)."""
        properties = {
            "INFERENCE_PRECISION_HINT": self.config.precision,
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": self._threads,
            "CACHE_DIR": "",
        }
        if streams:
            properties["NUM_STREAMS"] = streams
        return Plan((properties,), reason)

    def _both_ways(self, weights: int, reason: str) -> Plan:
        alone = self._one_way(_LATENCY, 1, f"{reason}: the lowest latency")
        if min(self._threads, self.cores) == 1:
            return alone
        if weights > _TWICE_BYTES:
            why = f"{alone.reason}; {weights} bytes of weights are not held twice"
            return replace(alone, reason=why)
        beside = self._one_way(_THROUGHPUT, 0, "")
        return Plan((*alone.ways, *beside.ways), f"{alone.reason}; more a second side by side")


def weights_of(graph: ov.Model) -> tuple[int, bool]:
    """The weights of a graph in bytes, and whether each of them is used once a row."""
    total, plain = 0, True
    for node in graph.get_ops():
        kind = node.get_type_name()
        plain = plain and kind not in _HEAVY
        if kind == "Constant":
            total += node.get_byte_size()
    return total, plain
