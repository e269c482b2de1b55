"""open_clip's text-image models: the image tower as a backbone, the text tower for prompts; weights are in a file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import BackboneError, CheckpointError, MissingDependencyError, unknown_name
from transferkit.records import Preprocessing
from transferkit.zoo._checkpoint import fit
from transferkit.zoo._entry import ModelEntry
from transferkit.zoo._weights_file import find_file, read_parts

__all__ = ["SOURCE", "describe", "encode_texts"]

SOURCE = "open_clip"

TOWER = "visual."

DISTRIBUTED = "module."
"""What DistributedDataParallel puts before every name."""


class ImageEmbedding(nn.Module):
    """(N, 3, H, W) -> (N, D), length 1, in the space of the text embeddings."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.visual = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.visual(images), dim=-1)


def describe(name: str) -> ModelEntry:
    """The entry of "ARCHITECTURE", which has no weights of its own: `checkpoint=` names them.

    Raises:
        BackboneError: If open_clip has no such architecture.
        MissingDependencyError: If open_clip is not installed.
    """
    open_clip = _import()
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        raise BackboneError(unknown_name("open_clip model", architecture, open_clip.list_models()))
    if tag:
        raise BackboneError(
            f"Weights of open_clip/{architecture} are given as a file, got the tag {tag!r}: "
            f"model=open_clip/{architecture} checkpoint=FILE."
        )
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    sides = size if isinstance(size, Sequence) else (size, size)
    if len(set(sides)) != 1:
        raise BackboneError(f"open_clip/{architecture} takes images of {sides[0]} x {sides[1]} px; a square is needed.")
    return ModelEntry(
        address=f"{SOURCE}/{architecture}",
        source=SOURCE,
        architecture=architecture,
        preprocessing=_preprocessing(architecture, int(sides[0])),
        build=partial(_build, architecture),
        has_weights=False,
        fixed_size=True,
        tower=TOWER,
    )


def encode_texts(
    architecture: str, checkpoint: str | Path, texts: Sequence[str]
) -> tuple[npt.NDArray[np.float32], float]:
    """Embeddings of texts, and the factor that the model's training put before the cosines.

    Args:
        architecture: Name inside open_clip.
        checkpoint: File with the weights of both towers.
        texts: n of them; what is beyond the model's context is cut off.

    Returns:
        (n, D) float32 of length 1; and a number > 0.

    Raises:
        CheckpointError: The file has no text tower, or does not fit.
    """
    open_clip = _import()
    with _quiet(), _explaining(architecture):
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
        tokens = open_clip.get_tokenizer(architecture)(list(texts))
    file = find_file(checkpoint)
    fit(model, _both_towers(file, model.state_dict()), file=file.name, address=f"{SOURCE}/{architecture}")
    model.eval()
    with torch.no_grad():
        found = torch.cat([model.encode_text(part, normalize=True) for part in tokens.split(64)])
        return found.float().numpy(), float(model.logit_scale.exp())


def _both_towers(file: Path, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in the file that has most of the wanted names, without the prefix of distributed training."""
    states = [
        {key.removeprefix(DISTRIBUTED): tensor for key, tensor in part.state.items()} for part in read_parts(file)
    ]
    best = max(states, key=lambda state: len(state.keys() & wanted.keys()), default={})
    if "logit_scale" not in best:
        raise CheckpointError(
            f"{file.name} has no text tower (no 'logit_scale'), so prompts cannot be encoded. Give the file of the "
            "whole text-image model; zeroshot attributes=TABLE needs images only."
        )
    return {key: best[key] for key in best if key in wanted or not key.endswith("attn_mask")}


def _build(
    architecture: str, *, pretrained: bool, num_classes: int | None = None, checkpoint_keys: Collection[str] = ()
) -> nn.Module:
    assert not pretrained
    with _quiet(), _explaining(architecture):
        return ImageEmbedding(_import().create_model(architecture, load_weights=False, pretrained_text=False).visual)


def _preprocessing(architecture: str, size: int) -> Preprocessing:
    """That of the first weights that open_clip lists for the architecture, OpenAI's where it lists none."""
    open_clip = _import()
    tag = next(iter(open_clip.list_pretrained_tags_by_model(architecture)), "")
    stated: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    red, green, blue = stated.get("mean") or open_clip.OPENAI_DATASET_MEAN
    deviations = stated.get("std") or open_clip.OPENAI_DATASET_STD
    return Preprocessing(
        size=size,
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        interpolation=stated.get("interpolation") or "bicubic",
        crop_mode="squash" if stated.get("resize_mode") == "squash" else "center",
        origin=f"open_clip's {architecture}" + (f" with weights {tag!r}" if tag else ""),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warning that weights are random: they are filled in later."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


@contextmanager
def _explaining(architecture: str) -> Iterator[None]:
    """What open_clip raises, as one of our errors."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise BackboneError(
            f"open_clip cannot build {architecture!r} here: {type(error).__name__}: {error}. Models whose text "
            "tower or tokenizer comes from Hugging Face need it in the local cache; ViT-B-32 and the like need nothing."
        ) from error


def _import() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependencyError("Text-image models need open_clip: pip install 'transferkit[clip]'.") from error
    return open_clip
