"""Swapping all batch normalisation of a network for another kind, and restoring it.

Layers are replaced in place. A replacement copies the layer's state and hooks, and stores the layer itself, so nothing
is lost. Create optimizers and freeze plans afterwards: the parameters are new objects.
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
from transferkit.nn.norm.swap_record import SwapRecord, original_of, record_of, store_record, swapped_layers

__all__ = ["restore_norm", "swap_norm"]


def swap_norm(
    module: nn.Module,
    to: str | Callable[[nn.Module], nn.Module] = "group",
    *,
    groups: int | None = None,
    calibrate: Images | None = None,
) -> nn.Module:
    """Replace all batch normalisation in a module by another kind, in place.

    Supports torch's layers, timm's with fused dropout and activation, and the frozen ones of torchvision and timm. A
    replacement has the layer's affine map, requires_grad, precision, device, mode and hooks; names in the state_dict
    are unchanged. `swapped_norms` lists the changes, `restore_norm` undoes them.

    A layer swapped before is swapped again from its current state if it has running statistics, else from its original;
    so "recalibrated", then "frozen", freezes the new statistics. In both cases `restore_norm` restores the first layer.

    Args:
        module: A network, or one layer.
        to: A kind, a name in `NORM_KINDS`, or a function that makes the replacement of one layer. "group" with
            calibration images is "standardised_group", `partial(standardising, blend=0.3)` the same with another blend.
        groups: Of channels, for the kinds "group" (None: 32), "standardised_group" (None: 1) and "decorrelated" (None:
            16 channels each); if it does not divide a layer's channels, the nearest number that does is used.
        calibrate: (N, 3, S, S) float, normalised images, or batches of them from a loader of images and labels.
            Required by "recalibrated", to re-estimate the running statistics; optional for "standardised_group", to
            approximate the original's outputs (see `fit_group_norms`).

    Returns:
        The module; if it is itself such a layer, its replacement.

    Raises:
        OptionError: If the kind is unknown, there is nothing to swap, or an argument does not fit the kind. The module
            is then unchanged.
        DataError, BackboneError: If the images cannot be used, or not by the network. The module is then unchanged.

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
    """Restore the original layers in place, bit-identical to when they were swapped.

    What the replacements learnt is lost. The layers get the replacements' mode and, if the network was moved, its
    device and precision. Hooks added to a replacement are kept. Without swapped layers, nothing happens.

    Returns:
        The module; if it is itself a replacement, the original.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> restore_norm(swap_norm(layer, "frozen")) is layer
        True
    """
    originals = {}
    for _, layer, original in swapped_layers(module):
        _follow_moves(original, layer, module)
        original.training = layer.training
        share_hooks(original, layer)  # again, because torch stores an additional flag for backward hooks
        originals[id(layer)] = original
    return _put(module, originals)


def _check_options(to: str | Callable[[nn.Module], nn.Module], groups: int | None, calibrate: Images | None) -> None:
    """Report all problems that can be found without the module at once."""
    if isinstance(to, str):
        _ = NORM_KINDS[to]
    problems = []
    if groups is not None and to not in GROUPED:
        problems.append(f"groups={groups!r} is for {_listed(GROUPED)} only, not for {to!r}; leave it out")
    elif groups is not None and groups < 1:
        problems.append(f"groups must be >= 1, got {groups!r}")
    if calibrate is not None and isinstance(to, str) and to not in CALIBRATED:
        problems.append(f"{to!r} does not use calibrate; kinds that do are {_listed(CALIBRATED)}")
    if calibrate is None and to == "recalibrated":
        problems.append("'recalibrated' measures statistics on images: pass calibrate, (N, 3, S, S) normalised images")
    if problems:
        raise OptionError(list_problems("The normalisation cannot be swapped:", problems))


def _listed(names: Collection[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}"


def _make_all(
    module: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None
) -> dict[int, tuple[nn.Module, nn.Module]]:
    """id of a layer -> the layer and its replacement; the module is not changed yet."""
    made: dict[int, tuple[nn.Module, nn.Module]] = {}
    problems = []
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise OptionError(
            "DistributedDataParallel has registered the parameters already, but a swap creates new ones. Swap first, "
            "then wrap."
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
            f"{type(module).__name__} has no batch normalisation to swap. Supported are BatchNorm1d, 2d and 3d, "
            "SyncBatchNorm, timm's BatchNormAct2d, and FrozenBatchNorm2d."
        )
    return made


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Batch normalisation and swapped layers, each once."""
    for path, layer in module.named_modules():
        if is_batch_norm(layer) or record_of(layer) is not None:
            yield path, layer


def _try_to_make(
    layer: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None
) -> nn.Module | TransferkitError:
    try:
        return _make(layer, to, groups)
    except TransferkitError as error:
        return error


def _make(layer: nn.Module, to: str | Callable[[nn.Module], nn.Module], groups: int | None) -> nn.Module:
    """The replacement of one layer, with its hooks."""
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
    _restore_requires_grad(replacement, layer, original)
    kind = to if isinstance(to, str) else type(replacement).__name__
    store_record(replacement, SwapRecord(original, kind))
    return replacement


def _source_of(layer: nn.Module) -> nn.Module:
    """The layer that a replacement is made from: the current one if it has running statistics, else its original."""
    return layer if isinstance(layer, _BatchNorm) else original_of(layer) or layer


def _restore_requires_grad(replacement: nn.Module, layer: nn.Module, original: nn.Module) -> None:
    """Restore requires_grad of the original's parameters that the layer in between stored as buffers."""
    learnt = dict(original.named_parameters(recurse=False))
    for name, parameter in replacement.named_parameters(recurse=False):
        if name in learnt and name in layer._buffers:
            parameter.requires_grad_(learnt[name].requires_grad)


def _put(module: nn.Module, instead: dict[int, nn.Module]) -> nn.Module:
    """Replace layers wherever they occur: id of a layer -> its replacement."""
    if id(module) in instead:
        return instead[id(module)]
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if id(child) in instead:
                parent._modules[name] = instead[id(child)]
    return module


def _follow_moves(original: nn.Module, layer: nn.Module, network: nn.Module) -> None:
    """Move a stored layer to the device of its replacement, and to its precision if that has changed."""
    own, now = _first_tensor(original), _first_tensor(layer)
    if now is None:  # a kind without tensors: use the network's
        now = own if own is None else _first_tensor(network)
    if own is None or now is None:
        return
    original.to(now.device)
    if own.dtype != now.dtype:
        original.to(now.dtype)


def _first_tensor(module: nn.Module) -> torch.Tensor | None:
    return next((tensor for tensor in module.state_dict().values() if tensor.is_floating_point()), None)


def _calibrate(swapped: nn.Module, kind: str, sources: Mapping[int, nn.Module], images: Images) -> None:
    """Fit the replacements to images; `sources` maps the id of a replacement to the layer it was made from."""
    if kind == "recalibrated":
        layers = [layer for _, layer, _ in swapped_layers(swapped) if isinstance(layer, _BatchNorm)]
        try:
            estimated = recalibrate_statistics(swapped, calibration_batches(images, like=swapped), layers=layers)
        except TransferkitError:
            raise
        except Exception as error:
            raise BackboneError(f"The network cannot take these images: {type(error).__name__}: {error}") from error
        if any(not bool(layer.running_var.isfinite().all()) for layer in layers if layer.running_var is not None):
            raise BackboneError("The network's activations for these images are NaN or infinite. Check its weights.")
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
