"""Description of a backbone: stages, sizes, preprocessing, origin of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transferkit.core.errors import OptionError, unknown_name
from transferkit.records.preprocessing import Preprocessing

__all__ = ["JOINED", "SELECTED", "TOP", "BackboneSpec", "StageSpec"]


TOP = "top"
"""Name of the last stage of every backbone: the pooled vector that its classifier takes as input."""

JOINED = "joined"
"""Name of the pseudo-stage that concatenates all stages, each scaled to the same total variance."""

SELECTED = "selected"
"""Name of the pseudo-stage "joined" after supervised feature selection: features weighted, useless ones dropped."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of a backbone: its path, width and stride.

    Args:
        name: Dotted path of the module whose output the stage is, or "top".
        channels: Width C of its output.
        stride: Input pixels per output position along a side; None where the output has no spatial grid.
    """

    name: str
    channels: int
    stride: int | None


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Description of a backbone.

    Args:
        name: The name it was loaded by, e.g. "packaged/tf_efficientnet_lite0".
        source: "timm", "torchvision", "packaged", "checkpoint" or "module".
        architecture: Name of the architecture inside its source.
        preprocessing: The checkpoint's.
        pretrained: Whether the weights are pretrained (False: random initialisation).
        num_classes: Outputs of the checkpoint's head; 0 if none.
        class_names: Names of those outputs, if known; else empty.
        fixed_size: True if the network accepts only its native size.
        native_size: Side in pixels that the checkpoint was trained at; `preprocessing.size` is the one in use.
        license: Of the weights, if known.
        stages: Stem -> head; set when the module has been traced.
        weights_id: Hex digest of the weights' content; set with the stages.
        parameters: Number of parameters, head excluded.
        original_lr: Learning rate that the weights were trained at; None if not known.
        original_batch: Batch size at that learning rate.
        original_optimizer: "sgd", "rmsprop", "adamw", "lamb", ...; "" if not known.
        original_by: Source of these three.
        published_accuracy: Top-1 on ImageNet-1k as published with the weights, in [0, 1]; None if not known.
        published_by: Source of that accuracy.
        norm: Kind of normalisation that batch normalisation was swapped for; "" if it was not.
        batch_norm: Whether any layer normalises by batch statistics; set with the stages. None in older records.
        own_preprocessing: The checkpoint's, where the caller passed one with another mean or std; else None.
    """

    name: str
    source: str
    architecture: str
    preprocessing: Preprocessing
    pretrained: bool
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    fixed_size: bool = False
    native_size: int = 0
    license: str | None = None
    stages: tuple[StageSpec, ...] = ()
    weights_id: str = ""
    parameters: int = 0
    original_lr: float | None = None
    original_batch: int = 0
    original_optimizer: str = ""
    original_by: str = ""
    published_accuracy: float | None = None
    published_by: str = ""
    norm: str = ""
    batch_norm: bool | None = None
    own_preprocessing: Preprocessing | None = None

    def find_stages(self, stage: str | int) -> tuple[str, ...]:
        """Stage names that an argument refers to: a name, an index (negative counts from the top), or "joined" for all.

        "selected" also means all: which of their features are used is decided by the classifier.

        Raises:
            OptionError: If there is no such stage; the message suggests the closest names.
        """
        names = [known.name for known in self.stages]
        if stage in (JOINED, SELECTED):
            return tuple(names)
        if isinstance(stage, int):
            if not -len(names) <= stage < len(names):
                raise OptionError(f"Stage index must be in [{-len(names)}, {len(names) - 1}], got {stage}.")
            return (names[stage],)
        if stage not in names:
            raise OptionError(unknown_name("stage", stage, [*names, JOINED, SELECTED]))
        return (stage,)

    def at(self, size: int | None) -> BackboneSpec:
        """The same backbone at another input size; None changes nothing. `native_size` is kept."""
        native = self.native_size or self.preprocessing.size
        return replace(self, preprocessing=self.preprocessing.at(size), native_size=native)
