"""Learning rates that published weights were trained at, from their authors.

A rate belongs to weights, never to an architecture alone. For weights trained on ImageNet-21k and then on ImageNet-1k,
it is that of the first, long training. Rates that could not be found are unknown, never guessed by family.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

__all__ = ["UNKNOWN", "OriginalTraining", "training_packaged", "training_timm", "training_torchvision"]


class OriginalTraining(NamedTuple):
    """How weights were trained.

    Args:
        lr: Highest learning rate of the schedule; None if it is not known.
        batch: Batch size at that rate, over all devices.
        optimizer: "sgd" (with momentum), "rmsprop", "adam", "adamw" or "lamb".
        source: Where this is stated.
    """

    lr: float | None
    batch: int
    optimizer: str
    source: str


UNKNOWN = OriginalTraining(None, 0, "", "")

REFERENCES = "torchvision, references/classification/README.md"
NEW_RECIPE = "torchvision, issue 3995 (new recipe)"
TIMM_EXAMPLES = "timm, training_script.mdx (commit 3034f27b)"
TPU = "tensorflow/tpu, models/official/efficientnet/main.py (commit 01b67067): 0.016 per 256 images"
STRIKES_BACK = "Wightman et al., ResNet strikes back, 2021, procedure "
DEIT = "Touvron et al., ICML 2021: 0.0005 per 512 images"
DEIT_III = "facebookresearch/deit, README_revenge.md (commit 4bd679b3)"
CONVNEXT = "facebookresearch/ConvNeXt, TRAINING.md (commit 231af909)"
AUGREG = "Steiner et al., TMLR 2022"
VIT = "Dosovitskiy et al., ICLR 2021, table 3"
BIT = "Kolesnikov et al., ECCV 2020: 0.03 per 256 images"
SWIN = "Liu et al., ICCV 2021"
SWIN_V2 = "Liu et al., CVPR 2022 (microsoft/Swin-Transformer, configs/swinv2)"
REGNET = "Radosavovic et al., CVPR 2020 (pycls, configs/dds_baselines): 0.2 per 256 images"
MAXVIT = "google-research/maxvit, maxvit/models/hp/vision_i1k.py (commit 70a47072)"

SGD_256 = OriginalTraining(0.1, 256, "sgd", REFERENCES)
SMALL_REGNET = OriginalTraining(0.8, 1024, "sgd", REFERENCES)
MEDIUM_REGNET = OriginalTraining(0.4, 512, "sgd", REFERENCES)
LARGE_REGNET = OriginalTraining(0.2, 256, "sgd", REFERENCES)
LATEST = OriginalTraining(0.5, 1024, "sgd", NEW_RECIPE)
ADAMW_4096 = OriginalTraining(3e-3, 4096, "adamw", REFERENCES)
ADAMW_1024 = OriginalTraining(1e-3, 1024, "adamw", REFERENCES)
EFFICIENTNET = OriginalTraining(0.016, 256, "rmsprop", TPU)

TORCHVISION: Mapping[str, OriginalTraining] = {
    "alexnet:IMAGENET1K_V1": OriginalTraining(0.01, 256, "sgd", REFERENCES),
    "vgg??:IMAGENET1K_V1": OriginalTraining(0.01, 256, "sgd", REFERENCES),
    "vgg??_bn:IMAGENET1K_V1": SGD_256,
    "resnet*:IMAGENET1K_V1": SGD_256,
    "resnext50_32x4d:IMAGENET1K_V1": SGD_256,
    "resnext101_32x8d:IMAGENET1K_V1": OriginalTraining(0.4, 1024, "sgd", REFERENCES),
    "mobilenet_v2:IMAGENET1K_V1": OriginalTraining(0.045, 256, "sgd", REFERENCES),
    "mobilenet_v3_*:IMAGENET1K_V1": OriginalTraining(0.064, 1024, "rmsprop", REFERENCES),
    "shufflenet_v2_x1_5:IMAGENET1K_V1": OriginalTraining(0.5, 1024, "sgd", REFERENCES),
    "shufflenet_v2_x2_0:IMAGENET1K_V1": OriginalTraining(0.5, 1024, "sgd", REFERENCES),
    # Ported: B0 and B2 from timm, B5 to B7 from the authors' weights.
    "efficientnet_b0:IMAGENET1K_V1": OriginalTraining(0.048, 768, "rmsprop", TIMM_EXAMPLES),
    "efficientnet_b2:IMAGENET1K_V1": OriginalTraining(0.016, 256, "rmsprop", TIMM_EXAMPLES),
    "efficientnet_b[567]:IMAGENET1K_V1": EFFICIENTNET,
    "efficientnet_v2_[sm]:IMAGENET1K_V1": OriginalTraining(0.5, 1024, "sgd", REFERENCES),
    "regnet_y_400mf:IMAGENET1K_V1": OriginalTraining(0.4, 1024, "sgd", REFERENCES),
    "regnet_?_?00mf:IMAGENET1K_V1": SMALL_REGNET,
    "regnet_?_1_6gf:IMAGENET1K_V1": SMALL_REGNET,
    "regnet_?_3_2gf:IMAGENET1K_V1": MEDIUM_REGNET,
    "regnet_?_8gf:IMAGENET1K_V1": MEDIUM_REGNET,
    "regnet_x_16gf:IMAGENET1K_V1": MEDIUM_REGNET,
    "regnet_y_16gf:IMAGENET1K_V1": LARGE_REGNET,
    "regnet_?_32gf:IMAGENET1K_V1": LARGE_REGNET,
    "vit_b_*:IMAGENET1K_V1": ADAMW_4096,
    "vit_l_32:IMAGENET1K_V1": ADAMW_4096,
    "vit_l_16:IMAGENET1K_V1": OriginalTraining(0.5, 1024, "sgd", REFERENCES),
    "convnext_*:IMAGENET1K_V1": ADAMW_1024,
    "swin_*:IMAGENET1K_V1": ADAMW_1024,
    "maxvit_t:IMAGENET1K_V1": ADAMW_4096,
    "resnet*:IMAGENET1K_V2": LATEST,
    "resnext*:IMAGENET1K_V2": LATEST,
    "wide_resnet*:IMAGENET1K_V2": LATEST,
    "regnet_*:IMAGENET1K_V2": LATEST,
    "mobilenet_*:IMAGENET1K_V2": LATEST,
}
"""Pattern of "ARCHITECTURE:WEIGHTS" -> how they were trained; the first match applies."""

TIMM: Mapping[str, OriginalTraining] = {
    "tf_efficientnet_b?.in1k": EFFICIENTNET,
    "tf_efficientnet_b?.aa_in1k": EFFICIENTNET,
    "tf_efficientnet_e?.in1k": EFFICIENTNET,
    "tf_efficientnet_lite?.in1k": EFFICIENTNET,
    "tf_efficientnetv2_*.in1k": OriginalTraining(0.256, 4096, "rmsprop", "Tan and Le, ICML 2021"),
    "tf_mobilenetv3_*.in1k": OriginalTraining(0.1, 4096, "rmsprop", "Howard et al., ICCV 2019"),
    "efficientnet_b0.ra_in1k": OriginalTraining(0.048, 768, "rmsprop", TIMM_EXAMPLES),
    "efficientnet_b2.ra_in1k": OriginalTraining(0.016, 256, "rmsprop", TIMM_EXAMPLES),
    "efficientnet_es.ra_in1k": OriginalTraining(0.064, 1024, "rmsprop", TIMM_EXAMPLES),
    "mixnet_xl.ra_in1k": OriginalTraining(0.016, 256, "rmsprop", TIMM_EXAMPLES),
    "mobilenetv3_large_100.ra_in1k": OriginalTraining(0.064, 1024, "rmsprop", TIMM_EXAMPLES),
    "resnext50_32x4d.ra_in1k": OriginalTraining(0.6, 1536, "sgd", TIMM_EXAMPLES),
    "skresnext50_32x4d.ra_in1k": OriginalTraining(0.18, 384, "sgd", TIMM_EXAMPLES),
    "seresnext26?_32x4d.bt_in1k": OriginalTraining(0.1, 224, "sgd", TIMM_EXAMPLES),
    "resnet50.ram_in1k": OriginalTraining(0.05, 128, "sgd", TIMM_EXAMPLES),
    "*resne*.a1_in1k": OriginalTraining(5e-3, 2048, "lamb", f"{STRIKES_BACK}A1"),
    "*resne*.a2_in1k": OriginalTraining(5e-3, 2048, "lamb", f"{STRIKES_BACK}A2"),
    "*resne*.a3_in1k": OriginalTraining(8e-3, 2048, "lamb", f"{STRIKES_BACK}A3"),
    "*.tv2_in1k": LATEST,
    "regnet[xy]_*.pycls_in1k": OriginalTraining(0.2, 256, "sgd", REGNET),
    "resnetv2_*_bit.goog_in21k*": OriginalTraining(0.48, 4096, "sgd", BIT),
    "convnext_*.fb_in*": OriginalTraining(4e-3, 4096, "adamw", CONVNEXT),
    "deit_*.fb_in1k": OriginalTraining(1e-3, 1024, "adamw", DEIT),
    "deit3_small_*.fb_in1k": OriginalTraining(4e-3, 2048, "lamb", DEIT_III),
    "deit3_[blh]*.fb_in1k": OriginalTraining(3e-3, 2048, "lamb", DEIT_III),
    "deit3_[sblh]*.fb_in22k_ft_in1k": OriginalTraining(1e-3, 2048, "lamb", DEIT_III),
    "vit_*.augreg_in*": OriginalTraining(1e-3, 4096, "adam", AUGREG),
    "vit_*.augreg2_in21k_ft_in1k": OriginalTraining(1e-3, 4096, "adam", AUGREG),
    "vit_base_patch*.orig_in21k*": OriginalTraining(1e-3, 4096, "adam", VIT),
    "vit_large_patch*.orig_in21k*": OriginalTraining(1e-3, 4096, "adam", VIT),
    "swin_*_patch4_*.ms_in1k": OriginalTraining(1e-3, 1024, "adamw", SWIN),
    "swin_*_patch4_*.ms_in22k*": OriginalTraining(1e-3, 4096, "adamw", SWIN),
    "swinv2_*.ms_in1k": OriginalTraining(1e-3, 1024, "adamw", SWIN_V2),
    "swinv2_*.ms_in22k*": OriginalTraining(1e-3, 4096, "adamw", SWIN_V2),
    "maxvit_*_tf_*.in1k": OriginalTraining(3e-3, 4096, "adamw", MAXVIT),
}
"""Pattern of "ARCHITECTURE.TAG" -> how they were trained; the first match applies."""


def training_timm(full_name: str) -> OriginalTraining:
    """Original training of timm's "ARCHITECTURE.TAG".

    Example:
        >>> training_timm("convnext_tiny.fb_in1k")[:3]
        (0.004, 4096, 'adamw')
    """
    architecture, _, tag = full_name.partition(".")
    if tag == "tv_in1k":  # torchvision's first weights, under the same names
        return training_torchvision(f"{architecture}:IMAGENET1K_V1")
    return _first(TIMM, full_name)


def training_torchvision(full_name: str) -> OriginalTraining:
    """Original training of torchvision's "ARCHITECTURE:WEIGHTS"."""
    return _first(TORCHVISION, full_name)


def training_packaged(name: str) -> OriginalTraining:
    """Original training of a packaged network: the authors' weights, as in timm under the tag "in1k"."""
    return training_timm(f"{name}.in1k")


def _first(table: Mapping[str, OriginalTraining], name: str) -> OriginalTraining:
    return next((training for pattern, training in table.items() if fnmatchcase(name, pattern)), UNKNOWN)
