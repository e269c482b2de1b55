"""What a person keeps: the model, what is known about it, and what can be done with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import (
    DataError,
    OptionError,
    list_problems,
    unknown_name,
)
from transferkit.core.paths import check_file, check_folder, expand, make_folder
from transferkit.data import MAX_PIXELS, DeepImages, check_prepared, predictable_images, prepared_tensors, to_pixels
from transferkit.export import export_onnx
from transferkit.features import choose_device
from transferkit.nn import Classifier, logits_of
from transferkit.records import Decision, Evidence, Metrics, RunRecord
from transferkit.report import render
from transferkit.result.evaluation import Evaluation, evaluate, pick_mistakes, pick_samples
from transferkit.result.predictions import FailedImage, Predictions
from transferkit.result.run_folder import check_replaceable, read_run, replace_file, write_run

__all__ = ["Result", "check_export", "load"]


ON_ERROR = ("raise", "skip")

OPENING = ("root", "columns", "max_pixels", "val", "test", "seed", "strict", "preprocessed")
"""Settings of a run that its images were opened with."""

SHOWN = 5
"""Images named in an error, of those that could not be read."""


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
        replace_file(path, lambda file: file.write_text(self._rendered(), encoding="utf-8"))
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
        folder = expand(folder)
        check_folder(folder)
        check_replaceable(folder, self.record.settings, overwrite=overwrite)
        write_run(folder, self.model, self.record, self._rendered())
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


def _absolute(path: str | Path) -> str:
    there = expand(path)
    return os.path.abspath(there) if there.exists() else str(path)


def load(path: str | Path, *, module: nn.Module | None = None) -> Result:
    """What `adapt` saved: the same model, bit for bit, and what is known about it.

    Args:
        path: A run's folder.
        module: A network like the one that was adapted; needed only if it came from neither timm nor torchvision.

    Raises:
        RunFolderError: If the folder holds no complete run, or one of another schema.
    """
    model, record, html = read_run(expand(path), module=module)
    return Result(model, record, html=html)
