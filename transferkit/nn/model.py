"""The finished classifier: stages of a backbone, one linear layer, its preprocessing and its class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.backbone import Backbone
from transferkit.records import Preprocessing

__all__ = ["TransferModel", "mean_over_views", "normalise", "predictions_of"]

PICTURE_AXES = 4
"""Axes of a batch of pictures; a batch of views has one more, after the first."""


class TransferModel(nn.Module):
    """Pooled stage outputs, joined, through one linear layer.

    Args:
        backbone: Has the stages; its own classifier is dropped.
        stages: Names of the stages that the head reads, stem -> head.
        pooling: "avg" or "avg+max".
        classes: The K class names, in label order; names of labels or numbers for the other tasks.
        task: "single_label", "multi_label" or "regression": what its outputs are, see `predictions_of`.

    Attributes:
        classifier: `nn.Linear` from the joined width to K.
        preprocessing: How images become its input.
        classes: The class names.
        thresholds: K probabilities from which on labels are given; empty for 0.5.

    Shape:
        (N, 3, H, W) float, normalised -> (N, K) logits. (N, V, 3, H, W), V views of each image -> (N, K), their mean.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        stages: Sequence[str],
        pooling: str,
        classes: Sequence[str],
        task: str = "single_label",
    ) -> None:
        super().__init__()
        self.backbone = backbone.without_head()
        self.stages = tuple(stages)
        self.pooling = pooling
        self.classes = tuple(classes)
        self.task = task
        self.thresholds: tuple[float, ...] = ()
        widths = backbone.widths(pooling)
        self.classifier: nn.Module = nn.Linear(sum(widths[name] for name in self.stages), len(self.classes))

    @property
    def linear(self) -> nn.Linear:
        """The classifier, which is a plain linear layer in a finished model."""
        assert isinstance(self.classifier, nn.Linear)
        return self.classifier

    @property
    def preprocessing(self) -> Preprocessing:
        """The backbone's own: size, crop, mean, std, and the views that predictions are averaged over."""
        return self.backbone.spec.preprocessing

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) uint8 in 0..255 -> float, normalised as the checkpoint expects it."""
        return normalise(pixels, self.preprocessing)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float, normalised -> (N, D), what the classifier reads."""
        pooled = self.backbone.pooled_stages(images, pooling=self.pooling, names=self.stages)
        return torch.cat([pooled[name] for name in self.stages], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float, normalised, or (N, V, 3, H, W) -> (N, K) logits, the mean over the views."""
        return mean_over_views(lambda pictures: self.classifier(self.features(pictures)), images)


def predictions_of(logits: torch.Tensor, task: str) -> torch.Tensor:
    """(N, K) what a model's outputs mean: probabilities that sum to 1, a probability for each label, or numbers.

    Args:
        logits: (N, K).
        task: "single_label", "multi_label" or "regression".

    Example:
        >>> [predictions_of(torch.zeros(1, 2), task).tolist() for task in ("single_label", "regression")]
        [[[0.5, 0.5]], [[0.0, 0.0]]]
    """
    if task == "regression":
        return logits
    return torch.sigmoid(logits) if task == "multi_label" else torch.softmax(logits, dim=1)


def mean_over_views(classify: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """(N, K) logits of images in one view or in several, averaged over the views.

    Args:
        classify: (M, 3, H, W) -> (M, K).
        images: (N, 3, H, W), or (N, V, 3, H, W) with V views of each image.

    Example:
        >>> pictures = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(2, 2, 1, 1, 1)
        >>> mean_over_views(lambda images: images.flatten(1), pictures).tolist()
        [[2.0], [6.0]]
    """
    if images.ndim == PICTURE_AXES:
        return classify(images)
    # A reshape from the front, not unflatten: N must stay free when the model is exported.
    logits = classify(images.flatten(0, 1))
    return logits.reshape(-1, images.shape[1], logits.shape[-1]).mean(dim=1)


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """(x / 255 - mean) / std in one multiply and one add per value; float input is returned as it is.

    Args:
        pixels: (N, 3, H, W) or (N, V, 3, H, W) uint8, or normalised float.
        preprocessing: Has mean and std, in [0, 1].

    Raises:
        OptionError: Pictures for a model that was fitted on prepared tensors.

    Example:
        >>> plain = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), plain).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    if pixels.is_floating_point():
        return pixels
    if preprocessing.prepared:
        raise OptionError(
            "This model was fitted on tensors that were prepared outside, so it cannot normalise pictures: give it "
            "float tensors (N, 3, H, W) that were prepared in the same way."
        )
    std = torch.tensor(preprocessing.std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    return pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
