"""All batch normalisation of a network swapped for another kind, and back.

Layers are replaced where they stand. A replacement carries over what the layer knew and what hung on it, and remembers
the layer itself, so that nothing is lost. Make optimizers and freeze plans afterwards: the parameters are new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from transferkit.core.errors import BackboneError, OptionError, TransferkitError, list_problems
from transferkit.nn.norm.calibration import Images, calibration_batches, calibration_images
from transferkit.nn.norm.conversion import fit_successors
from transferkit.nn.norm.fused import share_hooks
from transferkit.nn.norm.kinds import CALIBRATED, GROUPED, NORM_KINDS, MakeNorm
from transferkit.nn.norm.recalibration import recalibrate_statistics
from transferkit.nn.norm.source import is_batch_norm
from transferkit.nn.norm.standardised import StandardisedGroupNorm
from transferkit.nn.norm.swap_record import SwapRecord, memory_of, original_of, remember, swapped_layers

__all__ = ["restore_norm", "swap_norm"]


def swap_norm(
    module: nn.Module,
    to: str | Callable[[nn.Module], nn.Module] = "group",
    *,
    groups: int | None = None,
    calibrate: Images | None = None,
) -> nn.Module:
    """Replace all batch normalisation in a module by another kind, in place.

    torch's layers count, timm's that drop out and activate as well, and the frozen ones of torchvision and timm. A
    replacement has the layer's affine map, precision, device, mode, hooks, and what of it asked for gradients; names in
    the state_dict stay. `swapped_norms` tells what was changed, `restore_norm` undoes it.

    A layer swapped before is swapped again as it is now if it keeps running statistics, else from its original; so
    "recalibrated", then "frozen", freezes the new statistics. In both cases `restore_norm` goes back to the first.

    Args:
        module: A network, or one layer.
        to: A kind, a name in `NORM_KINDS`, or a function that makes the replacement of one layer. "group" with images
            to calibrate by is "standardised_group", `partial(standardising, blend=0.3)` the same with another blend.
        groups: Of channels, for the kinds "group" (None: 32), "standardised_group" (None: 1) and "decorrelated" (None:
            16 channels each); where it does not divide a layer's channels, the nearest number that does is taken.
        calibrate: (N, 3, S, S) float, normalised images, or several of such, as loaders of images and labels give
            them. The kind "recalibrated" needs them, to
            measure the running statistics anew; "standardised_group" can be fitted to them, to come near the original's
            outputs (see `fit_group_norms`).

    Returns:
        The module; where it is itself such a layer, its replacement.

    Raises:
        OptionError: If the kind is unknown, there is nothing to swap, or an argument does not fit the kind. The module
            is then as it was.
        DataError, BackboneError: If the images cannot be used, or not by the network. The module is then as it was.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> swap_norm(network, "group", groups=2)[1]  # doctest: +ELLIPSIS
        GroupNorm(2, 8, ...)
        >>> restore_norm(network)[1]  # doctest: +ELLIPSIS
        BatchNorm2d(8, ...)
    """
    if to == "group" and calibrate is not None:
        to = "standardised_group"
    _check_options(to, groups, calibrate)
    made = _make_all(module, to, groups)
    before = {id(replacement): layer for layer, replacement in made.values()}
    sources = {id(replacement): _source_of(layer) for layer, replacement in made.values()}
    swapped = _put(module, {key: replacement for key, (_, replacement) in made.items()})
    if calibrate is not None:
        try:
            _calibrate(swapped, str(to), sources, calibrate)
        except BaseException:
            _put(swapped, before)
            raise
    return swapped


def restore_norm(module: nn.Module) -> nn.Module:
    """Put the original layers back, in place, bit for bit as they were when they were swapped.

    What the replacements learnt is dropped. The layers take over their mode and, if the network has moved, its device
    and precision. Hooks that were hung on a replacement stay. If nothing was swapped, nothing happens.

    Returns:
        The module; where it is itself a replacement, the original.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> restore_norm(swap_norm(layer, "frozen")) is layer
        True
    """
    originals = {}
    for _, layer, original in swapped_layers(module):
        _follow_moves(original, layer, module)
        original.training = layer.training
        share_hooks(original, layer)  # again: of backward hooks torch keeps a flag besides
        originals[id(layer)] = original
    return _put(module, originals)


def _check_options(to: str | Callable[[nn.Module], nn.Module], groups: int | None, calibrate: Images | None) -> None:
    """Whatever can be told without looking at the module, all at once."""
    if isinstance(to, str):
        _ = NORM_KINDS[to]
    problems = []
    if groups is not None and to not in GROUPED:
        problems.append(f"groups={groups!r} is for {_listed(GROUPED)} only, not for {to!r}; leave it out")
    elif groups is not None and groups < 1:
        problems.append(f"groups must be >= 1, got {groups!r}")
    if calibrate is not None and isinstance(to, str) and to not in CALIBRATED:
        problems.append(f"{to!r} has no use for calibrate; kinds that have are {_listed(CALIBRATED)}")
    if calibrate is None and to == "recalibrated":
        problems.append("'recalibrated' measures statistics on images: give calibrate, (N, 3, S, S) normalised images")
    if problems:
        raise OptionError(list_problems("The normalisation cannot be swapped:", problems))


def _listed(names: Collection[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}"


def _make_all(
    module: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None
) -> dict[int, tuple[nn.Module, nn.Module]]:
    """id of a layer -> the layer and its replacement; nothing is put in place yet."""
    made: dict[int, tuple[nn.Module, nn.Module]] = {}
    problems = []
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise OptionError(
            "DistributedDataParallel has taken stock of the parameters already, and a swap makes new ones. Swap first, "
            "wrap then."
        )
    for path, layer in _norms(module):
        replacement = _try_to_make(layer, to, groups)
        if isinstance(replacement, TransferkitError):
            problems.append(f"{path or 'the module'}: {replacement}")
        else:
            made[id(layer)] = (layer, replacement)
    if problems:
        raise OptionError(list_problems("The normalisation cannot be swapped:", problems))
    if not made:
        raise OptionError(
            f"{type(module).__name__} has no batch normalisation to swap. Kinds known are BatchNorm1d, 2d and 3d, "
            "SyncBatchNorm, timm's BatchNormAct2d, and FrozenBatchNorm2d."
        )
    return made


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Batch normalisation and what was swapped for it, each layer once."""
    for path, layer in module.named_modules():
        if is_batch_norm(layer) or memory_of(layer) is not None:
            yield path, layer


def _try_to_make(
    layer: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None
) -> nn.Module | TransferkitError:
    try:
        return _make(layer, to, groups)
    except TransferkitError as error:
        return error


def _make(layer: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None) -> nn.Module:
    """The replacement of one layer, with all that hung on it."""
    source, original = _source_of(layer), original_of(layer) or layer
    if source is not layer:
        _follow_moves(source, layer, layer)
        source.training = layer.training
    if isinstance(to, str):
        maker: MakeNorm = NORM_KINDS[to]
        replacement = maker(source, groups)
    else:
        replacement = to(source)
    if replacement is source:
        raise OptionError(f"A replacement must be a new layer, got the {type(source).__name__} itself.")
    share_hooks(replacement, layer)
    replacement.training = layer.training
    _ask_again(replacement, layer, original)
    kind = to if isinstance(to, str) else type(replacement).__name__
    remember(replacement, SwapRecord(original, kind))
    return replacement


def _source_of(layer: nn.Module) -> nn.Module:
    """What a replacement of the layer is made of: the layer as it is now if it keeps running statistics, else its
    original."""
    return layer if isinstance(layer, _BatchNorm) else original_of(layer) or layer


def _ask_again(replacement: nn.Module, layer: nn.Module, original: nn.Module) -> None:
    """Let what learnt in the original learn again, where the layer in between kept it in buffers."""
    learnt = dict(original.named_parameters(recurse=False))
    for name, parameter in replacement.named_parameters(recurse=False):
        if name in learnt and name in layer._buffers:
            parameter.requires_grad_(learnt[name].requires_grad)


def _put(module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
    """Other layers in the places of some, wherever they stand; ids tell which."""
    if id(module) in instead:
        return instead[id(module)]
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if id(child) in instead:
                parent._modules[name] = instead[id(child)]
    return module


def _follow_moves(original: nn.Module, layer: nn.Module, network: nn.Module) -> None:
    """Bring a remembered layer to where its replacement is now, and to its precision if that has changed."""
    own, now = _first_tensor(original), _first_tensor(layer)
    if now is None:  # a kind without any tensors: the network then says where
        now = own if own is None else _first_tensor(network)
    if own is None or now is None:
        return
    original.to(now.device)
    if own.dtype != now.dtype:
        original.to(now.dtype)


def _first_tensor(module: nn.Module) -> torch.Tensor | None:
    return next((tensor for tensor in module.state_dict().values() if tensor.is_floating_point()), None)


def _calibrate(swapped: nn.Module, kind: str, sources: Mapping[int, nn.Module], images: Images) -> None:
    """Fit what was swapped in to images; `sources` tells by the id of a replacement what it was made of."""
    if kind == "recalibrated":
        layers = [layer for _, layer, _ in swapped_layers(swapped) if isinstance(layer, _BatchNorm)]
        try:
            estimated = recalibrate_statistics(swapped, calibration_batches(images, like=swapped), layers=layers)
        except TransferkitError:
            raise
        except Exception as error:
            raise BackboneError(f"The network cannot take these images: {type(error).__name__}: {error}") from error
        if any(not bool(layer.running_var.isfinite().all()) for layer in layers if layer.running_var is not None):
            raise BackboneError("The network makes NaN or infinite values of these images. Look at its weights.")
        if estimated < len(layers):
            raise OptionError(
                f"{len(layers) - estimated} of {len(layers)} layers are kept in evaluation mode by a hook, so their "
                "statistics cannot be measured. Release the freeze plan first."
            )
        return
    fit_successors(swapped, dict(_pairs(swapped, sources)), calibration_images(images, like=swapped))


def _pairs(
    swapped: nn.Module, sources: Mapping[int, nn.Module]
) -> Iterator[tuple[str, tuple[_BatchNorm, StandardisedGroupNorm]]]:
    """Path -> the source and its successor."""
    for path, layer, original in swapped_layers(swapped):
        if not isinstance(layer, StandardisedGroupNorm):
            raise OptionError(
                f"{path or 'the module'}: a {type(layer).__name__} cannot be fitted to images. Leave calibrate out, or "
                "make the layers with transferkit.nn.norm.standardising."
            )
        source = sources[id(layer)]
        fits = isinstance(source, _BatchNorm) and source.running_mean is not None
        if not path or not isinstance(original, nn.BatchNorm2d) or not fits:
            raise OptionError(
                f"{path or 'the module'}: only a BatchNorm2d with running statistics, inside a network, can be fitted "
                f"to images, got {type(original).__name__}. Leave calibrate out."
            )
        assert isinstance(source, _BatchNorm)
        yield path, (source, layer)
