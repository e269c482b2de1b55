"""Batch normalisation replaced by group normalisation that was fitted to do the same, from a few unlabelled images.

Group normalisation takes its statistics from each image alone, so it needs no batch; put in a pretrained network as it
is, it destroys what the network knows. Here each layer first brings its channels to the scale that the running
statistics of the source give, weighs them so that what an image's statistics vary by is small, and then gets, in closed
form, the scale and offset that come nearest to what the source layer gives. Whether a network is better off converted
at all is for others to say.
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
"""How much channels' weights are held back from cancelling what the images' second moments vary by, in units of that
variance in the mean channel. Of 0.01, 0.1, 1, 10 and 100, this agreed best on photographs; 1 to 100 are alike."""

FARTHEST = 4.0
"""A channel counts at most this many times more or less than it would unweighted."""

PASSING = 0.5
"""Half the width over which the slope of an activation is taken, in units of its input."""

FAINT = 0.01
"""What a value that the activation cuts off counts in the fit."""

STEPS = 5
"""Of Newton's, for the offset. The activation is piecewise linear as a rule; 2 would nearly do."""

ENOUGH = 16384
"""Values of a channel that its scale and offset are fitted to, at least where there are as many; of finer grids, every
second, third, ... row and column counts, for neighbours tell nearly the same."""

SILENT = 1e-6
"""Below this variance of a channel, in units of its variance on the source, its scale is taken from the source."""


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """How near one layer comes to what the source's layer gives, before the activation.

    Args:
        path: Dotted path.
        channels: C.
        before: With group normalisation that takes over the source's weight and bias: summed squared distance, in
            units of the summed squared distance of the source's output from its channel means. Behind layers that were
            fitted already.
        after: The same with the layer that was fitted.
    """

    path: str
    channels: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What became of a conversion, on the images that it was fitted to: more than can be hoped for on others.

    Args:
        layers: In the order in which they run.
        images: Number of images.
        blend: Share of the images' own statistics.
        agreement: Share of images whose largest output is the same as the source's, in [0, 1]. Only for classifiers
            does that mean anything.
    """

    layers: tuple[LayerFit, ...]
    images: int
    blend: float
    agreement: float


def find_batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Path -> every `nn.BatchNorm2d` with running statistics; those that bring an activation along too."""
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
    """Replace batch normalisation, in place, by group normalisation that was fitted to give the same on the images.

    One forward pass does it all: the images run twice side by side, once through the layers as they were and once
    through those fitted so far, and each layer is fitted when both reach it. Memory is that of a forward pass with 2N
    images, without gradients. If anything goes wrong, the module is as it was. Nothing is drawn at random.

    Args:
        module: Takes the images and returns a tensor, the batch first; any mode, which it keeps.
        images: (N, ...) float, as the module takes them, on its device; some 64 or more, like those to come. No labels.
        groups: Of neighbouring channels, >= 1. 1 is nearest to the source, by far. Where it does not divide a layer's
            channels, the nearest number that does.
        blend: Share of each image's own statistics, in [0, 1]. 1 is group normalisation proper, 0 the source's fixed
            statistics, which need no batch either but do not follow weights that change.
        paths: Layers to replace; None is all that `find_batch_norms` gives.

    Returns:
        How near each layer and the whole come to the source.

    Raises:
        OptionError: If `blend`, `groups` or a path cannot be.
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
    """Fit layers to what others give in their places. The module is left as it was, whatever stood in those places.

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
        raise DataError("The images hold values that are not finite; leave those images out.")


def _chosen(module: nn.Module, paths: Collection[str] | None) -> dict[str, nn.BatchNorm2d]:
    known = find_batch_norms(module)
    if not known:
        raise BackboneError("The module has no BatchNorm2d with running statistics inside it: nothing to convert.")
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
            f"{len(silent)} layers do not run on these images, such as {silent[0]!r}, and cannot be fitted. "
            "Name the others with paths=."
        )


def _put(module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    for path, part in parts.items():
        module.set_submodule(path, part)


def _allow_affine(norm: StandardisedGroupNorm) -> None:
    """Weight and bias to fit, for a successor of a layer that had none; they do not learn unless they are told to."""
    if not norm.affine:
        norm.affine = True
        norm.weight = nn.Parameter(torch.ones_like(norm.scale), requires_grad=False)
        norm.bias = nn.Parameter(torch.zeros_like(norm.scale), requires_grad=False)


class _Twin(nn.Module):
    """Hangs in a layer's place: the first half of the batch goes through the source, the second through its successor,
    which is fitted when the first batch arrives."""

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
        # The activation may well compute in place, so it comes last.
        return torch.cat([self.fitted.act(wanted), self.fitted(converted)])

    def _fit(self, converted: torch.Tensor, wanted: torch.Tensor) -> None:
        step = max(1, math.isqrt(wanted[:, 0].numel() // ENOUGH))
        thin = (..., slice(None, None, step), slice(None, None, step))
        self.before = _relative(_taken_over(self.source, self.fitted, converted)[thin], wanted[thin])
        _weigh(self.fitted, converted)
        normalised = self.fitted.normalised(converted)[thin]
        _solve(self.fitted, self.source, normalised, _plain(self.source, converted[thin]), wanted[thin])
        self.after = _relative(_affine(self.fitted, normalised), wanted[thin])

    def report(self) -> LayerFit:
        """Once it is fitted."""
        return LayerFit(path=self.path, channels=self.source.num_features, before=self.before, after=self.after)


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]


def _plain(source: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """What the source gives, its activation aside, by its running statistics."""
    return F.batch_norm(
        values, source.running_mean, source.running_var, source.weight, source.bias, False, 0.0, source.eps
    )


def _taken_over(source: _BatchNorm, norm: StandardisedGroupNorm, values: torch.Tensor) -> torch.Tensor:
    """What group normalisation gives that just takes over weight and bias."""
    return F.group_norm(values, norm.num_groups, source.weight, source.bias, source.eps)


def _affine(norm: StandardisedGroupNorm, normalised: torch.Tensor) -> torch.Tensor:
    return normalised * _by_channel(norm.weight) + _by_channel(norm.bias)


def _relative(given: torch.Tensor, wanted: torch.Tensor) -> float:
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return float((given - wanted).square().sum() / spread.clamp(min=torch.finfo(wanted.dtype).tiny))


def _weigh(norm: StandardisedGroupNorm, values: torch.Tensor) -> None:
    """Scale, and turn over, the channels so that the statistics of a group differ little from image to image, and the
    variance of a group is 1 on average over the images."""
    standard = values * _by_channel(norm.scale) + _by_channel(norm.shift)
    means, squares = (
        part.double().chunk(norm.num_groups, dim=1) for part in (standard.mean((2, 3)), standard.square().mean((2, 3)))
    )
    weights = torch.cat([_steady(mean, square) for mean, square in zip(means, squares, strict=True)]).to(norm.scale)
    norm.scale.mul_(weights)
    norm.shift.mul_(weights)


def _steady(means: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """(D,) weights of the channels of one group.

    Their squares are the portfolio of least variance: of all weights that stay near 1, those with which the weighted
    sum of the second moments varies least over the images. Signs are then flipped one by one, the best first, for as
    long as that lessens the variation of the weighted mean.

    Args:
        means: (N, D) of each image and channel.
        squares: (N, D) mean squares.
    """
    images = len(squares)
    varying = squares - squares.mean(0)
    gram = varying @ varying.T / images
    ridge = RIDGE * gram.trace() / squares.shape[1] + torch.finfo(gram.dtype).tiny
    # argmin |varying w|^2 / N + ridge |w - 1|^2, solved over images, of which there are fewer than channels.
    held = gram + ridge * torch.eye(images, dtype=gram.dtype, device=gram.device)
    weights = 1 - varying.T @ torch.linalg.solve(held, varying.sum(1)) / images
    weights = weights.clamp(FARTHEST**-2, FARTHEST**2).sqrt()
    weights = weights * _balance(means * weights)
    mean = (means * weights).mean(1)
    variance = (squares * weights.square()).mean(1) - mean.square()
    return weights / variance.mean().clamp(min=SILENT).sqrt()


def _balance(means: torch.Tensor) -> torch.Tensor:
    """(D,) of 1 and -1 with which the sum of the columns is small in every row, as far as single flips lead."""
    products = means.T @ means
    signs = torch.ones(means.shape[1], dtype=means.dtype, device=means.device)
    signs[1::2] = -1
    pull = products @ signs
    diagonal = products.diagonal()
    # A flip changes the squared sum by 4 (diagonal - sign * pull), less than 0 each time: it ends.
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
    """Weight and bias, in closed form.

    The weight is that of least squares against `target`, which the source makes of the very same values: against
    `wanted`, the source's own activations, errors of the layers before would pull it towards 0. The bias then brings
    the mean behind the activation to that of `wanted`.
    """
    weight, bias = _least_squares(normalised, target, _slope(norm.act, target).clamp(min=FAINT))
    assert source.running_var is not None
    # Where a channel is silent there is nothing to fit; there the source's scale holds for an image of usual variance.
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
    """Change the bias until each channel's mean behind the activation is that of `wanted`."""
    over = (0, 2, 3)
    goal = norm.act(wanted.clone()).mean(over)
    for _ in range(STEPS):
        given = _affine(norm, normalised)
        steep = _slope(norm.act, given).mean(over).clamp(min=0.1)
        norm.bias.add_((goal - norm.act(given).mean(over)) / steep)


def _slope(act: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """How much of a change in its input an activation lets through, >= 0; 1 throughout for the identity."""
    if isinstance(act, nn.Identity):
        return torch.ones_like(values)
    risen: torch.Tensor = act(values + PASSING) - act(values - PASSING)
    return risen.abs() / (2 * PASSING)
