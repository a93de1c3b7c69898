"""Runs in the oracle: a client of TensorFlow's stubs that calls as the original system's does.

``call_as_the_original.py MODEL PORT,ROOT[,KEY,CHAIN] ...``: asynchronous gRPC to
``localhost``, the certificate's common name its only name, several connections at once,
each of which asks the same thing again and again. Prints for each server what the first
answer holds, as a line of JSON.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

CONNECTIONS, REPEATS = 4, 3


async def connection(
    number: int, model: str, port: str, root: bytes, key: bytes | None, chain: bytes | None
) -> list[predict_pb2.PredictResponse]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    values = np.array([number, 2.0], np.float32)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values, shape=[2]))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=root, private_key=key, certificate_chain=chain
    )
    answers = []
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(REPEATS):
            begun = time.time()
            answers.append(await stub.Predict(request))
            assert time.time() >= begun
    return answers


async def ask(
    model: str, port: str, root: bytes, key: bytes | None = None, chain: bytes | None = None
) -> None:
    calls = (connection(number, model, port, root, key, chain) for number in range(CONNECTIONS))
    found = await asyncio.gather(*calls)
    assert [len(each) for each in found] == [REPEATS] * CONNECTIONS
    for number, answers in enumerate(found):
        for answer in answers:
            assert list(answer.outputs["y"].float_val) == [4.0 * number + 1.0, 9.0]
    print(json.dumps(json_format.MessageToDict(found[0][0])))


for server in sys.argv[2:]:
    port, *files = server.split(",")
    asyncio.run(ask(sys.argv[1], port, *(Path(file).read_bytes() for file in files)))
