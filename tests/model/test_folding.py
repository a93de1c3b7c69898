"""Inference clean-ups are the runtime's: what is executed has no batch normalization left."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from sealserve.logs import make_log
from sealserve.model.importer import import_model
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.wire.tensorflow import graph_pb2 as pb


def executed(version: Path) -> Counter[str]:
    """The kinds of operations that OpenVINO's CPU plugin runs for a signature as it is served."""
    runtime = ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO()))
    model = runtime.load(version)
    lanes = model._compiled["serving_default"]._lanes  # type: ignore[attr-defined]
    with lanes.one() as lane:
        graph = lane._way.model.get_runtime_model()
    return Counter(str(node.get_rt_info()["layerType"].value) for node in graph.get_ops())


def test_batch_normalization_is_folded_when_a_model_is_served(
    frozen_lite0: Path, tmp_path: Path
) -> None:
    imported = import_model(frozen_lite0, tmp_path, name="lite0", outputs=["probabilities"])
    saved = pb.SavedModel.FromString((imported.path / "saved_model.pb").read_bytes())
    stated = Counter(node.op for node in saved.meta_graphs[0].graph_def.node)
    assert stated["FusedBatchNormV3"] == 49
    assert stated["Relu6"] == 33

    ran = executed(imported.path)
    # Beside the convolutions there is what moves and scales the picture, the pooling and the
    # last layer: normalizations, activations and the sums of branches are within them.
    assert ran["Convolution"] == stated["Conv2D"] + stated["DepthwiseConv2dNative"] == 49
    assert ran["Eltwise"] <= 1
    assert set(ran) <= {
        *("Input", "Output", "Const", "Reshape", "Transpose", "Reorder"),
        *("Convolution", "Eltwise", "Reduce", "FullyConnected", "Softmax"),
    }
