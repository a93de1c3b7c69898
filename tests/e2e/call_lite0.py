"""Run by the oracle's Python: TensorFlow Serving's own client stubs against our server.

Arguments: port, certificate, SavedModel, picture (.npy), file for the result (.npz).
Stores what the server answered over TLS and what TensorFlow itself computes.
"""

import sys
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

port, certificate, saved_model, picture, result = sys.argv[1:]
image = np.load(picture)
credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
channel = grpc.secure_channel(
    f"127.0.0.1:{port}",
    credentials,
    options=[("grpc.ssl_target_name_override", "grpc.tf.service.com")],
)
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

request = predict_pb2.PredictRequest()
request.model_spec.name = "efficientnet-lite0"
request.inputs["input"].CopyFrom(tf.make_tensor_proto(image))
answer = stub.Predict(request, timeout=60)

status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
    get_model_status_pb2.GetModelStatusRequest(model_spec=request.model_spec), timeout=60
)
metadata = stub.GetModelMetadata(
    get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=request.model_spec, metadata_field=["signature_def"]
    ),
    timeout=60,
)
signatures = get_model_metadata_pb2.SignatureDefMap()
assert metadata.metadata["signature_def"].Unpack(signatures)

function = tf.saved_model.load(saved_model).signatures["serving_default"]
own = function(input=tf.constant(image))
np.savez(
    result,
    state=status.model_version_status[0].state,
    version=answer.model_spec.version.value,
    inputs=sorted(signatures.signature_def["serving_default"].inputs),
    **{f"served_{name}": tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()},
    **{f"own_{name}": tensor.numpy() for name, tensor in own.items()},
)
