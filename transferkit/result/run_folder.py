"""A run on disk: result.json, model.safetensors, held_back.safetensors and report.html, each written atomically."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from transferkit import zoo
from transferkit.core.errors import OptionError, RunFolderError, TransferkitError
from transferkit.core.paths import mark_folder
from transferkit.core.provenance import differing_settings
from transferkit.core.serialization import from_json, to_json
from transferkit.nn import Backbone, Blend, Classifier, TransferModel
from transferkit.nn.norm import swap_norm
from transferkit.records import BackboneSpec, Evidence, HeldBackScores, RunRecord

__all__ = [
    "SavedRun",
    "ENSEMBLE",
    "HELD_BACK",
    "check_replaceable",
    "empty_backbone",
    "read_run",
    "read_scores",
    "replace_file",
    "write_run",
    "write_scores",
]

SCHEMA = 1
"""Version of `result.json`; raised when a reader of the old form would misread the new one."""

PICTURES = frozenset({"held_out", "samples", "mistakes"})
"""Fields of a record that live in the report only."""

ENSEMBLE = "ensemble.json"
"""Members and weights, in a folder of several runs that answer together."""

HELD_BACK = "held_back.safetensors"
"""`labels` (M,) int64, `logits` (M, K) float32 and `rows` (M,) int64 of `HeldBackScores`; absent if there are none."""


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run's folder holds.

    Args:
        model: In evaluation mode.
        record: Its record.
        html: The report; None if it is not there.
        held_back_scores: Logits of images that were held back; None if they are not there.
    """

    model: Classifier
    record: RunRecord
    html: str | None
    held_back_scores: HeldBackScores | None


def check_replaceable(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> str:
    """Check that a run with these settings may be written to a folder; returns a note if it replaces another run.

    Raises:
        RunFolderError: The folder holds a finished run of other settings, or an ensemble, and may not be overwritten.
    """
    if (folder / ENSEMBLE).is_file() and not overwrite:
        raise RunFolderError(
            f"{folder} holds an ensemble. Choose another folder with out=DIR, or replace it with overwrite=true "
            "(overwrite=True in Python)."
        )
    if not (folder / "result.json").is_file():
        return ""
    if overwrite:
        return f"{folder} holds a finished run, which is replaced."
    try:
        recorded = _read_result(folder).get("settings", {})
    except RunFolderError:
        recorded = {}
    plain: dict[str, Any] = {"added_classes": []}  # recorded only where there are any
    differing = differing_settings({**plain, **recorded}, {**plain, **settings})
    if not differing and bool(recorded) == bool(settings):
        return f"{folder} holds a finished run of the same settings, which is replaced."
    which = f" ({', '.join(differing)})" if differing else ""
    raise RunFolderError(
        f"{folder} holds a finished run of other settings{which}. Choose another folder with out=DIR, or replace that "
        "run with overwrite=true (overwrite=True in Python)."
    )


def write_run(
    folder: Path, model: Classifier, record: RunRecord, *, html: str, held_back_scores: HeldBackScores | None = None
) -> None:
    """Write the files, `result.json` last.

    Raises:
        RunFolderError: If the folder cannot be written.
    """
    from safetensors.torch import save_file

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    plain = json.dumps(_described(model, record), indent=1, ensure_ascii=False)
    try:
        mark_folder(folder)
        replace_file(folder / "model.safetensors", lambda file: save_file(weights, file))
        write_scores(folder / HELD_BACK, held_back_scores)
        (folder / ENSEMBLE).unlink(missing_ok=True)
        replace_file(folder / "report.html", lambda file: file.write_text(html, encoding="utf-8"))
        replace_file(folder / "result.json", lambda file: file.write_text(plain, "utf-8", "backslashreplace"))
    except OSError as error:
        raise RunFolderError(
            f"The run folder {folder} cannot be written: {error.strerror or error}. Choose another with out=DIR."
        ) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it: no reader sees a partial file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _described(model: Classifier, record: RunRecord) -> dict[str, Any]:
    members = model.parts if isinstance(model, Blend) else (model,)
    heads = [{"stages": list(member.stages), "pooling": member.pooling} for member in members]
    described = {
        "classes": list(model.classes),
        **({} if model.task == "single_label" else {"task": model.task, "thresholds": list(model.thresholds)}),
        **(heads[0] if len(heads) == 1 else {"members": heads}),
    }
    errors = tuple(replace(one, picture=None) for one in record.label_errors)
    plain = to_json(replace(record, label_errors=errors), leave_out=PICTURES)
    return {"schema": SCHEMA, **plain, "model": described}


def read_run(folder: Path, *, module: nn.Module | None = None) -> SavedRun:
    """The run of a folder.

    Raises:
        RunFolderError: If the folder holds no complete run, or one of another schema.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    plain = _read_result(folder)
    record = from_json(RunRecord, plain)
    try:
        weights = load_file(folder / "model.safetensors")
        model = _empty_model(record.evidence, plain["model"], module)
        model.load_state_dict(weights)
        report = folder / "report.html"
        html = report.read_text(encoding="utf-8") if report.is_file() else None
        scores = read_scores(folder / HELD_BACK, len(model.classes))
    except TransferkitError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise RunFolderError(f"The model in {folder} cannot be read: {reason}. Run transferkit adapt again.") from error
    return SavedRun(model=model.eval(), record=record, html=html, held_back_scores=scores)


def write_scores(file: Path, scores: HeldBackScores | None) -> None:
    """Write held-back scores; without any, those of a run that is replaced go."""
    from safetensors.numpy import save_file

    if scores is None:
        file.unlink(missing_ok=True)
        return
    arrays = {name: np.ascontiguousarray(array) for name, array in vars(scores).items()}
    replace_file(file, lambda partial: save_file(arrays, partial))


def read_scores(file: Path, classes: int) -> HeldBackScores | None:
    """Held-back scores of a number of classes; None if the file is not there.

    Raises:
        RunFolderError: It cannot be read, or is of another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        return None
    try:
        found = HeldBackScores(**load_file(file))
    except (OSError, SafetensorError, TypeError, OptionError) as error:
        reason = str(error).split("\n")[0]
        raise RunFolderError(
            f"{file} cannot be read: {reason} Delete it to use the model without prediction sets, or run transferkit "
            "adapt again."
        ) from error
    if found.logits.shape[1] != classes:
        raise RunFolderError(
            f"{file} has scores of {found.logits.shape[1]} classes, the model beside it has {classes}: it belongs to "
            "another run. Delete it, or run transferkit adapt again."
        )
    return found


def _empty_model(evidence: Evidence, described: Mapping[str, Any], module: nn.Module | None) -> Classifier:
    """One network, or the members of a blend, with weights that are not loaded yet."""
    backbone = empty_backbone(evidence.backbone, module=module)
    members = [
        TransferModel(
            copy.deepcopy(backbone),
            stages=head["stages"],
            pooling=head["pooling"],
            classes=described["classes"],
            task=described.get("task", "single_label"),
        )
        for head in described.get("members", [described])
    ]
    model: Classifier = members[0] if len(members) == 1 else Blend(members)
    model.thresholds = tuple(described.get("thresholds", ()))
    return model


def empty_backbone(spec: BackboneSpec, *, module: nn.Module | None = None) -> Backbone:
    """The backbone of a saved run, with weights that are not loaded yet.

    Args:
        spec: Its description.
        module: A network like it; needed only if it came from neither timm nor torchvision.

    Raises:
        RunFolderError: It cannot be built from its name.
    """
    backbone = Backbone(_architecture(spec, module), spec)
    backbone.spec = spec
    return backbone


def _architecture(spec: BackboneSpec, module: nn.Module | None) -> nn.Module:
    if module is not None:
        return module
    source = "timm" if spec.source == "packaged" else spec.source
    if source == "checkpoint":
        source = spec.name.partition("/")[0]
    if source == "module":
        raise RunFolderError(
            f"This run used a module of your own ({spec.architecture}), which cannot be rebuilt from its name. "
            "Pass one like it: transferkit.load(path, module=...)."
        )
    network = zoo.load(f"{source}/{spec.architecture}", pretrained=False)[0]
    return swap_norm(network, spec.norm) if spec.norm else network


def _read_result(folder: Path) -> dict[str, Any]:
    if (folder / ENSEMBLE).is_file():
        raise RunFolderError(
            f"{folder} holds an ensemble of several runs, and one run is needed. Give one of its members, such as "
            f"{folder / 'member_0'}; predict takes the ensemble (tk.load_ensemble in Python)."
        )
    if not (folder / "result.json").is_file():
        raise RunFolderError(
            f"There is no finished run at {folder}: result.json is missing. "
            "Give the folder that transferkit adapt wrote to (out=DIR)."
        )
    try:
        plain = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        schema = plain["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder / 'result.json'} cannot be read: {error}. Run transferkit adapt again."
        ) from error
    if schema != SCHEMA:
        raise RunFolderError(
            f"The run at {folder} has schema {schema}, this version reads {SCHEMA}. Run transferkit adapt again."
        )
    checked: dict[str, Any] = plain
    return checked
