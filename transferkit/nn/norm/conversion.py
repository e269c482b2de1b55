"""Conversion of batch normalisation to group normalisation fitted to the same outputs, from a few unlabelled images.

Group normalisation computes its statistics per image, so it needs no batch; simply inserted into a pretrained network,
it destroys the network's accuracy. Here each layer first scales its channels by the running statistics of the source,
weights them so that an image's statistics vary little between images, and then gets, in closed form, the scale and
offset that best approximate the source layer's output. Whether conversion improves a network is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import BackboneError, DataError, OptionError, unknown_name
from transferkit.nn.norm.standardised import StandardisedGroupNorm, standardising
from transferkit.nn.stages import evaluating, explaining, tensor_of

__all__ = [
    "ConversionReport",
    "LayerFit",
    "check_images",
    "find_batch_norms",
    "fit_group_norms",
    "fit_successors",
]


RIDGE = 1.0
"""Ridge penalty on the channel weights that cancel the variation of second moments between images, in units of that
variance in the mean channel. Of 0.01, 0.1, 1, 10 and 100, this agreed best on photographs; 1 to 100 are similar."""

FARTHEST = 4.0
"""Maximum factor by which a channel's weight may differ from 1."""

PASSING = 0.5
"""Half the width of the finite difference for an activation's slope, in units of its input."""

FAINT = 0.01
"""Weight in the fit of a value that the activation cuts off."""

STEPS = 5
"""Newton steps for the offset. Activations are mostly piecewise linear; 2 would nearly suffice."""

MIN_VALUES = 16384
"""Values per channel to fit scale and offset to, if available; on finer grids only every second, third, ... row and
column is used, because neighbours are nearly equal."""

SILENT = 1e-6
"""Below this variance of a channel, in units of its variance on the source, its scale is taken from the source."""


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """How closely one converted layer approximates the source layer's output, before the activation.

    Args:
        path: Dotted path.
        channels: C.
        before: With group normalisation that copies the source's weight and bias: summed squared error, relative to
            the summed squared deviation of the source's output from its channel means. Earlier layers are fitted.
        after: The same with the fitted layer.
    """

    path: str
    channels: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """Quality of a conversion on the images it was fitted to; on others it is lower.

    Args:
        layers: In the order in which they run.
        images: Number of images.
        blend: Share of the images' own statistics.
        agreement: Share of images with the same largest output as the source, in [0, 1]; meaningful only for
            classifiers.
    """

    layers: tuple[LayerFit, ...]
    images: int
    blend: float
    agreement: float


def find_batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Path -> every `nn.BatchNorm2d` with running statistics, including those with a fused activation."""
    return {
        path: part
        for path, part in module.named_modules()
        if path and isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
    }


@torch.no_grad()
def fit_group_norms(
    module: nn.Module,
    images: torch.Tensor,
    *,
    groups: int = 1,
    blend: float = 1.0,
    paths: Collection[str] | None = None,
) -> ConversionReport:
    """Replace batch normalisation, in place, by group normalisation fitted to give the same outputs on the images.

    Takes one forward pass with the images twice in the batch, once through the original layers and once through those
    fitted so far; each layer is fitted when both reach it. Memory is that of a forward pass with 2N images, without
    gradients. After an error the module is unchanged. Deterministic.

    Args:
        module: Takes the images and returns a tensor, the batch first; its mode is kept.
        images: (N, ...) float, as the module takes them, on its device; about 64 or more, like future ones. No labels.
        groups: Of neighbouring channels, >= 1. 1 is closest to the source, by far. If it does not divide a layer's
            channels, the nearest number that does.
        blend: Share of each image's own statistics, in [0, 1]. 1 is group normalisation, 0 the source's fixed
            statistics, which need no batch either but do not adapt to changing weights.
        paths: Layers to replace; None for all from `find_batch_norms`.

    Returns:
        How closely each layer and the network approximate the source.

    Raises:
        OptionError: If `blend`, `groups` or a path is invalid.
        DataError: If there are no images or a value of theirs is not finite.
        BackboneError: If the module cannot take the images, or one of the layers does not run.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        >>> report = fit_group_norms(network, torch.randn(16, 3, 8, 8))
        >>> type(network[1]).__name__, [fit.path for fit in report.layers]
        ('StandardisedGroupNorm', ['1'])
    """
    sources = _chosen(module, paths)
    pairs = {path: (source, standardising(source, groups=groups, blend=blend)) for path, source in sources.items()}
    report = fit_successors(module, pairs, images)
    _put(module, {path: successor for path, (_, successor) in pairs.items()})
    return report


@torch.no_grad()
def fit_successors(
    module: nn.Module, pairs: Mapping[str, tuple[_BatchNorm, StandardisedGroupNorm]], images: torch.Tensor
) -> ConversionReport:
    """Fit replacement layers to the outputs of the layers they replace; the module itself is not modified.

    Args:
        module, images: As for `fit_group_norms`.
        pairs: Path -> the source, with running statistics, and its successor, which is fitted.

    Raises:
        DataError, BackboneError: As there.
    """
    check_images(images)
    fitted: list[_Twin] = []
    for _, successor in pairs.values():
        _allow_affine(successor)
    twins = {path: _Twin(path, source, successor, fitted) for path, (source, successor) in pairs.items()}
    stood = {path: module.get_submodule(path) for path in pairs}
    try:
        _put(module, twins)
        with explaining(images), evaluating(module):
            output = tensor_of(module(torch.cat([images, images])))
        _check_fitted(twins, fitted, output)
    finally:
        _put(module, stood)
    assert output is not None
    agree = output[: len(images)].flatten(1).argmax(1) == output[len(images) :].flatten(1).argmax(1)
    return ConversionReport(
        layers=tuple(twin.report() for twin in fitted),
        images=len(images),
        blend=next(iter(pairs.values()))[1].blend,
        agreement=float(agree.float().mean()),
    )


def check_images(images: torch.Tensor) -> None:
    """Raise `DataError` unless there are images, floating-point and finite."""
    if images.ndim < 2 or not len(images) or not images.is_floating_point():
        raise DataError(f"Images must be (N, ...) float, N >= 1, got {tuple(images.shape)} {images.dtype}.")
    if not bool(images.isfinite().all()):
        raise DataError("The images contain values that are not finite; leave those images out.")


def _chosen(module: nn.Module, paths: Collection[str] | None) -> dict[str, nn.BatchNorm2d]:
    known = find_batch_norms(module)
    if not known:
        raise BackboneError(
            "The module has no BatchNorm2d with running statistics inside it, so there is nothing to convert."
        )
    if paths is None:
        return known
    if strange := [path for path in paths if path not in known]:
        raise OptionError(unknown_name("batch normalisation", strange[0], known))
    return {path: known[path] for path in known if path in set(paths)}


def _check_fitted(twins: Mapping[str, _Twin], fitted: Collection[_Twin], output: torch.Tensor | None) -> None:
    if output is None:
        raise BackboneError("The module must return a tensor, the batch first.")
    if silent := [path for path, twin in twins.items() if twin not in fitted]:
        raise BackboneError(
            f"{len(silent)} layers do not run on these images, such as {silent[0]!r}, so they cannot be fitted. "
            "Name the others with paths=."
        )


def _put(module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    for path, part in parts.items():
        module.set_submodule(path, part)


def _allow_affine(norm: StandardisedGroupNorm) -> None:
    """Add weight and bias to the replacement of a layer that had none; without gradients."""
    if not norm.affine:
        norm.affine = True
        norm.weight = nn.Parameter(torch.ones_like(norm.scale), requires_grad=False)
        norm.bias = nn.Parameter(torch.zeros_like(norm.scale), requires_grad=False)


class _Twin(nn.Module):
    """Replaces a layer temporarily: the first half of the batch passes through the source, the second through its
    successor, which is fitted on the first call."""

    def __init__(self, path: str, source: _BatchNorm, successor: StandardisedGroupNorm, done: list[_Twin]) -> None:
        super().__init__()
        self.path = path
        self.source = source
        self.fitted = successor
        self.done = done
        self.before = self.after = math.nan

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        own, converted = both.chunk(2)
        wanted = _plain(self.source, own)
        if self not in self.done:
            self.done.append(self)
            self._fit(converted, wanted)
        # The activation may compute in place, so it comes last.
        return torch.cat([self.fitted.act(wanted), self.fitted(converted)])

    def _fit(self, converted: torch.Tensor, wanted: torch.Tensor) -> None:
        step = max(1, math.isqrt(wanted[:, 0].numel() // MIN_VALUES))
        thin = (..., slice(None, None, step), slice(None, None, step))
        self.before = _relative(_taken_over(self.source, self.fitted, converted)[thin], wanted[thin])
        _weigh(self.fitted, converted)
        normalised = self.fitted.normalised(converted)[thin]
        _solve(self.fitted, self.source, normalised, _plain(self.source, converted[thin]), wanted[thin])
        self.after = _relative(_affine(self.fitted, normalised), wanted[thin])

    def report(self) -> LayerFit:
        """The quality of the fit, after the forward pass."""
        return LayerFit(path=self.path, channels=self.source.num_features, before=self.before, after=self.after)


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]


def _plain(source: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """The source's output with its running statistics, before its activation."""
    return F.batch_norm(
        values, source.running_mean, source.running_var, source.weight, source.bias, False, 0.0, source.eps
    )


def _taken_over(source: _BatchNorm, norm: StandardisedGroupNorm, values: torch.Tensor) -> torch.Tensor:
    """Output of group normalisation with the source's weight and bias."""
    return F.group_norm(values, norm.num_groups, source.weight, source.bias, source.eps)


def _affine(norm: StandardisedGroupNorm, normalised: torch.Tensor) -> torch.Tensor:
    return normalised * _by_channel(norm.weight) + _by_channel(norm.bias)


def _relative(given: torch.Tensor, wanted: torch.Tensor) -> float:
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return float((given - wanted).square().sum() / spread.clamp(min=torch.finfo(wanted.dtype).tiny))


def _weigh(norm: StandardisedGroupNorm, values: torch.Tensor) -> None:
    """Scale the channels, and flip signs, so that a group's statistics vary little between images and its variance
    averages 1 over the images."""
    standard = values * _by_channel(norm.scale) + _by_channel(norm.shift)
    means, squares = (
        part.double().chunk(norm.num_groups, dim=1) for part in (standard.mean((2, 3)), standard.square().mean((2, 3)))
    )
    weights = torch.cat([_steady(mean, square) for mean, square in zip(means, squares, strict=True)]).to(norm.scale)
    norm.scale.mul_(weights)
    norm.shift.mul_(weights)


def _steady(means: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """(D,) weights of the channels of one group.

    Their squares are a minimum-variance portfolio: of all weights near 1, those for which the weighted sum of second
    moments varies least over the images. Signs are then flipped greedily while that reduces the variation of the
    weighted mean.

    Args:
        means: (N, D) of each image and channel.
        squares: (N, D) mean squares.
    """
    images = len(squares)
    varying = squares - squares.mean(0)
    gram = varying @ varying.T / images
    ridge = RIDGE * gram.trace() / squares.shape[1] + torch.finfo(gram.dtype).tiny
    # argmin |varying w|^2 / N + ridge |w - 1|^2, solved in the dual, as there are fewer images than channels.
    held = gram + ridge * torch.eye(images, dtype=gram.dtype, device=gram.device)
    weights = 1 - varying.T @ torch.linalg.solve(held, varying.sum(1)) / images
    weights = weights.clamp(FARTHEST**-2, FARTHEST**2).sqrt()
    weights = weights * _balance(means * weights)
    mean = (means * weights).mean(1)
    variance = (squares * weights.square()).mean(1) - mean.square()
    return weights / variance.mean().clamp(min=SILENT).sqrt()


def _balance(means: torch.Tensor) -> torch.Tensor:
    """(D,) signs for which the signed sum of the columns is small in every row, a local optimum under single flips."""
    products = means.T @ means
    signs = torch.ones(means.shape[1], dtype=means.dtype, device=means.device)
    signs[1::2] = -1
    pull = products @ signs
    diagonal = products.diagonal()
    # A flip changes the squared sum by 4 (diagonal - sign * pull) < 0, so the loop terminates.
    for _ in range(10 * len(signs)):
        change = diagonal - signs * pull
        best = int(change.argmin())
        if change[best] >= -1e-12 * diagonal.sum():
            break
        signs[best] = -signs[best]
        pull = pull + 2 * signs[best] * products[:, best]
    return signs


def _solve(
    norm: StandardisedGroupNorm,
    source: _BatchNorm,
    normalised: torch.Tensor,
    target: torch.Tensor,
    wanted: torch.Tensor,
) -> None:
    """Fit weight and bias in closed form.

    The weight is the least-squares fit to `target`, the source's output for the same inputs: fitted to `wanted`, the
    source's output in the original network, errors of earlier layers would shrink it. The bias then matches the mean
    after the activation to that of `wanted`.
    """
    weight, bias = _least_squares(normalised, target, _slope(norm.act, target).clamp(min=FAINT))
    assert source.running_var is not None
    # A silent channel cannot be fitted; it keeps the source's scale, which is right for an image of average variance.
    known = source.weight if source.affine else torch.ones_like(weight)
    kept = known / (norm.scale * (source.running_var + source.eps).sqrt())
    quiet = target.var((0, 2, 3), correction=0) <= SILENT * known.square()
    norm.weight.copy_(torch.where(quiet, kept, weight))
    norm.bias.copy_(torch.where(quiet, (target - normalised * _by_channel(kept)).mean((0, 2, 3)), bias))
    _match_means(norm, normalised, wanted)


def _least_squares(
    given: torch.Tensor, wanted: torch.Tensor, counting: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(C,) slope and offset of the weighted regression of (N, C, H, W) `wanted` on `given`, channel by channel."""
    over = (0, 2, 3)
    share = counting / counting.sum(over, keepdim=True)
    middle = (share * given).sum(over, keepdim=True)
    target = (share * wanted).sum(over, keepdim=True)
    away = given - middle
    variance = (share * away.square()).sum(over)
    slope = (share * away * (wanted - target)).sum(over) / variance.clamp(min=torch.finfo(variance.dtype).tiny)
    return slope, target.flatten() - slope * middle.flatten()


def _match_means(norm: StandardisedGroupNorm, normalised: torch.Tensor, wanted: torch.Tensor) -> None:
    """Adjust the bias until each channel's mean after the activation equals that of `wanted`."""
    over = (0, 2, 3)
    goal = norm.act(wanted.clone()).mean(over)
    for _ in range(STEPS):
        given = _affine(norm, normalised)
        steep = _slope(norm.act, given).mean(over).clamp(min=0.1)
        norm.bias.add_((goal - norm.act(given).mean(over)) / steep)


def _slope(act: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Absolute slope of an activation by finite differences, >= 0; 1 for the identity."""
    if isinstance(act, nn.Identity):
        return torch.ones_like(values)
    risen: torch.Tensor = act(values + PASSING) - act(values - PASSING)
    return risen.abs() / (2 * PASSING)
