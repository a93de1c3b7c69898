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
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
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
    stored = np.load(file, allow_pickle=True)
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

request = inference_pb2.MultiInferenceRequest()
for name in ("classify", "regress"):
    task = request.tasks.add(method_name=f"tensorflow/serving/{name}")
    task.model_spec.name, task.model_spec.signature_name = "examples", name
for x in (2.0, -1.5):
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(x)
both = predictor.MultiInference(request, timeout=30)
one = classification_pb2.ClassificationRequest(input=request.input)
one.model_spec.CopyFrom(request.tasks[0].model_spec)
classified = predictor.Classify(one, timeout=30)
two = regression_pb2.RegressionRequest(input=request.input)
two.model_spec.CopyFrom(request.tasks[1].model_spec)
regressed = predictor.Regress(two, timeout=30)
assert both.results[0].classification_result == classified.result
assert both.results[1].regression_result == regressed.result
assert both.results[1].model_spec == regressed.model_spec
report["classes"] = [
    [each.score for each in row.classes] for row in classified.result.classifications
]
report["values"] = [each.value for each in regressed.result.regressions]

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
