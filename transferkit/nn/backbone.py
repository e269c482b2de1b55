"""A pretrained network as ordered stages, with its classifier separate."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import BackboneError
from transferkit.nn.anatomy import assign_stages, find_stage
from transferkit.nn.moments import MomentTap, discover_moment_taps, record_moments, running_moments
from transferkit.nn.norm.conv_folding import find_foldable
from transferkit.nn.norm.source import is_batch_norm
from transferkit.nn.pooling import find_layout, pool, pooled_width, to_grid
from transferkit.nn.stages import Tap, collecting, count_parameters, discover_taps, evaluating, explaining, record_taps
from transferkit.records import JOINED, BackboneSpec, Preprocessing, StageSpec

__all__ = ["Backbone", "weights_digest"]


def weights_digest(module: nn.Module) -> str:
    """Hex digest of all parameters and buffers: names, dtypes, shapes and bytes.

    Example:
        >>> weights_digest(nn.Linear(1, 1)) == weights_digest(nn.Linear(1, 1))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_linear(module: nn.Module, outputs: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == outputs
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == outputs


def _last_layer(network: nn.Module, images: torch.Tensor) -> tuple[str, int]:
    """Path of the last layer with parameters that runs, and the width of the network's output."""
    ran: list[str] = []
    leaves = {
        path: m for path, m in network.named_modules() if path and not list(m.children()) and list(m.parameters())
    }
    handles = [
        module.register_forward_hook(lambda _m, _i, _o, path=path: ran.append(path)) for path, module in leaves.items()
    ]
    try:
        with explaining(images), evaluating(network), torch.no_grad():
            output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        raise BackboneError(
            f"The network must return a tensor with a batch dimension first, got {type(output).__name__}."
        )
    return (ran[-1] if ran else "", int(output.shape[1]))


class _Pooled(nn.Module):
    """A network without classifier whose output grid or tokens are averaged to one vector per image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.network(images)
        return pool(output, find_layout(tuple(output.shape)), "avg")


def _fit_size(network: nn.Module, spec: BackboneSpec) -> tuple[nn.Module, int]:
    """The network at the spec's input size, and the size to trace it at.

    That is the native size if possible: stage names must not depend on the size in use.
    """
    side = spec.preprocessing.size
    if side == spec.native_size:
        return network, side
    if hasattr(network, "set_input_size"):
        resized: Any = copy.deepcopy(network)
        resized.set_input_size(img_size=(side, side))
        network = resized
        return network, side
    if spec.fixed_size:
        raise BackboneError(
            f"{spec.name} takes images of {spec.native_size} px only, got image_size={side}. "
            "Leave image_size out, or choose a backbone without a fixed size."
        )
    return network, spec.native_size


def _reset_head(network: Any, images: torch.Tensor) -> tuple[nn.Module, nn.Module | None]:
    """Split a network with `reset_classifier`; the classifier is None if it does not alone produce the logits."""
    classifier = network.get_classifier()
    with evaluating(network), torch.no_grad(), explaining(images):
        logits = network(images)
        network.reset_classifier(0)
        if not isinstance(classifier, nn.Linear):
            return network, None
        return network, classifier if torch.allclose(classifier(network(images)), logits, atol=1e-3) else None


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise BackboneError(
            f"The network must be copied, but cannot be: {type(error).__name__}: {error}. Replace what cannot be "
            "copied (a scripted function by the plain one, a generator, an open file)."
        ) from error


def split_head(network: nn.Module, *, size: int) -> tuple[nn.Module, nn.Module | None]:
    """A copy of the network without its classifier, and that classifier if it maps (N, D) to (N, classes).

    Uses the network's `reset_classifier` if it has one, as timm's do; else the last layer to run is replaced by the
    identity if it is linear.
    """
    network = _copied(network)
    images = torch.zeros(2, 3, size, size)
    if hasattr(network, "reset_classifier") and hasattr(network, "get_classifier"):
        return _reset_head(network, images)
    path, outputs = _last_layer(network, images)
    last = network.get_submodule(path)
    head = None
    if path and _is_linear(last, outputs):
        head = last if isinstance(last, nn.Linear) else None
        network.set_submodule(path, nn.Identity())
    with evaluating(network), torch.no_grad():
        needs_pooling = network(images).ndim != 2
    return (_Pooled(network) if needs_pooling else network), head


def _refuse_scripts(network: nn.Module) -> None:
    """Raise for TorchScript modules: hooks on their layers do not work, so no stage could be read.

    Raises:
        BackboneError: If the network is or contains one.
    """
    script = next(
        (path for path, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)), None
    )
    if script is not None:
        where = f"its module {script!r} is one" if script else "this is one"
        raise BackboneError(
            f"A TorchScript module does not expose its layers, and {where}. Pass the nn.Module that it was made from, "
            "with the same weights: module.load_state_dict(scripted.state_dict())."
        )


def _accept_channels_last(trunk: nn.Module, *, size: int) -> None:
    """Make a network that needs contiguous tensors (`view` after a convolution) accept images in channels_last, the
    fast format for convolutions: its layers then output contiguous tensors."""
    images = torch.zeros(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    try:
        with evaluating(trunk), torch.no_grad():
            trunk(images)
    except RuntimeError:  # for any other cause this is harmless, and the error is reported later
        trunk.register_forward_pre_hook(_contiguous_inputs)
        for module in trunk.modules():
            if not list(module.children()):
                module.register_forward_hook(_contiguous_output)


def _contiguous_inputs(_module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value.contiguous() if isinstance(value, torch.Tensor) else value for value in inputs)


def _contiguous_output(_module: nn.Module, _inputs: object, output: object) -> object:
    return output.contiguous() if isinstance(output, torch.Tensor) else output


class Backbone(nn.Module):
    """A pretrained network as stages, stem -> head.

    Args:
        network: With or without its original classifier. It is copied, never changed.
        spec: Its description; `stages`, `weights_id`, `parameters` and `batch_norm` are set here.
        size: Side of the input in pixels; None uses the checkpoint's.

    Attributes:
        spec: The completed `BackboneSpec`.
        head: Its original classifier, (N, D) -> (N, classes); None if it has none of that form.
        taps: Where each stage is read.
        moment_taps: Where each stage's activations can be compared with those in training.

    Raises:
        BackboneError: If the network cannot take images of that size.

    Example:
        >>> from transferkit.records import Preprocessing
        >>> plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> spec = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=plain, pretrained=False)
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(),
        ...                     nn.Conv2d(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        >>> backbone = Backbone(toy, spec)
        >>> [stage.name for stage in backbone.stages], backbone(torch.zeros(1, 3, 32, 32)).shape
        (['1', '3', 'top'], torch.Size([1, 16]))
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, *, size: int | None = None) -> None:
        super().__init__()
        _refuse_scripts(network)
        spec = spec.at(size)
        network, traced = _fit_size(network, spec)
        self.trunk, self.head = split_head(network, size=traced)
        self.trunk.eval()
        _accept_channels_last(self.trunk, size=traced)
        self._traced = traced
        self.taps: tuple[Tap, ...] = discover_taps(self.trunk, size=traced)
        self._owner = record_taps(self.trunk, self.taps)
        self.moment_taps: tuple[MomentTap, ...] = discover_moment_taps(self.trunk, self.taps, size=traced)
        self._moments_owner = record_moments(self.trunk, self.moment_taps)
        self.spec = replace(
            spec,
            stages=tuple(
                StageSpec(
                    name=tap.stage,
                    channels=tap.channels,
                    stride=None if tap.grid is None else round(traced / tap.grid),
                )
                for tap in self.taps
            ),
            weights_id=weights_digest(self.trunk),
            parameters=count_parameters(self.trunk),
            batch_norm=any(map(is_batch_norm, self.trunk.modules())),
        )

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """Stem -> head; the last is "top"."""
        return self.spec.stages

    def find_stages(self, stage: str | int) -> tuple[str, ...]:
        """Stage names that an argument refers to: a name, an index (negative counts from the top), or "joined" for all.

        "selected" also means all: which of their features are used is decided by the classifier.

        Raises:
            OptionError: If there is no such stage; the message suggests the closest names.
        """
        return self.spec.find_stages(stage)

    @cached_property
    def anatomy(self) -> dict[str, str]:
        """Module path inside the trunk -> name of its stage; computed on first access, for the modules at that time."""
        return assign_stages(self.trunk, self.taps, size=self._traced)

    @cached_property
    def foldable(self) -> tuple[tuple[str, str], ...]:
        """Paths inside the trunk of the convolutions into which the normalisation of their outputs can be folded, and
        of these normalisations; computed on first access, for the modules at that time."""
        return tuple(find_foldable(self.trunk, self.everything_read, size=self._traced))

    def everything_read(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Path -> output, of the trunk and of every stage."""
        with self.recording_stages() as outputs:
            outputs[""] = self.trunk(images)
        return outputs

    def stage_of(self, path: str) -> str:
        """The stage that a module or parameter of the trunk belongs to, by its dotted path inside the trunk."""
        return find_stage(self.anatomy, path)

    def widths(self, pooling: str) -> dict[str, int]:
        """Stage name -> width of its pooled vector."""
        return {tap.stage: pooled_width(tap.channels, tap.layout, pooling) for tap in self.taps}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float, normalised -> (N, D), the head's input."""
        vector: torch.Tensor = self.trunk(images)
        return vector

    def _read(self, images: torch.Tensor, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """Stage name -> its raw output, for the stages in `names` (see `find_stages`), or all."""
        wanted = self.find_stages(JOINED) if names is None else {s for name in names for s in self.find_stages(name)}
        with self.recording_stages() as outputs:
            outputs[""] = self.trunk(images)
        return {tap.stage: outputs[tap.path] for tap in self.taps if tap.stage in wanted}

    def forward_stages(self, images: torch.Tensor, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Stage name -> its output with channels at axis 1: (N, C), (N, C, T) or (N, C, H, W)."""
        outputs = self._read(images, names)
        return {tap.stage: to_grid(outputs[tap.stage], tap.layout) for tap in self.taps if tap.stage in outputs}

    def pooled_stages(
        self, images: torch.Tensor, *, pooling: str, names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Stage name -> one vector per image, (N, C) or (N, 2C); stem -> head."""
        outputs = self._read(images, names)
        return {tap.stage: pool(outputs[tap.stage], tap.layout, pooling) for tap in self.taps if tap.stage in outputs}

    def recording_stages(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """Module path -> raw output of every tapped module of the trunk that this thread runs inside the block."""
        return collecting(self._owner)

    @contextmanager
    def recording_moments(self) -> Iterator[dict[str, torch.Tensor]]:
        """Set when the block ends: stage -> (N, 2C) float32 of this thread's last forward pass in the block: the mean
        of each channel over the image's positions, then the mean square of each channel."""
        moments: dict[str, torch.Tensor] = {}
        with collecting(self._moments_owner) as outputs:
            try:
                yield moments
            finally:
                moments.update({tap.stage: outputs[tap.path] for tap in self.moment_taps if tap.path in outputs})

    def moment_widths(self) -> dict[str, int]:
        """Stage name -> 2C, the width of the vectors from `recording_moments`."""
        return {tap.stage: 2 * tap.channels for tap in self.moment_taps}

    def source_moments(self) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Stage name -> (C,) means and (C,) variances over its training images, from the running statistics of
        batch normalisation; empty if it has none."""
        found = running_moments(self.trunk, self.moment_taps)
        return {stage: (mean.numpy(), variance.numpy()) for stage, (mean, variance) in found.items()}

    def with_preprocessing(self, preprocessing: Preprocessing) -> Backbone:
        """The same backbone (weights shared) with another preprocessing, at the same size."""
        if preprocessing == self.spec.preprocessing:
            return self
        other = copy.copy(self)
        other.spec = replace(self.spec, preprocessing=preprocessing)
        return other

    def source_probabilities(self, averages: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Class probabilities from the backbone's original classifier.

        Args:
            averages: (N, C) of the top stage, its input.

        Returns:
            (N, Z), rows sum to 1.

        Raises:
            BackboneError: If the backbone has no original classifier.
        """
        if self.head is None:
            raise BackboneError(f"{self.spec.name} has no original classifier.")
        device = next(self.head.parameters()).device
        with torch.no_grad():
            logits = self.head(torch.tensor(averages, device=device))
            return np.asarray(torch.softmax(logits.double(), dim=1).cpu().numpy())

    def without_head(self) -> Backbone:
        """The same backbone (weights shared) without its original classifier."""
        bare = copy.copy(self)
        bare._modules = dict(self._modules)
        bare.head = None
        return bare
