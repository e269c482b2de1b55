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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit import zoo
from transferkit.data import MAX_PIXELS, DeepImages, check_prepared, predictable_images, prepared_tensors, to_pixels
from transferkit.errors import (
    DataError,
    OptionError,
    RunFolderError,
    TransferkitError,
    list_problems,
    unknown_name,
)
from transferkit.evaluation import Evaluation, evaluate, pick_mistakes, pick_samples
from transferkit.export import export_onnx
from transferkit.features import choose_device
from transferkit.nn import Backbone, Blend, Classifier, TransferModel, logits_of
from transferkit.nn.norm import swap_norm
from transferkit.paths import check_file, check_folder, expand, make_folder, mark_folder
from transferkit.report import render
from transferkit.repro import differing_settings
from transferkit.serialise import from_json, to_json
from transferkit.types import Decision, Evidence, Metrics, RunRecord, TrainingRecord

__all__ = ["FailedImage", "Predictions", "Result", "check_export", "check_replaceable", "load"]

SCHEMA = 1
"""Version of `result.json`; raised when a reader of the old form would misread the new one."""

ON_ERROR = ("raise", "skip")

OPENING = ("root", "columns", "max_pixels", "val", "test", "seed", "strict", "preprocessed")
"""Settings of a run that its images were opened with."""

SHOWN = 5
"""Images named in an error, of those that could not be read."""

PICTURES = frozenset({"held_out", "samples", "mistakes"})
"""Fields of a record that live in the report only."""


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be read.

    Args:
        item: Its name.
        reason: Why, in a sentence.
        position: Its place among all images that were given, from 0.
    """

    item: str
    reason: str
    position: int


@dataclass(frozen=True)
class Predictions:
    """What a model says about some images.

    Args:
        items: N names.
        classes: K class names.
        probabilities: (N, K) float32, rows sum to 1.
        failures: Images that could not be read, in order; none of the N. Only `on_error="skip"` leaves any.
    """

    items: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    failures: tuple[FailedImage, ...] = ()

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
        """A header, then item, label, confidence and one column per class; where images failed, a column with why."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        reasons = ["error"] if self.failures else []
        writer.writerow(["item", "label", "confidence", *(f"p({name})" for name in self.classes), *reasons])
        for row in self._rows():
            if isinstance(row, FailedImage):
                writer.writerow([row.item, "", "", *("" for _ in self.classes), row.reason])
                continue
            item, label, shares = row
            figures = [f"{shares.max():.6f}", *(f"{value:.6f}" for value in shares)]
            writer.writerow([item, label, *figures, *("" for _ in reasons)])
        return text.getvalue()

    def to_json(self) -> str:
        """A list with an object per image; of one that failed, its item and error."""
        rows: list[dict[str, Any]] = []
        for row in self._rows():
            if isinstance(row, FailedImage):
                rows.append({"item": row.item, "error": row.reason})
                continue
            item, label, shares = row
            named = {name: round(float(p), 6) for name, p in zip(self.classes, shares, strict=True)}
            confidence = round(float(shares.max()), 6)
            rows.append({"item": item, "label": label, "confidence": confidence, "probabilities": named})
        return json.dumps(rows, indent=1, ensure_ascii=False)

    def _rows(self) -> Iterator[FailedImage | tuple[str, str, npt.NDArray[np.float32]]]:
        """Answers and failures in the order in which the images were given."""
        answers = zip(self.items, self.labels, self.probabilities, strict=True)
        failed = {failure.position: failure for failure in self.failures}
        for position in range(len(self) + len(failed)):
            yield failed[position] if position in failed else next(answers)


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

    def predict(
        self,
        images: Any,
        *,
        on_error: str = "raise",
        preprocessed: bool = False,
        max_pixels: int = MAX_PIXELS,
        device: str = "auto",
    ) -> Predictions:
        """Classify images.

        Args:
            images: One or many of: path, folder, pattern ("photos/*.jpg", "photos/**/*.png"), PIL image, (H, W, 3)
                uint8 array, uint8 or [0, 1] float tensor, a stack of these, a map-style dataset of images or (image,
                label) pairs. They go through the checkpoint's own preprocessing; what is deeper than 8 bits is scaled
                by the range of the training images. If the model was fitted with preprocessed=True: (3, H, W) float
                tensors prepared as those were, batches (N, 3, H, W), or a dataset or DataLoader of them.
            on_error: "raise" stops at the first image that cannot be read; "skip" goes on, and lists it among the
                `failures`.
            preprocessed: The images are such tensors; to be said exactly where the model was fitted on them.
            max_pixels: Width times height above which a file is not decoded.
            device: "auto", "cpu", "cuda", ...

        Raises:
            DataError: Something is not an image, or not prepared as the model needs it, or with "skip" no image could
                be read.

        Warns:
            UserWarning: If deep images do not fit the range that the model was fitted with.
        """
        if on_error not in ON_ERROR:
            raise OptionError(unknown_name("on_error", on_error, ON_ERROR))
        items: list[str] = []
        failures: list[FailedImage] = []
        deep = DeepImages(self.model.preprocessing.value_range)

        def inputs() -> Iterator[npt.NDArray[Any]]:
            named = self._named_inputs(
                images, deep, preprocessed=preprocessed, on_error=on_error, max_pixels=max_pixels
            )
            for position, (item, image) in enumerate(named):
                if isinstance(image, DataError):
                    failures.append(FailedImage(item, str(image), position))
                    continue
                items.append(item)
                yield image

        logits = logits_of(self.model, inputs(), device=choose_device(device))
        if not items:
            raise DataError(list_problems("No image could be read:", [failure.reason for failure in failures[:SHOWN]]))
        if deep.note:
            warnings.warn(deep.note, stacklevel=2)
        return Predictions(tuple(items), self.classes, torch.softmax(logits, dim=1).numpy(), tuple(failures))

    def _named_inputs(
        self, images: Any, deep: DeepImages, *, preprocessed: bool, on_error: str, max_pixels: int
    ) -> Iterator[tuple[str, npt.NDArray[Any] | DataError]]:
        """Names, and what goes into the model: uint8 pictures, resized and cropped, or prepared float tensors."""
        wants = self.model.preprocessing
        check_prepared(wants, preprocessed=preprocessed)
        if wants.prepared:
            yield from prepared_tensors(images, shape=wants.shape)
            return
        for item, image in predictable_images(images, max_pixels=max_pixels, deep=deep, on_error=on_error):
            yield item, image if isinstance(image, DataError) else to_pixels(image, wants)

    def evaluate(
        self,
        data: Any = None,
        *,
        split: str = "test",
        root: str | Path | None = None,
        device: str = "auto",
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> Metrics:
        """Score the model on images that it was not trained on, and note it in `metrics` and the report.

        A split is scored once: what is in `metrics` already is returned as it is, and stays when other data is given.

        Args:
            data: None opens the run's own images as they were opened for it. Else anything that `adapt` takes: of data
                with splits that split is scored, of data without any all images.
            split: "test" or "val".
            root: Folder that a manifest's paths start from.
            device: "auto", "cpu", "cuda", ...
            cache: Folder of the feature bank, where the audit of files is remembered; None takes the usual one.
            progress: Show bars on a terminal.

        Raises:
            DataError: The images cannot be used, some were trained on, or a class is none of the model's.

        Example:
            >>> result = tk.adapt(model, "DIR", evaluate=False)  # doctest: +SKIP
            >>> result.evaluate().accuracy  # doctest: +SKIP
            0.978
        """
        settings = dict(self.record.settings)
        if data is None and split in self.metrics:
            return self.metrics[split]
        named = settings.get("data") if data is None else data
        if not isinstance(named, (str, Path)) and data is None:
            raise DataError(
                "The run does not name its images by a path. Pass them: evaluate(DATA), or transferkit evaluate "
                "run=DIR data.root=DIR."
            )
        own: dict[str, Any] = {name: settings[name] for name in OPENING if name in settings}
        is_other = isinstance(named, (str, Path)) and _absolute(named) != settings.get("data")
        opening: dict[str, Any] = {name: own[name] for name in ("seed", "strict", "max_pixels") if name in own}
        if not isinstance(named, (str, Path)) and "preprocessed" in own:
            opening["preprocessed"] = own["preprocessed"]
        if root is not None:
            opening["root"] = own["root"] = root
        found = evaluate(
            self.model,
            named,
            split=split,
            trained_on=self.record.trained_on,
            device=choose_device(device),
            opening={**opening, "cache": cache, "progress": progress},
            own_opening={} if is_other or not own else {**own, "cache": cache, "progress": progress},
        )
        if split not in self.metrics:
            self._note(found, split)
        return found.metrics

    def _note(self, found: Evaluation, split: str) -> None:
        """Let the record and the report say what came of a test."""
        record = self.record
        samples = pick_samples(found.data, int(record.settings.get("seed", 0))) if found.is_own else record.samples
        self.record = replace(
            record,
            metrics={**record.metrics, split: found.metrics},
            held_out=found.answers,
            samples=record.samples or samples,
            mistakes=pick_mistakes(found.data, found.answers, self.classes),
        )
        self._html = None

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline; returns its path."""
        path = expand(path)
        make_folder(path.parent)
        _write(path, lambda file: file.write_text(self._rendered(), encoding="utf-8"))
        return path

    def _rendered(self) -> str:
        if self._html is None:
            self._html = render(self.record)
        return self._html

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `model.safetensors`, `report.html` and `result.json` into a folder; returns it.

        Each file appears whole or not at all, `result.json` last.

        Args:
            folder: Where to.
            overwrite: Whether a finished run of other settings that lies there may be replaced.

        Raises:
            RunFolderError: If the folder cannot be written, or holds another run.
        """
        from safetensors.torch import save_file

        folder = expand(folder)
        check_folder(folder)
        check_replaceable(folder, self.record.settings, overwrite=overwrite)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        plain = json.dumps(_described(self), indent=1, ensure_ascii=False)
        try:
            mark_folder(folder)
            _write(folder / "model.safetensors", lambda file: save_file(weights, file))
            self.report(folder / "report.html")
            _write(folder / "result.json", lambda file: file.write_text(plain, "utf-8", "backslashreplace"))
        except OSError as error:
            raise RunFolderError(
                f"The run folder {folder} cannot be written: {error.strerror or error}. Choose another with out=DIR."
            ) from error
        return folder

    def export(self, path: str | Path, *, format: str = "onnx") -> Path:
        """Write the model for other programs; returns the path.

        Args:
            path: The file, its extension that of the format.
            format: "onnx".

        Raises:
            OptionError: If the format is unknown, or the file has another's extension.
            RunFolderError: If the file cannot be written.
        """
        path = expand(path)
        check_export(path, format)
        return EXPORTS[format](self.model.to("cpu"), path)


EXPORTS: dict[str, Callable[[Classifier, str | Path], Path]] = {"onnx": export_onnx}


def check_export(path: Path, format: str) -> None:
    """What can be known to be wrong before a model is exported.

    Raises:
        OptionError: If the format is unknown, or the file has another's extension.
        RunFolderError: If the file cannot be written.
    """
    if format not in EXPORTS:
        raise OptionError(unknown_name("export format", format, EXPORTS))
    check_file(path, suffixes=(f".{format}",), example="model")


def check_replaceable(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> str:
    """Whether a run with these settings may be written to a folder; the sentence to say if that replaces another.

    Raises:
        RunFolderError: The folder holds a finished run of other settings, and it may not be overwritten.
    """
    if not (folder / "result.json").is_file():
        return ""
    if overwrite:
        return f"{folder} holds a finished run, which is replaced."
    try:
        recorded = _read_result(folder).get("settings", {})
    except RunFolderError:
        recorded = {}
    differing = differing_settings(recorded, settings)
    if not differing and bool(recorded) == bool(settings):
        return f"{folder} holds a finished run of the same settings, which is replaced."
    which = f" ({', '.join(differing)})" if differing else ""
    raise RunFolderError(
        f"{folder} holds a finished run of other settings{which}. Choose another place with out=DIR, or replace that "
        "run with overwrite=true (overwrite=True in Python)."
    )


def _absolute(path: str | Path) -> str:
    there = expand(path)
    return os.path.abspath(there) if there.exists() else str(path)


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

    folder = expand(path)
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
        settings=plain.get("settings") or {},
        held_back_accuracy=plain.get("held_back_accuracy"),
        trained_on=tuple(plain.get("trained_on") or ()),
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
