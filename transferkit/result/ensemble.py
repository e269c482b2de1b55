"""Several finished runs that answer together: the weighted mean of their logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.core.errors import OptionError, RunFolderError
from transferkit.core.paths import expand, mark_folder
from transferkit.data import MAX_PIXELS
from transferkit.measure import fit_sets
from transferkit.records import HeldBackScores, Predictions
from transferkit.result.result import Result, load
from transferkit.result.run_folder import ENSEMBLE, HELD_BACK, read_scores, replace_file, write_scores

__all__ = ["Ensemble", "load_ensemble", "load_predictor"]

SCHEMA = 1

SMALLEST = 1e-12
"""Probability that stands for zero where logarithms are taken; float32 softmax gives 0 below 1e-45."""


class Ensemble:
    """Finished runs with weights; each reads images with its own preprocessing, and predicting costs their sum.

    Args:
        members: The runs, of the same classes in the same order.
        weights: One > 0 per member; logits are the weighted sum, a temperature included.
        sentences: How it was chosen, with the held-back figures.
        held_back_scores: Logits of the weighted sum on images that were held back from all members, each with weights
            that were chosen without it.

    Raises:
        OptionError: There is no member, or weights do not fit.
    """

    def __init__(
        self,
        members: Sequence[Result],
        weights: Sequence[float],
        *,
        sentences: Sequence[str] = (),
        held_back_scores: HeldBackScores | None = None,
    ) -> None:
        if not members or len(members) != len(weights) or not all(weight > 0 for weight in weights):
            raise OptionError(
                f"An ensemble needs a weight > 0 for each member, got {len(members)} and {list(weights)}."
            )
        self.members, self.weights = tuple(members), tuple(float(weight) for weight in weights)
        self.sentences, self.held_back_scores = tuple(sentences), held_back_scores

    def __repr__(self) -> str:
        named = ", ".join(one.evidence.backbone.name for one in self.members)
        return f"Ensemble({named})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in label order."""
        return self.members[0].classes

    def predict(
        self,
        images: Any,
        *,
        on_error: str = "raise",
        max_pixels: int = MAX_PIXELS,
        device: str = "auto",
        coverage: float | None = None,
    ) -> Predictions:
        """Classify images; arguments as for `Result.predict`. Each member reads the images anew.

        Raises:
            OptionError: The coverage is not in (0, 1), or there are no held-back scores.
            DataError: Something is not an image; with "skip", no image could be read.
        """
        answers = [one.predict(images, on_error=on_error, max_pixels=max_pixels, device=device) for one in self.members]
        logits = sum(
            weight * np.log(np.maximum(answer.probabilities.astype(np.float64), SMALLEST))
            for weight, answer in zip(self.weights, answers, strict=True)
        )
        found = replace(answers[0], probabilities=softmax(logits, axis=1).astype(np.float32))
        return found if coverage is None else replace(found, sets=self._sets(found.probabilities, coverage))

    def _sets(self, probabilities: npt.NDArray[np.float32], coverage: float) -> npt.NDArray[np.bool_]:
        scores = self.held_back_scores
        if scores is None:
            raise OptionError(
                "This ensemble has no held-back scores to calibrate prediction sets on. Leave coverage out."
            )
        return fit_sets(scores.probabilities, scores.labels, coverage=coverage).sets(probabilities)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write each member into a folder of its own, and `ensemble.json` last; returns the folder.

        Raises:
            RunFolderError: The folder cannot be written, or holds a run or an ensemble and `overwrite` is false.
        """
        folder = expand(folder)
        check_free(folder, overwrite=overwrite)
        try:
            mark_folder(folder)
            for name in ("result.json", ENSEMBLE):  # an interrupted write leaves neither the old run nor half a new one
                (folder / name).unlink(missing_ok=True)
            names = [f"member_{number}" for number in range(len(self.members))]
            for name, one in zip(names, self.members, strict=True):
                one.save(folder / name, overwrite=True)
            write_scores(folder / HELD_BACK, self.held_back_scores)
            plain = {"schema": SCHEMA, "members": names, "weights": self.weights, "sentences": self.sentences}
            text = json.dumps(plain, indent=1, ensure_ascii=False)
            replace_file(folder / ENSEMBLE, lambda file: file.write_text(text, encoding="utf-8"))
        except OSError as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(
                f"{folder} cannot be written: {error.strerror}. Choose another with out=DIR."
            ) from error
        return folder


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Check that an ensemble may be written to a folder.

    Raises:
        RunFolderError: It holds a run or an ensemble, and may not be overwritten.
    """
    if not overwrite and any((folder / name).exists() for name in ("result.json", ENSEMBLE)):
        raise RunFolderError(
            f"{folder} holds a finished run. Choose another folder with out=DIR, or replace what is there with "
            "overwrite=true (overwrite=True in Python)."
        )


def load_ensemble(path: str | Path) -> Ensemble:
    """An ensemble that `Ensemble.save` wrote.

    Raises:
        RunFolderError: The folder holds none, or one that is not complete.
    """
    folder = expand(path)
    try:
        plain = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        names, weights, sentences = (list(plain[key]) for key in ("members", "weights", "sentences"))
        if plain["schema"] != SCHEMA or not all(Path(name).name == name for name in names):
            raise ValueError("of another version of transferkit")
    except FileNotFoundError:
        raise RunFolderError(f"{folder} holds no ensemble. Make one: transferkit combine runs=[A,B] out=DIR.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder / ENSEMBLE} cannot be read: {error}. Run transferkit combine again.") from error
    members = [load(folder / name) for name in names]
    return Ensemble(
        members, weights, sentences=sentences, held_back_scores=read_scores(folder / HELD_BACK, len(members[0].classes))
    )


def load_predictor(path: str | Path) -> Result | Ensemble:
    """The run or the ensemble in a folder.

    Raises:
        RunFolderError: It holds neither.
    """
    return load_ensemble(path) if (expand(path) / ENSEMBLE).is_file() else load(path)
