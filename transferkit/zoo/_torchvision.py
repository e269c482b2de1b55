"""torchvision's networks; their facts are from the transforms and metadata of the weights."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

from transferkit.core.errors import BackboneError, unknown_name
from transferkit.records import Preprocessing
from transferkit.zoo import _hub
from transferkit.zoo._entry import ModelEntry
from transferkit.zoo._published import published_torchvision
from transferkit.zoo._training import training_torchvision

__all__ = ["architectures", "describe", "published_weights"]

DEFAULT = "DEFAULT"
OTHER_TASKS = ("detection", "segmentation", "video", "optical_flow", "quantization")

# These two renormalise their input with their published weights. With a checkpoint or random weights they are built the
# same way, since the preprocessing is the published one too.
RENORMALISING = ("googlenet", "inception_v3")
FIXED_SIZE_PREFIXES = ("vit_", "maxvit_")


def architectures() -> list[str]:
    """All classification architectures of torchvision."""
    from torchvision import models

    return list(models.list_models(module=models))


def published_weights(architecture: str) -> list[Any]:
    """The weights entries of an architecture, the default one first."""
    from torchvision import models

    known = models.get_model_weights(architecture)
    return sorted(known, key=lambda weights: bool(weights != known.DEFAULT))


def describe(name: str) -> ModelEntry:
    """The entry of "ARCHITECTURE" or "ARCHITECTURE:WEIGHTS".

    Raises:
        BackboneError: If torchvision has no such classification network, or no such weights of it.
    """
    architecture, _, wanted = name.partition(":")
    if architecture not in architectures():
        raise BackboneError(_no_classifier(architecture))
    known = {weights.name: weights for weights in published_weights(architecture)}
    if wanted in ("", DEFAULT):
        wanted = next(iter(known))
    if wanted not in known:
        raise BackboneError(unknown_name(f"weights of torchvision/{architecture}", wanted, known))
    weights = known[wanted]
    class_names = tuple(weights.meta["categories"] or ())
    return ModelEntry(
        address=f"torchvision/{name}",
        source="torchvision",
        architecture=architecture,
        preprocessing=_read_preprocessing(weights, f"{architecture}:{wanted}"),
        build=partial(_build, architecture, weights),
        # Weights without categories have a classifier full of NaN (vgg16:IMAGENET1K_FEATURES): it counts as none.
        num_classes=len(class_names),
        class_names=class_names,
        fixed_size=architecture.startswith(FIXED_SIZE_PREFIXES),
        license=weights.meta.get("license"),
        published=published_torchvision(weights.meta, f"{architecture}:{wanted}"),
        training=training_torchvision(f"{architecture}:{wanted}"),
    )


def _no_classifier(architecture: str) -> str:
    from torchvision import models

    for task in OTHER_TASKS:
        if architecture in models.list_models(module=getattr(models, task)):
            return (
                f"torchvision's {architecture!r} belongs to torchvision.models.{task}; "
                "expected an image classification network, such as 'torchvision/resnet18'."
            )
    return unknown_name("torchvision model", architecture, architectures())


def _read_preprocessing(weights: Any, full_name: str) -> Preprocessing:
    stated = weights.transforms()
    crop, resize = stated.crop_size[0], stated.resize_size[0]
    red, green, blue = (float(value) for value in stated.mean)
    deviations = tuple(float(value) for value in stated.std)
    return Preprocessing(
        size=crop,
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        interpolation=stated.interpolation.value,
        crop_pct=crop / resize,
        origin=f"torchvision transforms of {full_name}",
    )


def _build(
    architecture: str,
    weights: Any,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    checkpoint_keys: Collection[str] = (),
) -> nn.Module:
    from torchvision import models

    if pretrained:
        with _hub.fetching(f"torchvision/{architecture}:{weights.name} ({weights.url})"):
            if not _hub.url_cached(weights.url):
                _hub.probe_url(weights.url)
            network: nn.Module = models.get_model(architecture, weights=weights)
        return network
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if architecture in RENORMALISING:
        auxiliary = any("aux1." in key or "AuxLogits." in key for key in checkpoint_keys)
        options |= {"transform_input": True, "aux_logits": auxiliary, "init_weights": not checkpoint_keys}
    if architecture.startswith("vit_"):
        options["image_size"] = weights.transforms().crop_size[0]
    network = models.get_model(architecture, weights=None, **options)
    return network
