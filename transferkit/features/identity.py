"""The identity of a row of features: everything that can change a number in it, but the image.

Weights, layers, preprocessing, libraries, device and precision have names, which are hashed. Code has none: an edited
`forward`, a hook, a changed `eps` or a dropout that was left on show in the imprint, the output of the network, in
evaluation mode, for two fixed images at the size in use. Imprints are compared with a tolerance, never hashed: the
number of threads and the memory layout change the last bits of every output, and a rounded value can lie on the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.records import Preprocessing

__all__ = [
    "CLOSE",
    "IMPRINT_IMAGES",
    "Identity",
    "Imprint",
    "circumstances",
    "closeness",
    "imprint_of",
    "probe_images",
    "probe_inputs",
    "same_draws",
]

Imprint = npt.NDArray[np.float64]
"""(M, W), a row per stage and fixed image."""

CLOSE = 1e-4
"""How far two imprints of the same network may lie apart, in units of their size. EfficientNet-Lite0's moves by 8e-6
with the number of threads, the memory layout or the library of kernels; one channel of one stage that is 1 % larger
moves it by 1e-2."""

IMPRINT_IMAGES = 2
"""Images of an imprint: one alone could not show that a network mixes up the images of a batch."""

IMPRINT_WIDTH = 256
"""Numbers kept of an image and stage, each a sum of outputs with fixed signs: one output that changed shows."""

COARSELY_CLOSE = 5e-3
"""How far imprints may lie apart where products are rounded to TF32 or bfloat16."""

LIBRARIES = ("torchvision", "timm", "pillow")
"""Distributions that resize, decode or build the network; torch itself is asked for its full version."""


@dataclass(frozen=True, eq=False)
class Identity:
    """What fixes the rows of one kind, but for the image: the bank keeps rows of one identity on one shelf.

    Args:
        names: Everything that has a name; with the widths it is hashed into the shelf's.
        widths: Stage name -> width; rows hold the stages in this order.
        imprint: (M, W) output for fixed images. Equal names and imprints that are not close are different identities.
        close: How far imprints may lie apart, in units of their size, and still be of one identity.
        dtype: What rows are kept as: one of `tables.DTYPES`.
        about: Kept with the rows for people; no part of the identity.
    """

    names: Mapping[str, object]
    widths: Mapping[str, int]
    imprint: Imprint | None = None
    close: float = CLOSE
    dtype: str = "float32"
    about: Mapping[str, object] = field(default_factory=dict)


def circumstances(device: torch.device) -> dict[str, object]:
    """Names of what can change a row besides weights, layers and preprocessing: libraries, device, precision."""
    return {"libraries": _versions(), "device": _device_class(device), "precision": _precision(device)}


def _versions() -> dict[str, str]:
    from PIL import features

    jpeg = features.version_codec("jpg")
    return {
        "torch": torch.__version__,
        "libjpeg": str(jpeg),
        **{library: metadata.version(library) for library in LIBRARIES},
    }


def _device_class(device: torch.device) -> str:
    """ "cpu", "mps", or the GPU's model: several equal ones are one class."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return device.type


def _precision(device: torch.device) -> dict[str, str]:
    """The precision of float32 matrix products and convolutions, as far as it can be chosen."""
    backends: Any = torch.backends  # whose types lag behind
    if device.type not in ("cpu", "cuda"):
        return {}
    on_gpu = device.type == "cuda"
    if hasattr(backends, "fp32_precision"):  # since torch 2.9; the older names raise once these were set
        cpu, gpu = backends.mkldnn, (backends.cuda.matmul, backends.cudnn.conv)
        settings = gpu if on_gpu else (cpu.matmul, cpu.conv)
        matmul, convolution = (str(setting.fp32_precision) for setting in settings)
    else:
        matmul = {"highest": "none", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
        convolution = "tf32" if on_gpu and backends.cudnn.allow_tf32 else "none"
    exact = {"none", "ieee"}
    return {
        "matmul": "float32" if matmul in exact else matmul,
        "convolution": "float32" if convolution in exact else convolution,
    }


def closeness(device: torch.device) -> float:
    """How far imprints of one network may lie apart on this device: 10 bits of mantissa round a thousand times as
    coarsely as the 23 of float32, and kernels are free to round differently."""
    coarse = set(_precision(device).values()) - {"float32"}
    return COARSELY_CLOSE if coarse else CLOSE


def probe_images(height: int, width: int, count: int = IMPRINT_IMAGES) -> npt.NDArray[np.uint8]:
    """(count, 3, height, width) uint8: fixed pictures, smooth ones and rough ones in turn.

    Whole numbers and no generator: the same with every version of every library.
    """
    rows, columns = np.mgrid[:height, :width]
    pictures = []
    for number in range(count):
        for channel in range(3):
            slope = rows * (3 + channel + number) + columns * (5 - channel)
            smooth = np.abs(slope * 512 // max(height, width) % 510 - 255)
            rough = (rows * rows * 3 + columns * columns * 5 + rows * columns * (7 + channel) + 37 * number) % 251
            pictures.append(smooth if number % 2 == 0 else rough)
    return np.stack(pictures).reshape(count, 3, height, width).astype(np.uint8)


def probe_inputs(wants: Preprocessing, count: int) -> npt.NDArray[Any]:
    """Fixed images as a network is given them: uint8 pictures, or float32 tensors where it `wants` them prepared."""
    height, width = wants.height_width
    pictures = probe_images(height, width, count)
    return pictures.astype(np.float32) / 127.5 - 1 if wants.prepared else pictures


def imprint_of(blocks: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float64]:
    """(stages x images, 256) from a network's output for the probe images, stage by stage: (images, D) each."""
    with np.errstate(invalid="ignore"):  # infinities are met, and explained, when real images are run
        return np.concatenate([_folded(part.detach().float().cpu().numpy()) for part in blocks.values()])


def _folded(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(n, D) -> (n, 256): every column goes into one of the sums, with a fixed sign."""
    columns = np.arange(rows.shape[1], dtype=np.uint32)
    signs = 1.0 - 2.0 * ((columns * np.uint32(2654435761)) >> np.uint32(31)).astype(np.float64)
    padded = np.zeros((len(rows), -(-rows.shape[1] // IMPRINT_WIDTH) * IMPRINT_WIDTH))
    padded[:, : rows.shape[1]] = rows * signs
    return padded.reshape(len(rows), -1, IMPRINT_WIDTH).sum(axis=1)


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside the block are the same every time, and the generators are as before afterwards.

    A network that draws in evaluation mode (dropout left on) so has an imprint of its own that does not change.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield
