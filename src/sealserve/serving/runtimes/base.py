"""The interface of a runtime, and what a signature looks like to the server.

Rules this module keeps:

* A runtime proves at load that what it runs is the signature: same inputs, same
  outputs, same types, no hidden state. What it cannot prove it refuses, with
  the reason; a wrong number without an error is the one thing it must never give.
* Arrays in, arrays out. `Model.run` is called from many threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sealserve.errors import SealserveError
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensors import Array

__all__ = ["DEFAULT_SIGNATURE", "Model", "Runtime", "Signature", "TensorSpec", "Tuning"]

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        dtype: its ``tensorflow.DataType`` number.
        shape: its dimensions, -1 for one that varies; None when even the rank varies.
    """

    dtype: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """What a client calls: named inputs and outputs.

    Attributes:
        name: its key.
        inputs: what it takes.
        outputs: what it gives.
        method_name: what kind of call it is for, as its file says.
        elementwise: it computes each number by itself, so that inputs may come in another
            rank than is stated.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str
    elementwise: bool = False

    @classmethod
    def from_wire(cls, name: str, wire: graph_pb2.SignatureDef) -> Signature:
        """Read a SignatureDef."""
        return cls(
            name=name,
            inputs={key: _spec(info) for key, info in wire.inputs.items()},
            outputs={key: _spec(info) for key, info in wire.outputs.items()},
            method_name=wire.method_name,
        )


@dataclass(frozen=True)
class Tuning:
    """How a signature is run.

    Attributes:
        streams: inferences side by side.
        threads: of all of them together.
        precision: ``f32`` or ``bf16``.
        reason: why so.
        beside: inferences side by side instead, once as many are asked for; 0: never.
    """

    streams: int
    threads: int
    precision: str
    reason: str
    beside: int = 0

    def __str__(self) -> str:
        beside = f", or {self.beside} when as many ask," if self.beside else ""
        return (
            f"{self.streams} at a time{beside} on {self.threads} threads at {self.precision}: "
            f"{self.reason}"
        )


class Model(ABC):
    """One loaded version of a model.

    Attributes:
        definitions: every SignatureDef of the model as its file has it, for metadata.
        signatures: those that this model can run.
        refused: those it cannot, each with the reason.
        tuning: how signatures are run, as far as the runtime has a choice.
        stateful: signatures that keep state between calls.
    """

    tuning: Mapping[str, Tuning] = MappingProxyType({})
    stateful: Collection[str] = frozenset()

    definitions: Mapping[str, graph_pb2.SignatureDef]
    signatures: Mapping[str, Signature]
    refused: Mapping[str, SealserveError]

    @abstractmethod
    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Compute some outputs of a signature.

        Args:
            signature: a key of `signatures`.
            inputs: one array for each input, already of its dtype and a shape that fits.
            outputs: the outputs wanted.

        Raises:
            InputError: ``request.inference_failed``: these inputs cannot be computed.
        """

    def made_up(self, signature: str, number: int) -> Mapping[str, Array] | None:  # noqa: ARG002
        """One row of inputs that can be computed, where types and shapes do not say enough.

        Args:
            signature: a key of `signatures`.
            number: of the row; another one for each number.
        """
        return None

    def for_warm_up(self) -> Model:
        """The same, before anybody else uses it: a run is done wherever a later one may be."""
        return self

    def hurry(self) -> None:  # noqa: B027 - most have nothing that waits
        """No more runs will come: let those under way wait for no others."""

    @abstractmethod
    def close(self) -> None:
        """Give back the memory; no `run` is under way or will come."""


class Runtime(ABC):
    """Something that can load models."""

    name: str

    @abstractmethod
    def load(self, path: Path) -> Model:
        """Load one version directory.

        Raises:
            SealserveError: a ``servable.*`` code; nothing stays loaded.
        """

    def give_up(self) -> None:  # noqa: B027 - most have nothing to end
        """Nothing more is wanted: let loads that are under way fail, as soon as they can."""


def _spec(info: graph_pb2.TensorInfo) -> TensorSpec:
    shape = info.tensor_shape
    return TensorSpec(
        dtype=info.dtype,
        shape=None if shape.unknown_rank else tuple(dim.size for dim in shape.dim),
    )
