"""Loading a network by name, by name with a weights file, or from a module, with the facts about its weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from torch import nn

from transferkit.core.errors import BackboneError, unknown_name
from transferkit.records import BackboneSpec, Preprocessing
from transferkit.zoo import _open_clip, _packaged, _timm, _torchvision
from transferkit.zoo._checkpoint import load_checkpoint, load_into
from transferkit.zoo._entry import ModelEntry

__all__ = ["describe", "load"]

SOURCES: Mapping[str, Callable[[str], ModelEntry]] = {
    "packaged": _packaged.describe,
    "timm": _timm.describe,
    "torchvision": _torchvision.describe,
    _open_clip.SOURCE: _open_clip.describe,
}
HOW_TO_NAME = (
    "A model is named 'timm/NAME[.TAG]', 'torchvision/NAME[:WEIGHTS]', 'packaged/NAME' or 'open_clip/NAME'; "
    "pass a weights file together with such a name, as checkpoint=PATH."
)
RELATIVES_TRIED = 16
RELATIVES_CUTOFF = 0.6


def load(
    model: str | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
) -> tuple[nn.Module, BackboneSpec]:
    """The complete network with its original classifier, in eval mode, on CPU, and its `BackboneSpec`.

    Args:
        model: "timm/NAME[.TAG]", "torchvision/NAME[:WEIGHTS]", "packaged/NAME", "open_clip/NAME" (the image
            tower; needs a checkpoint), or a module. A module is copied, so the caller's is not modified.
        checkpoint: A .safetensors, .pth, .pt, .ckpt or .bin file with weights for `model`, or the folder of a finished
            run; nothing is downloaded then. It must contain the complete trunk, under any keys and prefix. Of several
            networks in it, averaged ones (EMA, a teacher) are preferred, and the spec's preprocessing says which was
            used. Its classifier may have any number of classes; if it is missing or of another type (an MLP),
            `num_classes` is 0, and a classifier that the architecture requires is random.
        pretrained: False gives random weights, recorded in the spec. For a module, the caller states whether its
            weights are pretrained.
        preprocessing: Overrides the source's. Required for a module without timm's `pretrained_cfg`.

    Returns:
        The network, and a spec whose `stages`, `weights_id` and `parameters` are not set yet. Class names are those of
        the source's weights, hence empty for random weights and checkpoints.

    Raises:
        BackboneError: If the name or the module cannot serve as a backbone.
        CheckpointError: If the weights file cannot be read or does not fit.
        HubError: If pretrained weights cannot be fetched.
        MissingDependencyError: If the package that contains the weights is not installed.

    Example:
        >>> network, spec = load("timm/test_resnet", pretrained=False)
        >>> spec.architecture, spec.pretrained, spec.num_classes, spec.preprocessing.size
        ('test_resnet', False, 1000, 160)
    """
    if checkpoint is not None and not pretrained:
        raise BackboneError(
            f"checkpoint={str(checkpoint)!r} and pretrained=False contradict each other. Leave pretrained out to use "
            "the file (nothing is downloaded then), or leave checkpoint out for random weights."
        )
    if isinstance(model, nn.Module):
        return _load_module(model, checkpoint, pretrained, preprocessing)
    entry = describe(model)
    if checkpoint is not None:
        loaded = load_checkpoint(entry, checkpoint, relatives=_relatives(entry))
        note = "; ".join(part for part in (f"the weights are those of {Path(checkpoint).name}", loaded.note) if part)
        spec = _spec_of(entry, loaded.network, preprocessing, note=note)
        return loaded.network.eval(), replace(spec, source="checkpoint", num_classes=loaded.classes)
    if not pretrained:
        network = entry.build(pretrained=False)
        spec = _spec_of(entry, network, preprocessing, note="the weights are random")
        return network.eval(), replace(spec, pretrained=False)
    if not entry.has_weights:
        raise BackboneError(
            f"There are no pretrained weights of {entry.address!r}. Pass pretrained=False for random weights, or "
            "checkpoint=PATH; transferkit.zoo.catalog() lists the models that have weights."
        )
    network = entry.build(pretrained=True)
    spec = _spec_of(entry, network, preprocessing)
    return network.eval(), replace(
        spec,
        class_names=entry.class_names,
        license=entry.license,
        published_accuracy=entry.published.accuracy,
        published_by=entry.published.source,
        original_lr=entry.training.lr,
        original_batch=entry.training.batch,
        original_optimizer=entry.training.optimizer,
        original_by=entry.training.source,
    )


def describe(model: object) -> ModelEntry:
    """The entry of a named model, without building or downloading anything.

    Raises:
        BackboneError: If the name is unknown or has no source.
    """
    if not isinstance(model, str):
        raise BackboneError(f"A model is a name or a torch.nn.Module, got {type(model).__name__}. {HOW_TO_NAME}")
    source, slash, name = model.partition("/")
    if slash and source in SOURCES:
        return SOURCES[source](name)
    if Path(model).suffix in {".pth", ".pt", ".ckpt", ".bin", ".safetensors"}:
        raise BackboneError(
            f"{model!r} looks like a weights file; name the architecture too: load('timm/NAME', checkpoint={model!r})."
        )
    if slash:
        raise BackboneError(unknown_name("model source", source, SOURCES, remedy=HOW_TO_NAME))
    raise BackboneError(_without_source(model))


def _without_source(name: str) -> str:
    """The message for a name without a source, such as "resnet18": the sources that have it."""
    architectures = {
        "packaged": list(_packaged.PACKAGED),
        "timm": _timm.architectures(),
        "torchvision": _torchvision.architectures(),
    }
    base = re.split(r"[.:]", name)[0]
    offers = [f"{source}/{base}" for source, known in architectures.items() if base in known]
    if offers:
        return f"{name!r} has no source. Did you mean {' or '.join(repr(offer) for offer in offers)}?"
    everything = {architecture for known in architectures.values() for architecture in known}
    return unknown_name("model", name, everything, remedy=HOW_TO_NAME)


def _spec_of(entry: ModelEntry, network: nn.Module, given: Preprocessing | None, *, note: str = "") -> BackboneSpec:
    """The spec of a network with any weights; `note` says which, if not the source's."""
    stated = entry.preprocessing
    fixed_size = entry.fixed_size and not _resamples_positions(network)
    if given is not None and fixed_size and given.size != stated.size:
        raise BackboneError(
            f"{entry.address!r} accepts only images of {stated.size} pixels, but its preprocessing has size "
            f"{given.size}. Pass size {stated.size}, or choose a model without a fixed size."
        )
    stated = replace(stated, origin=f"{stated.origin}; {note}") if note else stated
    return BackboneSpec(
        name=entry.address,
        source=entry.source,
        architecture=entry.architecture,
        preprocessing=stated if given is None else _as_given(given),
        pretrained=True,
        num_classes=entry.num_classes,
        fixed_size=fixed_size,
        own_preprocessing=stated if given is not None and _differs(given, stated) else None,
    )


def _differs(given: Preprocessing, stated: Preprocessing) -> bool:
    """Whether pixels would be normalised differently from the checkpoint's training."""
    pairs = zip((*given.mean, *given.std), (*stated.mean, *stated.std), strict=True)
    return any(abs(mine - theirs) > 1e-3 for mine, theirs in pairs)


def _resamples_positions(network: nn.Module) -> bool:
    """Whether a timm transformer resamples its position embedding, and so accepts other sizes than the stated one."""
    return bool(getattr(network, "dynamic_img_size", False))


def _as_given(preprocessing: Preprocessing) -> Preprocessing:
    return preprocessing if preprocessing.origin else replace(preprocessing, origin="as given by the caller")


def _load_module(
    module: nn.Module, checkpoint: str | Path | None, pretrained: bool, preprocessing: Preprocessing | None
) -> tuple[nn.Module, BackboneSpec]:
    name = type(module).__name__
    stated = getattr(module, "pretrained_cfg", None)  # timm stores it as a plain dict on the module
    if preprocessing is not None:
        facts = _as_given(preprocessing)
    elif isinstance(stated, Mapping) and stated:
        facts = _timm.read_preprocessing(stated, str(stated.get("architecture", name)))
    else:
        raise BackboneError(
            f"The module {name} does not define its preprocessing. Pass preprocessing=Preprocessing(size=..., "
            "mean=..., std=..., interpolation=...) as in its training, or load a named model."
        )
    network = deepcopy(module).cpu().eval()
    loaded = None if checkpoint is None else load_into(network, checkpoint)
    spec = BackboneSpec(
        name=f"module/{name}",
        source="module" if checkpoint is None else "checkpoint",
        architecture=name,
        preprocessing=facts,
        pretrained=pretrained,
        num_classes=_outputs(network) if loaded is None else loaded.classes,
        fixed_size=(
            isinstance(stated, Mapping)
            and bool(stated.get("fixed_input_size", False))
            and not _resamples_positions(network)
        ),
    )
    return network, spec


def _outputs(network: nn.Module) -> int:
    """Outputs of a module's classifier: its `num_classes` (timm), else of its last layer if linear, else 0."""
    stated = getattr(network, "num_classes", None)
    if isinstance(stated, int):
        return stated
    last = list(network.modules())[-1]
    return last.out_features if isinstance(last, nn.Linear) else 0


def _relatives(entry: ModelEntry) -> Iterator[ModelEntry]:
    """Architectures that a misfitting file may belong to: the same name in another source, then similar names."""
    own = "torchvision" if entry.source == "torchvision" else "timm"
    known = {"timm": _timm.architectures(), "torchvision": _torchvision.architectures()}
    stem = re.split(r"\d", entry.architecture)[0]
    family = [name for name in known[own] if name.startswith(stem) and name != entry.architecture]
    close = difflib.get_close_matches(entry.architecture, family, n=RELATIVES_TRIED, cutoff=RELATIVES_CUTOFF)
    # Another depth ("resnet34" for "resnet18") is likelier than another variant ("resnet18d").
    close = [name for name in family if re.fullmatch(rf"{stem}\d+", name)] + close
    same_name = [source for source, names in known.items() if source != own and entry.architecture in names]
    addresses = [f"{source}/{entry.architecture}" for source in same_name] + [
        f"{own}/{name}" for name in dict.fromkeys(close)
    ]
    for address in addresses:
        with suppress(BackboneError):
            yield describe(address)
