"""A finished run: a trained model, its record, and what can be done with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import DataError, OptionError, unknown_name
from transferkit.core.paths import check_file, check_folder, expand, make_folder
from transferkit.core.provenance import absolute_path
from transferkit.data import MAX_PIXELS
from transferkit.export import export_onnx
from transferkit.features import choose_device
from transferkit.measure import ConformalSets, check_coverage, fit_sets, summarise_sets
from transferkit.nn import Classifier, PlacedClassifier, Replicas, replicas_of
from transferkit.records import (
    AnyMetrics,
    Decision,
    Evidence,
    HeldBackScores,
    Predictions,
    Preprocessing,
    RunRecord,
)
from transferkit.report import render
from transferkit.result.evaluation import (
    Evaluation,
    evaluate,
    pick_mistakes,
    pick_samples,
    target_opening,
    with_pictures,
)
from transferkit.result.prediction import predict_images
from transferkit.result.run_folder import check_replaceable, read_run, replace_file, write_run

__all__ = ["Result", "check_export", "load"]


OPENING = ("root", "columns", "task", "labels", "max_pixels", "val", "test", "seed", "strict", "preprocessed")
"""Settings of a run that are options of opening its images."""


class Result:
    """A trained model and its record. A `Predictor`: any number of threads may predict with it at the same time.

    Args:
        model: In evaluation mode; has its preprocessing and class names. Nothing here changes or moves it: predictions
            are made with copies that share its weights.
        record: Everything else that is known about the run.
        html: The report, if it was written already (a loaded run keeps the one made with its pictures).
        held_back_scores: Logits of images that were held back from the fit; None if they are not known, as for a run
            that an older version wrote.
    """

    def __init__(
        self,
        model: Classifier,
        record: RunRecord,
        *,
        html: str | None = None,
        held_back_scores: HeldBackScores | None = None,
    ) -> None:
        self.model = model
        self.held_back_scores = held_back_scores
        self.record = record
        self._html = html
        self._replicas: Replicas[Classifier] = replicas_of(model)
        self._recording = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # a lock can be neither copied nor pickled
        return {name: value for name, value in vars(self).items() if name != "_recording"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _recording=threading.Lock())

    def __repr__(self) -> str:
        split = "test" if "test" in self.metrics else next(iter(self.metrics), None)
        scored = f", {split} {self.metrics[split].measure} {self.metrics[split].score:.3f}" if split else ""
        return f"Result({self.evidence.backbone.name}, {self.decision.strategy} on {self.decision.stage}{scored})"

    @property
    def evidence(self) -> Evidence:
        """The measurements before the decision."""
        return self.record.evidence

    @property
    def decision(self) -> Decision:
        """The strategy, stage and rates that were chosen, and why."""
        return self.record.decision

    @property
    def metrics(self) -> Mapping[str, AnyMetrics]:
        """Split name -> metrics of the model there; "test" was computed once, at the end."""
        return self.record.metrics

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in label order; names of labels or numbers for the other tasks."""
        return self.model.classes

    @property
    def task(self) -> str:
        """What it predicts: "single_label", "multi_label" or "regression"."""
        return self.model.task

    @property
    def thresholds(self) -> tuple[float, ...]:
        """K probabilities from which on labels are given; empty for 0.5, and for classes and numbers."""
        return self.model.thresholds

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the model's input."""
        return self.model.preprocessing

    def predict(
        self,
        images: Any,
        *,
        on_error: str = "raise",
        preprocessed: bool = False,
        max_pixels: int = MAX_PIXELS,
        device: str = "auto",
        coverage: float | None = None,
    ) -> Predictions:
        """Classify images. Concurrent calls return the same bits as calls one after the other.

        Args:
            images: One or many of: path, folder, pattern ("photos/*.jpg", "photos/**/*.png"), PIL image, (H, W, 3)
                uint8 array, uint8 or [0, 1] float tensor, a stack of these, a map-style dataset of images or (image,
                label) pairs. They go through the checkpoint's own preprocessing; what is deeper than 8 bits is scaled
                by the range of the training images. If the model was fitted with preprocessed=True: (3, H, W) float
                tensors prepared as those were, batches (N, 3, H, W), or a dataset or DataLoader of them.
            on_error: "raise" raises at the first image that cannot be read; "skip" lists it among the `failures`.
            preprocessed: The images are such tensors; required if the model was fitted on them, and an error if not.
            max_pixels: Width times height above which a file is refused, not decoded.
            device: "auto", "cpu", "cuda", ...
            coverage: Also give the classes among which the true one is with this probability, in (0, 1), averaged over
                images like the training images (`Predictions.sets`); None leaves them out.

        Raises:
            OptionError: The coverage is not in (0, 1), or the run has no held-back scores.
            DataError: Something is not an image, or not prepared as the model needs it; with "skip", no image could be
                read.

        Warns:
            UserWarning: If deep images do not fit the range that the model was fitted with.
        """
        rule = None if coverage is None else self.set_rule(coverage)
        found = predict_images(
            self._placed(device), images, on_error=on_error, preprocessed=preprocessed, max_pixels=max_pixels
        )
        return found if rule is None else replace(found, sets=rule.sets(found.probabilities))

    def set_rule(self, coverage: float) -> ConformalSets:
        """The rule that makes prediction sets of probabilities, calibrated on the run's held-back scores.

        Args:
            coverage: Share of images whose set is to contain the true class, in (0, 1).

        Raises:
            OptionError: The coverage is not in (0, 1), or the run has no held-back scores.
        """
        check_coverage(coverage)
        if self.task != "single_label":
            raise OptionError(f"coverage= is for one class per image, and this run has task={self.task}. Leave it out.")
        scores = self.held_back_scores
        if scores is None:
            raise OptionError(
                "This run has no held-back scores to calibrate prediction sets on: an older version wrote it, or no "
                "image could be held back without its class. Leave coverage out, or run adapt again with 2 or more "
                "images of each class."
            )
        return fit_sets(scores.probabilities, scores.labels, coverage=coverage)

    def probabilities(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(N, K) float32 of pixels that are prepared already, on the device that "auto" picks.

        Args:
            pixels: (N, 3, S, S) uint8, resized and cropped as `preprocessing` says, or (N, V, 3, S, S) of its V views;
                or (N, 3, H, W) float32, normalised.

        Raises:
            DataError: The pixels have another shape or type.
        """
        return self._placed("auto").probabilities(pixels)

    def _placed(self, device: str) -> PlacedClassifier:
        return PlacedClassifier(self._current_replicas(), choose_device(device))

    def _current_replicas(self) -> Replicas[Classifier]:
        replicas = self._replicas
        if replicas.model is not self.model:  # somebody has put another in its place
            replicas = self._replicas = replicas_of(self.model)
        return replicas

    def evaluate(
        self,
        data: Any = None,
        *,
        split: str = "test",
        root: str | Path | None = None,
        device: str = "auto",
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> AnyMetrics:
        """Evaluate the model on images that it was not trained on, and add the result to `metrics` and the report.

        A split is recorded once: what is in `metrics` already is returned, and stays when other data is given.

        Args:
            data: None opens the run's own images as they were opened for it. Else anything that `adapt` takes: that
                split of it, or all images if there are no splits.
            split: "test" or "val".
            root: Folder that a manifest's paths start from.
            device: "auto", "cpu", "cuda", ...
            cache: Folder of the feature bank, where the audit of files is remembered; None is the default one.
            progress: Show bars on a terminal.

        Raises:
            DataError: The images cannot be used, the model was trained on some, or some are of a class that it does not
                have.

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
        is_other = isinstance(named, (str, Path)) and absolute_path(named) != settings.get("data")
        opening: dict[str, Any] = {name: own[name] for name in ("seed", "strict", "max_pixels") if name in own}
        if not isinstance(named, (str, Path)) and "preprocessed" in own:
            opening["preprocessed"] = own["preprocessed"]
        opening |= target_opening(self.task, settings, named)
        if root is not None:
            opening["root"] = own["root"] = root
        found = evaluate(
            self._placed(device),
            named,
            split=split,
            trained_on=self.record.trained_on,
            opening={**opening, "cache": cache, "progress": progress},
            own_opening={} if is_other or not own else {**own, "cache": cache, "progress": progress},
        )
        self._add(found, split)
        return found.metrics

    def _add(self, found: Evaluation, split: str) -> None:
        """Add an evaluation to the record, and so to the report, unless the split is there already."""
        mistakes = pick_mistakes(found.data, found.answers, self.classes)
        samples = pick_samples(found.data, int(self.record.settings.get("seed", 0))) if found.is_own else {}
        label_errors = with_pictures(found.data, self.record.label_errors) if found.is_own else ()
        with self._recording:
            if split in self.metrics:
                return
            self.record = replace(
                self.record,
                metrics={**self.record.metrics, split: found.metrics},
                held_out=found.answers,
                samples=self.record.samples or samples,
                mistakes=mistakes,
                label_errors=label_errors,
                prediction_sets=summarise_sets(self.held_back_scores, found.answers),
            )
            self._html = None

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline; returns its path."""
        path = expand(path)
        make_folder(path.parent)
        _, html = self._reported()
        replace_file(path, lambda file: file.write_text(html, encoding="utf-8"))
        return path

    def _reported(self) -> tuple[RunRecord, str]:
        """The record, and the report on just that."""
        with self._recording:
            if self._html is None:
                self._html = render(self.record)
            return self.record, self._html

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write model, held-back scores, `report.html` and `result.json` into a folder; returns it.

        Each file appears whole or not at all, `result.json` last.

        Args:
            folder: Created if it does not exist.
            overwrite: Whether a finished run of other settings in that folder may be replaced.

        Raises:
            RunFolderError: If the folder cannot be written, or holds another run.
        """
        folder = expand(folder)
        check_folder(folder)
        check_replaceable(folder, self.record.settings, overwrite=overwrite)
        record, html = self._reported()
        write_run(folder, self.model, record, html=html, held_back_scores=self.held_back_scores)
        return folder

    def export(self, path: str | Path, *, format: str = "onnx") -> Path:
        """Write the model in a format that other programs run; returns the path.

        Takes seconds, during which predictions of other threads wait: torch cannot trace and predict at once.

        Args:
            path: The file, its extension that of the format.
            format: "onnx".

        Raises:
            OptionError: If the format is unknown, or the file has another's extension.
            RunFolderError: If the file cannot be written.
        """
        path = expand(path)
        check_export(path, format)
        with self._current_replicas().on(torch.device("cpu")) as model:
            return EXPORTS[format](model, path)


EXPORTS: dict[str, Callable[[Classifier, str | Path], Path]] = {"onnx": export_onnx}


def check_export(path: Path, format: str) -> None:
    """Check all that can be checked before a model is exported.

    Raises:
        OptionError: If the format is unknown, or the file has another's extension.
        RunFolderError: If the file cannot be written.
    """
    if format not in EXPORTS:
        raise OptionError(unknown_name("export format", format, EXPORTS))
    check_file(path, suffixes=(f".{format}",), example="model")


def load(path: str | Path, *, module: nn.Module | None = None) -> Result:
    """A run that `adapt` or `Result.save` wrote: the same model, bit for bit, and its record.

    Args:
        path: A run's folder.
        module: A network like the one that was adapted; needed only if it came from neither timm nor torchvision.

    Raises:
        RunFolderError: If the folder holds no complete run, or one of another schema.
    """
    saved = read_run(expand(path), module=module)
    return Result(saved.model, saved.record, html=saved.html, held_back_scores=saved.held_back_scores)
