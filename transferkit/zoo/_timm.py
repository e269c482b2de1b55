"""timm's networks; their facts are from the `pretrained_cfg` of the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Any, get_args

from torch import nn

from transferkit.core.errors import BackboneError, unknown_name
from transferkit.records import Interpolation, Preprocessing
from transferkit.zoo import _hub
from transferkit.zoo._entry import ModelEntry
from transferkit.zoo._published import published_timm
from transferkit.zoo._training import training_timm

__all__ = [
    "architectures",
    "describe",
    "has_weights",
    "imagenet_names",
    "pretrained_cfg",
    "read_preprocessing",
    "weight_files",
]

CROP_MODES = ("center", "squash", "border")
IMAGENET_CLASSES = 1000


def architectures() -> list[str]:
    """All architecture names of timm, deprecated ones left out."""
    import timm

    return list(timm.list_models())


def describe(name: str) -> ModelEntry:
    """The entry of "ARCHITECTURE" or "ARCHITECTURE.TAG".

    Raises:
        BackboneError: If timm has no such architecture or tag, or its input is not a square colour image.
    """
    import timm.models

    architecture = name.partition(".")[0]
    replacements = timm.models.get_deprecated_models()
    if architecture in replacements:
        new = replacements[architecture]
        remedy = f"Use 'timm/{new}'." if new else "It has no replacement."
        raise BackboneError(f"The timm model {architecture!r} was renamed or removed. {remedy}")
    if not timm.models.is_model(architecture):
        raise BackboneError(unknown_name("timm model", architecture, architectures()))
    try:
        cfg = pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_models(architecture, include_tags=True)
        raise BackboneError(unknown_name("weights tag", name, known)) from error
    full_name = f"{architecture}.{cfg['tag']}" if cfg.get("tag") else architecture
    return ModelEntry(
        address=f"timm/{name}",
        source="timm",
        architecture=architecture,
        preprocessing=read_preprocessing(cfg, full_name),
        build=partial(_build, name, full_name, cfg),
        has_weights=has_weights(cfg),
        num_classes=int(cfg["num_classes"]),
        class_names=_class_names(cfg),
        fixed_size=bool(cfg.get("fixed_input_size", False)),
        license=cfg.get("license"),
        published=published_timm(full_name),
        training=training_timm(full_name),
        classifiers=_as_tuple(cfg.get("classifier")),
        headless=True,
    )


def pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of "ARCHITECTURE" (its default tag) or "ARCHITECTURE.TAG".

    Raises:
        RuntimeError: If there is no such tag.
    """
    import timm.models
    from timm.models import PretrainedCfg

    entry: Any = timm.models.get_pretrained_cfg(name) or PretrainedCfg()
    return dict(entry.to_dict())


def has_weights(cfg: Mapping[str, Any]) -> bool:
    """Whether a `pretrained_cfg` has a location of weights."""
    return any(cfg.get(key) for key in ("url", "file", "hf_hub_id"))


def read_preprocessing(cfg: Mapping[str, Any], full_name: str) -> Preprocessing:
    """The preprocessing in a `pretrained_cfg`; `input_size`, not `test_input_size`, sets the size.

    Raises:
        BackboneError: If the input is not a square colour image, or the resampling filter is not supported.
    """
    from timm.data.config import resolve_data_config

    resolve: Any = resolve_data_config
    stated = resolve(pretrained_cfg=dict(cfg))
    channels, height, width = stated["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"{full_name} takes images of {channels} x {height} x {width} (channels x height x width); "
            "expected a square with 3 channels. Choose another model."
        )
    if stated["interpolation"] not in get_args(Interpolation) or stated["crop_mode"] not in CROP_MODES:
        raise BackboneError(
            f"{full_name} uses interpolation {stated['interpolation']!r} and crop mode {stated['crop_mode']!r}; "
            f"supported are {', '.join(get_args(Interpolation))} and {', '.join(CROP_MODES)}. Pass preprocessing=."
        )
    return Preprocessing(
        size=int(height),
        mean=_triple(stated["mean"]),
        std=_triple(stated["std"]),
        interpolation=stated["interpolation"],
        crop_pct=float(stated["crop_pct"]),
        crop_mode=stated["crop_mode"],
        origin=f"timm pretrained_cfg of {full_name}",
    )


def weight_files(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """File names of timm's weights in a Hugging Face repository."""
    named = cfg.get("hf_hub_filename")
    if named is None:
        return ("model.safetensors", "pytorch_model.bin")
    safe = "open_clip_model.safetensors" if named == "open_clip_pytorch_model.bin" else f"{named[:-4]}.safetensors"
    return (named, safe) if named.endswith(".bin") else (named,)


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 names of ImageNet-1k, in label order, from the tables that timm ships."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())


def _build(
    name: str,
    full_name: str,
    cfg: Mapping[str, Any],
    *,
    pretrained: bool,
    num_classes: int | None = None,
    checkpoint_keys: Collection[str] = (),
) -> nn.Module:
    import timm

    sized: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if not pretrained:
        network: nn.Module = timm.create_model(name, pretrained=False, **sized)
        return network
    repository = cfg.get("hf_hub_id")
    where = f"huggingface.co/{repository}" if repository else cfg.get("url")
    with _hub.fetching(f"timm/{full_name} ({where})"):
        if cfg.get("file"):
            pass  # timm reads a local file; nothing to probe
        elif repository:
            if not _hub.hf_cached(repository, weight_files(cfg)):
                _hub.probe_hf(repository)
        elif not _hub.url_cached(cfg["url"]):
            _hub.probe_url(cfg["url"])
        network = timm.create_model(name, pretrained=True)
    return network


def _class_names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    stated = cfg.get("label_names")
    if stated is not None and len(stated) == cfg.get("num_classes"):
        described = cfg.get("label_descriptions") or {}
        return tuple(described.get(label, label) for label in stated)
    # A thousand outputs alone do not imply ImageNet-1k: the tag must confirm it.
    if cfg.get("num_classes") == IMAGENET_CLASSES and "in1k" in (cfg.get("tag") or ""):
        return imagenet_names()
    return ()


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _as_tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
