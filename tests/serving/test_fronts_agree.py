"""REST and gRPC say the same of the same values, of every type that JSON can carry."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sealserve.errors import SealserveError
from sealserve.serving.access import Peer
from sealserve.serving.calls import Call
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_services import PredictionService
from sealserve.serving.rest_api import RestApi
from sealserve.serving.runtimes.base import Signature, TensorSpec
from sealserve.serving.status import Status, status_of
from sealserve.serving.table import Table
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, data_type_of, to_array, to_proto
from tests.serving.fakes import FakeModel
from tests.soak import times

TYPES = {
    name: np.dtype(code)
    for name, code in {
        "half": "f2", "float": "f4", "double": "f8", "int8": "i1", "int16": "i2", "int32": "i4",
        "int64": "i8", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "?",
        "raw_bytes": "O",
    }.items()
}  # fmt: skip


class Echo(FakeModel):
    """Gives back what it gets: a signature for each type, its input named as the type is."""

    def __init__(self) -> None:
        definition = api_pb2.SignatureDefMap().signature_def["x"]
        self.definitions = dict.fromkeys(TYPES, definition)
        self.refused = {}
        self.signatures = {}
        for name, dtype in TYPES.items():
            data_type = pb.DT_STRING if dtype.kind == "O" else data_type_of(np.zeros(0, dtype))
            spec = {name: TensorSpec(data_type, None)}
            self.signatures[name] = Signature(name, spec, spec, "")

    def run(self, signature: str, inputs: Any, outputs: Any) -> dict[str, Array]:
        return {signature: inputs[signature]}


PLANE = Dataplane(Table.of("m", 1, Echo()))
REST, GRPC = RestApi(PLANE), PredictionService(PLANE, ServerConfig(()))


def call() -> Call:
    return Call("", "TEST", Peer())


def by_grpc(name: str, array: Array) -> Array:
    request = api_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", name
    request.inputs[name].CopyFrom(to_proto(array))
    return to_array(GRPC.predict(request, call()).outputs[name], 1 << 20)


def json_of(value: Any) -> Any:
    if isinstance(value, list):
        return [json_of(each) for each in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def by_rest(name: str, array: Array, *, row: bool) -> Any:
    values = json_of(array.tolist())
    body = {"signature_name": name, "instances" if row else "inputs": values}
    _, work = REST.find("POST", "/v1/models/m:predict")
    answer: dict[str, Any] = json.loads(work(json.dumps(body).encode(), call()))
    return answer["predictions" if row else "outputs"]


strings = st.binary(max_size=6)
arrays = st.sampled_from(list(TYPES.items())).flatmap(
    lambda named: st.tuples(
        st.just(named[0]),
        hnp.arrays(
            named[1],
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3),
            elements=strings if named[1].kind == "O" else None,
        ),
    )
)


@settings(deadline=None, max_examples=times(5000, 150))
@given(arrays, st.booleans())
def test_the_same_values_come_back_by_both_fronts(named: tuple[str, Array], row: bool) -> None:
    name, array = named
    wanted = by_grpc(name, array)
    answer = by_rest(name, array, row=row)
    if array.dtype == object:
        assert wanted.tolist() == array.tolist()
        assert answer == json_of(array.tolist())
        return
    np.testing.assert_array_equal(np.array(answer, array.dtype), wanted)
    np.testing.assert_array_equal(wanted, array)


@settings(deadline=None, max_examples=times(2000, 60))
@given(
    sent=st.sampled_from([name for name, dtype in TYPES.items() if dtype.kind != "O"]),
    asked=st.sampled_from([*TYPES, "nobody"]),
    model=st.sampled_from(["m", "other"]),
)
def test_both_fronts_refuse_the_same(sent: str, asked: str, model: str) -> None:
    """The status is one; JSON knows fewer types, so it may accept what gRPC tells apart."""
    array = np.ones(2, TYPES[sent])
    request = api_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, asked
    request.inputs[asked].CopyFrom(to_proto(array))
    body = json.dumps({"signature_name": asked, "inputs": {asked: array.tolist()}}).encode()
    _, work = REST.find("POST", f"/v1/models/{model}:predict")

    def status(ask: Any) -> Status:
        try:
            ask()
        except SealserveError as error:
            return status_of(error)
        return Status.OK

    grpc = status(lambda: GRPC.predict(request, call()))
    rest = status(lambda: work(body, call()))
    assert rest is grpc or (rest is Status.OK and grpc is Status.INVALID_ARGUMENT)
