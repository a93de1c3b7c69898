"""Runs in the oracle: TensorFlow's own client stubs against a server.

``call_server.py PORT SERVER_CERTIFICATE MODELS_DIR OUT_DIR`` sends each
``MODELS_DIR/<name>.<signature>.npz`` to Predict, and writes what comes back to
``OUT_DIR``: the outputs as .npz, metadata and states as JSON.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

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

port, certificate, models, out = sys.argv[1], *map(Path, sys.argv[2:])
channel = grpc.secure_channel(
    f"127.0.0.1:{port}",
    grpc.ssl_channel_credentials(certificate.read_bytes()),
    [("grpc.ssl_target_name_override", "grpc.tf.service.com")],
)
predictor = prediction_service_pb2_grpc.PredictionServiceStub(channel)
states = model_service_pb2_grpc.ModelServiceStub(channel)
report = {"specs": {}, "dtypes": {}, "fields": {}, "metadata": {}, "states": {}}

for file in sorted(models.glob("*.npz")):
    name, signature = file.stem.split(".")
    stored = np.load(file)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.version.value = 1
    request.model_spec.signature_name = "" if signature == "serving_default" else signature
    for key in stored:
        if key.startswith("in_"):
            request.inputs[key[3:]].CopyFrom(tf.make_tensor_proto(stored[key]))
    response = predictor.Predict(request, timeout=30)
    np.savez(out / file.name, **{k: tf.make_ndarray(v) for k, v in response.outputs.items()})
    spec = response.model_spec
    report["specs"][file.stem] = [spec.name, spec.version.value, spec.signature_name]
    report["fields"][file.stem] = sorted(
        {
            field.name
            for proto in response.outputs.values()
            for field, _ in proto.ListFields()
            if field.name not in ("dtype", "tensor_shape")
        }
    )

request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
request.model_spec.name = "affine"
request.model_spec.version.value = 1
metadata = predictor.GetModelMetadata(request, timeout=30)
signatures = get_model_metadata_pb2.SignatureDefMap()
assert metadata.metadata["signature_def"].Unpack(signatures)
report["metadata"] = {
    "version": metadata.model_spec.version.value,
    "signatures": {
        key: {
            "method": signature.method_name,
            "inputs": {k: [v.name, v.dtype] for k, v in signature.inputs.items()},
            "outputs": {k: [v.name, v.dtype] for k, v in signature.outputs.items()},
        }
        for key, signature in signatures.signature_def.items()
    },
}

for name in ("affine", "trap_counter"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    report["states"][name] = [
        [each.version, each.state, each.status.error_code, each.status.error_message]
        for each in states.GetModelStatus(request, timeout=30).model_version_status
    ]
(out / "report.json").write_text(json.dumps(report))
