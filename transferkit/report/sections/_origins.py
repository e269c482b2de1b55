"""How to reproduce the run: command, backbone, content ids, environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transferkit.core.provenance import WORKING_FOLDER
from transferkit.records import BackboneSpec, Evidence, Preprocessing, RunRecord
from transferkit.report._words import as_typed, format_count, format_number, format_percent, list_facts

__all__ = ["Origins", "write_origins"]


@dataclass(frozen=True, kw_only=True)
class Origins:
    """What reproducing the run takes."""

    command: str
    folder: str
    views: str
    backbone: tuple[tuple[str, str], ...]
    identities: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]


def write_origins(record: RunRecord) -> Origins:
    """Command, backbone, content ids and environment."""
    evidence = record.evidence
    return Origins(
        command=as_typed(record.command),
        folder=str(record.environment.get(WORKING_FOLDER, "")),
        views=_name_views(record),
        backbone=tuple(_describe_backbone(evidence)),
        identities=(
            ("Data", evidence.data.content_id or "not recorded"),
            ("Weights", evidence.backbone.weights_id or "not recorded"),
        ),
        environment=tuple(
            list_facts({name: value for name, value in record.environment.items() if name != WORKING_FOLDER})
        ),
    )


def _name_views(record: RunRecord) -> str:
    """What to add so that the choice of views does not depend on speed; empty if the command names them."""
    found = record.evidence.views
    if found is None or not record.command or _names("views", record.command):
        return ""
    names = [name for name in found.views if not name.endswith("+mirror")]
    mirror = ["mirror"] if len(names) < len(found.views) else []
    words = {"views": "+".join([*names, *mirror]) if len(found.views) > 1 else "1"}
    if not _names("geometry", record.command) and found.geometry in names:
        words["geometry"] = found.geometry
    if record.command.startswith("transferkit "):
        return " ".join(f"{name}={value}" for name, value in words.items())
    return ", ".join(f'{name}="{value}"' for name, value in words.items())


def _names(argument: str, command: str) -> bool:
    """Whether a command or a call sets an argument; `train.views=` does not set `views`."""
    return re.search(rf"(?<![\w.]){argument}=", command) is not None


def _describe_backbone(evidence: Evidence) -> list[tuple[str, str]]:
    spec, prep = evidence.backbone, evidence.backbone.preprocessing
    facts = [
        ("Name", spec.name),
        ("Architecture", f"{spec.architecture} (from {spec.source})"),
        ("Weights", "pretrained" if spec.pretrained else "random, NOT pretrained"),
    ]
    if spec.parameters:
        facts.append(("Parameters", format_count(spec.parameters)))
    if spec.stages:
        facts.append(("Stages", format_count(len(spec.stages))))
    if spec.num_classes:
        facts.append(("Classes it was trained on", format_count(spec.num_classes)))
    if spec.original_lr is not None:
        facts.append(("Learning rate it was trained at", _describe_rate(spec)))
    facts += [
        ("License", spec.license or "not known"),
        ("Input", f"{evidence.image_size} px" + (", the only size it accepts" if spec.fixed_size else "")),
        *_describe_preprocessing(prep),
        ("Preprocessing from", prep.origin or "not recorded"),
        ("Pooling", evidence.pooling),
    ]
    if evidence.similarity is not None:
        facts.append(("Similarity of the data to its training data", f"{format_number(evidence.similarity)} of 1"))
    return facts


def _describe_preprocessing(prep: Preprocessing) -> list[tuple[str, str]]:
    if prep.prepared:
        height, width = prep.height_width
        return [("Preprocessing", f"none: float tensors (3, {height}, {width}), prepared outside")]
    facts = [
        ("Resize", f"{prep.interpolation}, {prep.crop_mode}, keeps {format_percent(prep.crop_pct)} of the side"),
        ("Mean", ", ".join(format_number(value) for value in prep.mean)),
        ("Standard deviation", ", ".join(format_number(value) for value in prep.std)),
    ]
    if prep.views:
        facts.insert(1, ("Views", ", ".join(view.name for view in prep.views)))
    if prep.value_range is not None:
        black, white = (format_number(value) for value in prep.value_range)
        facts.append(("Images deeper than 8 bits", f"black is {black}, white is {white}"))
    return facts


def _describe_rate(spec: BackboneSpec) -> str:
    assert spec.original_lr is not None
    batch = f" at batch {format_count(spec.original_batch)}" if spec.original_batch else ""
    optimizer = f", {spec.original_optimizer}" if spec.original_optimizer else ""
    source = f" ({spec.original_by})" if spec.original_by else ""
    return f"{format_number(spec.original_lr)}{batch}{optimizer}{source}"
