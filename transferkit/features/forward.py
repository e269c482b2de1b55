"""A batch of images through a backbone in torch: without gradients, halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import BackboneError, TransferkitError
from transferkit.nn.backbone import Backbone
from transferkit.nn.model import normalise
from transferkit.nn.running import is_out_of_memory, without_tracing
from transferkit.nn.stages import evaluating

__all__ = [
    "Compute",
    "Forward",
    "backbone_failure",
    "check_shape",
    "describe_error",
    "features_and_moments",
    "joined",
    "placed_on",
]

Compute = Callable[[torch.Tensor, frozenset[str]], Mapping[str, Mapping[str, torch.Tensor]]]
"""(normalised images, kinds of rows wanted) -> kind -> block name -> (n, D), as the kind's shelf has them."""


def check_shape(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]], images: int, width: int) -> None:
    """Check that there is one row per image, as wide as the stages were when the network was traced.

    Raises:
        BackboneError: If not.
    """
    rows = all(len(shape) == 2 and shape[0] == images for shape in shapes.values())
    if rows and sum(shape[1] for shape in shapes.values()) == width:
        return
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    expected = f"{images} rows of {width} numbers for {images} images"
    raise backbone_failure(backbone, f"expected {expected}, got the shapes {listed}")


def backbone_failure(backbone: Backbone, problem: str, shape: tuple[int, ...] | None = None) -> BackboneError:
    """The error for a network that fails on the images: what happened, and the images that it works on."""
    spec = backbone.spec
    size, native = spec.preprocessing.size, spec.native_size
    if spec.preprocessing.prepared or shape not in (None, (3, size, size)):  # which image_size does not reach
        return BackboneError(
            f"{spec.name} failed on images of shape {shape or spec.preprocessing.shape}: {problem}. It works on "
            f"(3, {native}, {native}): prepare them like that."
        )
    if size != native:
        return BackboneError(
            f"{spec.name} does not work on images of {size} px: {problem}. It works at its native {native} px: leave "
            f"image_size out, or set image_size={native}."
        )
    return BackboneError(f"{spec.name} failed on images of {size} px, the size that it is made for: {problem}.")


def describe_error(error: Exception) -> str:
    """An exception in one line: its first, or the last one where a traceback comes before it, as in TorchScript."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
    return f"{type(error).__name__}: {line.rstrip('.')}"


@contextmanager
def placed_on(backbone: Backbone, device: torch.device) -> Iterator[Backbone]:
    """The backbone on the device and in evaluation mode; afterwards on its own device and in its own modes again."""
    weights = [*backbone.parameters(), *backbone.buffers()]
    home = next((tensor.device for tensor in weights), torch.device("cpu"))
    # Looked at first: moving what is there already takes ten times as long, and there are many passes over few images.
    is_home = all(tensor.device == device for tensor in weights)
    is_laid_out = all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in weights if tensor.ndim == 4)
    try:
        with evaluating(backbone):
            if not is_home:
                backbone.to(device)
            yield backbone if is_laid_out else backbone.to(memory_format=torch.channels_last)
    finally:
        if not is_home:
            backbone.to(home)


class Forward:
    """One backbone on one device, turning stacks of pixels into rows."""

    def __init__(self, backbone: Backbone, device: torch.device, compute: Compute) -> None:
        self._backbone = backbone
        self._device = device
        self._compute = compute

    def rows(self, pixels: npt.NDArray[Any], wanted: frozenset[str]) -> dict[str, npt.NDArray[np.float32]]:
        """(n, 3, H, W) uint8 or normalised float32 -> rows of the kinds wanted."""
        blocks = self.blocks(pixels, wanted)
        return {kind: joined(blocks[kind]).cpu().numpy() for kind in blocks if kind in wanted}

    def blocks(self, pixels: npt.NDArray[Any], wanted: frozenset[str]) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The same, stage by stage and still on the device.

        Raises:
            BackboneError: If the network cannot take the images.
        """
        try:
            stack = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            # no_grad, not inference_mode: what is cached may be trained on later. And float32, whatever is around it.
            with without_tracing(), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                images = normalise(stack, self._backbone.spec.preprocessing)
                return self._compute(images.contiguous(memory_format=torch.channels_last), wanted)
        except TransferkitError:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise backbone_failure(
                self._backbone, f"it raised {describe_error(error)}", tuple(pixels.shape[1:])
            ) from error

    def rows_within_memory(
        self, pixels: npt.NDArray[Any], wanted: frozenset[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The same, in halves for as long as the device runs out of memory.

        Raises:
            BackboneError: If not even one image fits.
        """
        try:
            return self.rows(pixels, wanted)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise BackboneError(
                    f"{self._backbone.spec.name} runs out of memory on {self._device} with a single image of shape "
                    f"{pixels.shape[1:]}. Choose a smaller image_size or backbone, or device=cpu."
                ) from error
        # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        first, second = (self.rows_within_memory(part, wanted) for part in (pixels[:half], pixels[half:]))
        return {kind: np.concatenate([first[kind], second[kind]]) for kind in first}


def joined(blocks: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The stages side by side, (n, D) float32."""
    return torch.cat([part.float() for part in blocks.values()], dim=1)


def features_and_moments(backbone: Backbone, pooling: str) -> Compute:
    """Pooled vectors of every stage, and moments of their channels where these are wanted."""

    def compute(images: torch.Tensor, wanted: frozenset[str]) -> dict[str, dict[str, torch.Tensor]]:
        if "moments" not in wanted:
            return {"features": backbone.pooled_stages(images, pooling=pooling)}
        with backbone.recording_moments() as recorded:
            pooled = backbone.pooled_stages(images, pooling=pooling)
        return {"features": pooled, "moments": recorded}

    return compute
