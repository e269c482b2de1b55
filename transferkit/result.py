"""What a person keeps: the model, what is known about it, and what can be done with it."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit import zoo
from transferkit.data import DeepImages, check_prepared, predictable_images, prepared_tensors, to_pixels
from transferkit.errors import OptionError, RunFolderError, TransferkitError, unknown_name
from transferkit.export import export_onnx
from transferkit.features import choose_device
from transferkit.nn import Backbone, Blend, Classifier, TransferModel, logits_of
from transferkit.nn.norm import swap_norm
from transferkit.report import render
from transferkit.serialise import from_json, to_json
from transferkit.types import Decision, Evidence, Metrics, RunRecord, TrainingRecord

__all__ = ["Predictions", "Result", "load"]

SCHEMA = 1
"""Version of `result.json`; raised when a reader of the old form would misread the new one."""

PICTURES = frozenset({"held_out", "samples", "mistakes"})
"""Fields of a record that live in the report only."""


@dataclass(frozen=True)
class Predictions:
    """What a model says about some images.

    Args:
        items: N names.
        classes: K class names.
        probabilities: (N, K) float32, rows sum to 1.
    """

    items: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each image."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """(N,) probability of that class."""
        confidences: npt.NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidences

    def __len__(self) -> int:
        return len(self.items)

    def to_csv(self) -> str:
        """A header, then item, label, confidence and one column per class."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["item", "label", "confidence", *(f"p({name})" for name in self.classes)])
        for item, label, row in zip(self.items, self.labels, self.probabilities, strict=True):
            writer.writerow([item, label, f"{row.max():.6f}", *(f"{value:.6f}" for value in row)])
        return text.getvalue()

    def to_json(self) -> str:
        """A list with an object per image."""
        rows = [
            {
                "item": item,
                "label": label,
                "confidence": round(float(row.max()), 6),
                "probabilities": {name: round(float(p), 6) for name, p in zip(self.classes, row, strict=True)},
            }
            for item, label, row in zip(self.items, self.labels, self.probabilities, strict=True)
        ]
        return json.dumps(rows, indent=1, ensure_ascii=False)


class Result:
    """A trained model and all that is known about it.

    Args:
        model: In evaluation mode; carries its preprocessing and class names.
        record: The rest.
        html: The report, if it was written already (a loaded run keeps the one made with its pictures).
    """

    def __init__(self, model: Classifier, record: RunRecord, *, html: str | None = None) -> None:
        self.model = model
        self.record = record
        self._html = html

    def __repr__(self) -> str:
        split = "test" if "test" in self.metrics else next(iter(self.metrics), None)
        scored = f", {split} accuracy {self.metrics[split].accuracy:.3f}" if split else ""
        return f"Result({self.evidence.backbone.name}, {self.decision.strategy} on {self.decision.stage}{scored})"

    @property
    def evidence(self) -> Evidence:
        """What was measured."""
        return self.record.evidence

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return self.record.decision

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """Split name -> how the model does there; "test" was computed once, at the end."""
        return self.record.metrics

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in label order."""
        return self.model.classes

    def predict(self, images: Any, *, preprocessed: bool = False, device: str = "auto") -> Predictions:
        """Classify images.

        Args:
            images: One or many of: path, folder, PIL image, (H, W, 3) uint8 array, uint8 or [0, 1] float tensor, or a
                stack of these. They go through the checkpoint's own preprocessing; what is deeper than 8 bits is
                scaled by the range of the training images. If the model was fitted with preprocessed=True: (3, H, W)
                float tensors prepared as those were, batches (N, 3, H, W), or a dataset or DataLoader of them.
            preprocessed: The images are such tensors; to be said exactly where the model was fitted on them.
            device: "auto", "cpu", "cuda", ...

        Raises:
            DataError: If something is not an image, or not prepared as the model needs it.

        Warns:
            UserWarning: If deep images do not fit the range that the model was fitted with.
        """
        items: list[str] = []
        deep = DeepImages(self.model.preprocessing.value_range)

        def inputs() -> Iterator[npt.NDArray[Any]]:
            for item, image in self._named_inputs(images, deep, preprocessed=preprocessed):
                items.append(item)
                yield image

        logits = logits_of(self.model, inputs(), device=choose_device(device))
        if deep.note:
            warnings.warn(deep.note, stacklevel=2)
        return Predictions(tuple(items), self.classes, torch.softmax(logits, dim=1).numpy())

    def _named_inputs(
        self, images: Any, deep: DeepImages, *, preprocessed: bool
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Names, and what goes into the model: uint8 pictures, resized and cropped, or prepared float tensors."""
        wants = self.model.preprocessing
        check_prepared(wants, preprocessed=preprocessed)
        if wants.prepared:
            yield from prepared_tensors(images, shape=wants.shape)
            return
        for item, image in predictable_images(images, deep=deep):
            yield item, to_pixels(image, wants)

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline; returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, lambda file: file.write_text(self._rendered(), encoding="utf-8"))
        return path

    def _rendered(self) -> str:
        if self._html is None:
            self._html = render(self.record)
        return self._html

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors`, `report.html` and `result.json` into a folder; returns it.

        Each file appears whole or not at all, `result.json` last.

        Raises:
            RunFolderError: If the folder cannot be written.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        plain = json.dumps(_described(self), indent=1, ensure_ascii=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "model.safetensors", lambda file: save_file(weights, file))
            self.report(folder / "report.html")
            _write(folder / "result.json", lambda file: file.write_text(plain, encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(
                f"The run folder {folder} cannot be written: {error.strerror or error}. Choose another with out=DIR."
            ) from error
        return folder

    def export(self, path: str | Path, *, format: str = "onnx") -> Path:
        """Write the model for other programs; returns the path.

        Raises:
            OptionError: If the format is unknown.
        """
        if format not in EXPORTS:
            raise OptionError(unknown_name("export format", format, EXPORTS))
        return EXPORTS[format](self.model.to("cpu"), path)


EXPORTS: dict[str, Callable[[Classifier, str | Path], Path]] = {"onnx": export_onnx}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _described(result: Result) -> dict[str, Any]:
    model = result.model
    members = model.parts if isinstance(model, Blend) else (model,)
    heads = [{"stages": list(member.stages), "pooling": member.pooling} for member in members]
    described = {"classes": list(model.classes), **(heads[0] if len(heads) == 1 else {"members": heads})}
    return {"schema": SCHEMA, **to_json(result.record, leave_out=PICTURES), "model": described}


def _architecture(evidence: Evidence, module: nn.Module | None) -> nn.Module:
    """The network of a saved run, without its weights."""
    spec = evidence.backbone
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


def load(path: str | Path, *, module: nn.Module | None = None) -> Result:
    """What `adapt` saved: the same model, bit for bit, and what is known about it.

    Args:
        path: A run's folder.
        module: A network like the one that was adapted; needed only if it came from neither timm nor torchvision.

    Raises:
        RunFolderError: If the folder holds no complete run, or one of another schema.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    plain = _read_result(folder)
    evidence = from_json(Evidence, plain["evidence"])
    record = RunRecord(
        evidence=evidence,
        decision=from_json(Decision, plain["decision"]),
        metrics={split: from_json(Metrics, metrics) for split, metrics in plain["metrics"].items()},
        seconds=plain["seconds"],
        environment=plain["environment"],
        command=plain["command"],
        training=_read_training(plain),
    )
    try:
        weights = load_file(folder / "model.safetensors")
        model = _empty_model(evidence, plain["model"], module)
        model.load_state_dict(weights)
        report = folder / "report.html"
        html = report.read_text(encoding="utf-8") if report.is_file() else None
    except TransferkitError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise RunFolderError(f"The model in {folder} cannot be read: {reason}. Run transferkit adapt again.") from error
    return Result(model.eval(), record, html=html)


def _read_training(plain: Mapping[str, Any]) -> TrainingRecord | None:
    """None for a closed form, and for a run from before there was anything else."""
    found = plain.get("training")
    return None if found is None else from_json(TrainingRecord, found)


def _empty_model(evidence: Evidence, described: Mapping[str, Any], module: nn.Module | None) -> Classifier:
    """One network, or the members of a blend, without their weights."""
    backbone = Backbone(_architecture(evidence, module), evidence.backbone)
    backbone.spec = evidence.backbone
    members = [
        TransferModel(
            copy.deepcopy(backbone), stages=head["stages"], pooling=head["pooling"], classes=described["classes"]
        )
        for head in described.get("members", [described])
    ]
    return members[0] if len(members) == 1 else Blend(members)


def _read_result(folder: Path) -> dict[str, Any]:
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
