"""What the zoo knows of a backbone: its stages, sizes and source."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transferkit.core.errors import OptionError, unknown_name
from transferkit.records.preprocessing import Preprocessing

__all__ = ["BackboneSpec", "JOINED", "SELECTED", "StageSpec", "TOP"]


TOP = "top"
"""Name of the last stage of every backbone: the pooled vector its own classifier reads."""

JOINED = "joined"
"""Name of the pseudo-stage that concatenates all stages, each scaled to the same total variance."""

SELECTED = "selected"
"""Name of the pseudo-stage that is "joined" with its features weighted, and the useless ones dropped, by the labels."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of a backbone: its address, width and reduction.

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
    """What the zoo knows about a backbone.

    Args:
        name: The address it was loaded by, e.g. "packaged/tf_efficientnet_lite0".
        source: "timm", "torchvision", "packaged", "checkpoint" or "module".
        architecture: Name of the architecture inside its source.
        preprocessing: The checkpoint's own.
        pretrained: Whether the weights are really pretrained (False: random initialisation).
        num_classes: Outputs of the head it came with; 0 if none.
        class_names: Names of those outputs, if known; else empty.
        fixed_size: True if the network accepts only its native size.
        native_size: Side in pixels that the checkpoint was made for; `preprocessing.size` is the one in use.
        license: Of the weights, if known.
        stages: Stem -> head; filled in when the module has been traced.
        weights_id: Hex digest of the weights' content; filled in with the stages.
        parameters: Count of parameters of the trunk, head excluded.
        original_lr: Learning rate that the weights were trained at; None if not known.
        original_batch: Batch size that goes with it.
        original_optimizer: "sgd", "rmsprop", "adamw", "lamb", ...; "" if not known.
        original_by: Who says so.
        published_accuracy: Top-1 on ImageNet-1k as published with the weights, in [0, 1]; None if not known.
        published_by: Who says so.
        norm: Kind of normalisation that batch normalisation was swapped for; "" if it was not.
        batch_norm: Whether any layer normalises by batch statistics; filled in with the stages. None in records from
            before this was noted.
        own_preprocessing: The checkpoint's own, where the caller gave another with another mean or std; else None.
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
        """The stage names behind an address: a name, an index (negative from the top), or "joined" for all.

        "selected" stands for all as well: which of their features count is the classifier's affair.

        Raises:
            OptionError: If there is no such stage; the closest names are offered.
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
        """The same backbone for another input side; None changes nothing. The native size stays on record."""
        native = self.native_size or self.preprocessing.size
        return replace(self, preprocessing=self.preprocessing.at(size), native_size=native)
