"""The network of a `TransferModule` as plain values, and back: what a capsule needs to stand alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transferkit.core.serialization import from_json, to_json
from transferkit.doctor.plain_content import to_plain
from transferkit.nn import TransferModel
from transferkit.options import Recipe
from transferkit.records import BackboneSpec
from transferkit.result.run_folder import empty_backbone
from transferkit.strategies import Plan

if TYPE_CHECKING:
    from transferkit.finetune import TransferModule

__all__ = ["describe_module", "rebuild_module"]


def describe_module(module: TransferModule) -> dict[str, Any]:
    """All that `rebuild_module` needs but the weights, in plain containers."""
    weights = module.class_weights
    return {
        "backbone": to_json(module.model.backbone.spec),
        "head": {
            "stages": list(module.model.stages),
            "pooling": module.model.pooling,
            "classes": list(module.model.classes),
        },
        "plan": to_json(module.plan),
        "recipe": to_json(module.recipe),
        "task": module.task_name,
        "scale": None if module.scale is None else to_json(module.scale),
        "weights": None if weights is None else weights.tolist(),
        "seed": module.seed,
        "cut": None if module.tail is None else module.tail.stage,
        "phase": module.freeze_plan.phase,
        "pull": None if module.pull is None else to_plain(module.pull.state_dict())[0],
    }


def rebuild_module(described: Mapping[str, Any]) -> TransferModule:
    """The module with weights that are not loaded yet, in the phase of training that it was in.

    Raises:
        RunFolderError: Its network is a module of the person's own.
    """
    from transferkit.finetune import TransferModule
    from transferkit.finetune.targets import TargetScale
    from transferkit.nn.tail import cut

    backbone = empty_backbone(from_json(BackboneSpec, described["backbone"]))
    module = TransferModule(
        TransferModel(backbone, **described["head"]),
        from_json(Plan, described["plan"]),
        recipe=from_json(Recipe, described["recipe"]),
        task=described["task"],
        weights=described["weights"],
        tail=None if described["cut"] is None else cut(backbone, described["cut"]),
        seed=described["seed"],
    )
    if module.tail is not None:
        module.tail = module.tail.on(module.model.backbone)
    if described["scale"] is not None:
        module.scale = from_json(TargetScale, described["scale"])
    if module.pull is not None:
        module.pull.load_state_dict(described["pull"])
    if described["phase"] is not None:
        module.freeze_plan.start(described["phase"])
    return module
