"""Facts about a model before it is built."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from transferkit.records import Preprocessing
from transferkit.zoo import _training
from transferkit.zoo._published import UNKNOWN, Published

__all__ = ["Builder", "ModelEntry"]


class Builder(Protocol):
    """Builds the network of an entry, on CPU."""

    def __call__(
        self, *, pretrained: bool, num_classes: int | None = None, checkpoint_keys: Collection[str] = ()
    ) -> nn.Module:
        """Build the network.

        Args:
            pretrained: Load the source's weights; never combined with the two below.
            num_classes: Outputs of the classifier; None keeps the architecture's.
            checkpoint_keys: Names of the tensors that will be loaded into it, on which optional parts depend.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """Facts about one model, and how to build it.

    Args:
        address: "SOURCE/NAME", as passed by the user.
        source: "timm", "torchvision" or "packaged".
        architecture: Name inside its source, without tag or weights.
        preprocessing: Of the named weights, or of the architecture's default weights.
        build: Builds the network.
        has_weights: Whether the source has pretrained weights for this name.
        num_classes: Outputs of the classifier of those weights; 0 if none.
        class_names: Their names, if known.
        fixed_size: Whether the source states that the network accepts only `preprocessing.size`.
        license: Of the weights, if known.
        published: Accuracy on ImageNet-1k that was published with the weights, if known.
        training: The learning rate that the weights were trained at, if known.
        classifiers: Dotted paths of the classifier's layers, if the source states them.
        headless: Whether `build(num_classes=0)` omits the classifier.
        tower: First part of the names of its tensors, if files hold other networks beside it; else empty.
    """

    address: str
    source: str
    architecture: str
    preprocessing: Preprocessing
    build: Builder
    has_weights: bool = True
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    fixed_size: bool = False
    license: str | None = None
    published: Published = UNKNOWN
    training: _training.OriginalTraining = _training.UNKNOWN
    classifiers: tuple[str, ...] = ()
    headless: bool = False
    tower: str = ""
