"""List of loadable models, and which are on this machine. Builds and downloads nothing."""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transferkit.core.errors import BackboneError, unknown_name
from transferkit.zoo import _hub, _packaged, _timm, _torchvision

__all__ = ["ZooEntry", "catalog"]


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A model in the catalog.

    Args:
        name: The name to pass to `load`.
        source: "packaged", "timm" or "torchvision".
        offline: Whether its weights are on this machine.
        pretrained: Whether it has pretrained weights.
        size: Side of its square input in pixels; None if its input is not square.
        parameters_m: Millions of parameters, classifier included; None if unknown without building it.
        license: Of the weights, if known.
    """

    name: str
    source: str
    offline: bool
    pretrained: bool
    size: int | None = None
    parameters_m: float | None = None
    license: str | None = None


def catalog(pattern: str | None = None, *, source: str | None = None, offline: bool | None = None) -> list[ZooEntry]:
    """The models that `load` knows: packaged ones, then timm's, then torchvision's.

    Args:
        pattern: A glob such as "resnet*" or "timm/*dino*", with or without the source in front; without any of *?[ it
            matches anywhere in the name. Case is ignored. None: all.
        source: "packaged", "timm" or "torchvision"; None: all.
        offline: True for models whose weights are on this machine, False for the others, None for both.

    Returns:
        Entries in the order of their sources; may be empty.

    Raises:
        BackboneError: If the source is unknown.

    Example:
        >>> [entry.name for entry in catalog("*lite0", source="packaged")]
        ['packaged/tf_efficientnet_lite0']
    """
    if source is not None and source not in LISTINGS:
        raise BackboneError(unknown_name("model source", source, LISTINGS))
    listings = LISTINGS.values() if source is None else [LISTINGS[source]]
    entries = (entry for listing in listings for entry in listing())
    return [
        entry for entry in entries if _matches(entry.name, pattern) and (offline is None or entry.offline == offline)
    ]


def _matches(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    name, pattern = name.lower(), pattern.lower()
    if not any(sign in pattern for sign in "*?["):
        return pattern in name
    return any(fnmatch.fnmatchcase(part, pattern) for part in (name, name.partition("/")[2]))


def _list_packaged() -> Iterator[ZooEntry]:
    for name, packaged in _packaged.PACKAGED.items():
        yield ZooEntry(
            name=f"packaged/{name}",
            source="packaged",
            offline=importlib.util.find_spec(packaged.package) is not None,
            pretrained=True,
            size=packaged.size,
            parameters_m=packaged.parameters / 1e6,
            license=packaged.license,
        )


def _list_timm() -> Iterator[ZooEntry]:
    import timm
    from huggingface_hub import constants

    # One listing of the cache folder instead of one query per model.
    hub = Path(constants.HF_HUB_CACHE)
    cached = {folder.name for folder in hub.glob("models--*")} if hub.is_dir() else set()
    tagged = timm.list_models(pretrained=True)
    covered = {name.partition(".")[0] for name in tagged}
    for name in [*tagged, *(name for name in timm.list_models() if name not in covered)]:
        cfg = _timm.pretrained_cfg(name)
        repository = cfg.get("hf_hub_id") or ""
        here = f"models--{repository.replace('/', '--')}" in cached
        _, height, width = cfg["input_size"]
        yield ZooEntry(
            name=f"timm/{name}",
            source="timm",
            offline=here and _hub.hf_cached(repository, _timm.weight_files(cfg)),
            pretrained=_timm.has_weights(cfg),
            size=height if height == width else None,
            license=cfg.get("license"),
        )


def _list_torchvision() -> Iterator[ZooEntry]:
    for architecture in _torchvision.architectures():
        for weights in _torchvision.published_weights(architecture):
            yield ZooEntry(
                name=f"torchvision/{architecture}:{weights.name}",
                source="torchvision",
                offline=_hub.url_cached(weights.url),
                pretrained=True,
                size=weights.transforms().crop_size[0],
                parameters_m=weights.meta["num_params"] / 1e6,
                license=weights.meta.get("license"),
            )


LISTINGS: Mapping[str, Callable[[], Iterator[ZooEntry]]] = {
    "packaged": _list_packaged,
    "timm": _list_timm,
    "torchvision": _list_torchvision,
}
