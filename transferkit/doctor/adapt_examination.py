"""The set-up that `adapt` would train, examined before it is: network, batch, optimizer, classes, preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transferkit.core.errors import DataError
from transferkit.doctor.causes import ranked
from transferkit.doctor.examination import examine
from transferkit.doctor.serving import check_serving
from transferkit.options import AdaptOptions
from transferkit.records import DataSummary, Diagnosis, Symptom

if TYPE_CHECKING:
    from transferkit.workflow.training_setup import TrainingSetup, TrainingStart

__all__ = ["Examination", "examine_adapt"]

SHOWN = 5
"""Classes that a symptom names."""

SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was examined, and what was found.

    Args:
        data: The images.
        what: A sentence that says what `adapt` would train.
        diagnosis: Symptoms, alarms first; what was checked without one.
    """

    data: DataSummary
    what: str
    diagnosis: Diagnosis

    @property
    def sentences(self) -> tuple[str, ...]:
        """One paragraph where all is well; else what was examined, then a line per symptom."""
        lines = self.diagnosis.sentences
        return (f"{self.what} {lines[0]}",) if not self.diagnosis.symptoms else (self.what, *lines)


def examine_adapt(model: str | nn.Module, data: Any, options: AdaptOptions | None = None) -> Examination:
    """Examine what `adapt` would train with the same options; nothing is trained or written.

    The images are opened, measured (features stay in the bank, where `adapt` finds them) and decided on; of a network
    that is trained by gradient the last phase of its plan is examined on one augmented batch, at the rates of the
    decision. Costs what `analyze` does, and the passes of `examine`.

    Args:
        model, data: As for `adapt`.
        options: Those of `adapt`; None for the defaults.

    Raises:
        TransferkitError: What `adapt` would raise; or `mode="search"`, which trains to choose.

    Example:
        >>> found = examine_adapt("packaged/tf_efficientnet_lite0", "DIR",
        ...                       AdaptOptions(strategy="lp_ft", image_size=96))  # doctest: +SKIP
        >>> found.diagnosis.healthy  # doctest: +SKIP
        True
    """
    from transferkit.workflow.training_setup import build_setup  # here: the checks of a loop of your own stay light

    options = AdaptOptions() if options is None else options
    setup = build_setup(model, data, options)
    start, trained = setup.start, Diagnosis(symptoms=())
    if start is not None:
        classes = setup.data.num_classes
        batch = (start.images, start.targets)
        trained = examine(
            start.module,
            batch,
            loss=start.loss,
            optimizer=start.optimizer,
            classes=classes,
            preprocessing=start.preprocessing,
            seed=options.seed,
        )
    diagnosis = _joined(trained, {"classes": _missing_classes(setup.data), "serving": _serving(setup)})
    return Examination(data=setup.data, what=_describe(setup), diagnosis=diagnosis)


def _joined(trained: Diagnosis, further: dict[str, Sequence[Symptom] | str]) -> Diagnosis:
    """A diagnosis with further checks: name -> its symptoms, or why it could not be made."""
    symptoms, passed, skipped = list(trained.symptoms), list(trained.passed), dict(trained.skipped)
    for name, found in further.items():
        if isinstance(found, str):
            skipped[name] = found
        else:
            symptoms += found
            passed += [] if found else [name]
    return Diagnosis(symptoms=ranked(symptoms), passed=tuple(passed), skipped=skipped)


def _missing_classes(data: DataSummary) -> list[Symptom]:
    """Classes without an image in a split that there is."""
    return list(_without_images(data))


def _without_images(data: DataSummary) -> Iterator[Symptom]:
    for split, counts in data.counts.items():
        names = tuple(name for name, count in zip(data.classes, counts, strict=True) if not count)
        if not names:
            continue
        shown = ", ".join(repr(name) for name in names[:SHOWN])
        shown += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        learns = split == "train"
        yield Symptom(
            cause="class_missing",
            severity="alarm" if learns else "note",
            evidence=f"{len(names)} of {data.num_classes} classes have no {SPLITS.get(split, split)} image: {shown}.",
            remedy="Add images of these classes, or remove the classes."
            if learns
            else "Accuracy there says nothing about these classes: add images, or draw the split anew.",
            items=names,
        )


def _serving(setup: TrainingSetup) -> tuple[Symptom, ...] | str:
    if setup.trained is None or setup.served is None:
        return "the tensors were prepared outside"
    try:
        return check_serving(torch.from_numpy(setup.trained), torch.from_numpy(setup.served))
    except DataError as error:
        return str(error).rstrip(".")


def _describe(setup: TrainingSetup) -> str:
    decision = setup.decision
    if setup.start is None:
        return (
            f"adapt would fit {decision.strategy} on {decision.stage}: nothing is trained by gradient, so classes and "
            "preprocessing were checked alone."
        )
    return f"adapt would train {decision.strategy} on {decision.stage}: {_describe_start(setup.start)}"


def _describe_start(start: TrainingStart) -> str:
    groups = start.optimizer.param_groups
    rates = sorted({group["lr"] for group in groups})
    learnt = sum(one.numel() for group in groups for one in group["params"])
    between = f"{rates[0]:.2g}" if len(rates) == 1 else f"{rates[0]:.2g} to {rates[-1]:.2g}"
    total = sum(one.numel() for one in start.module.parameters())
    return (
        f"{learnt:,} of {total:,} parameters, {type(start.optimizer).__name__}, learning rates {between}; examined on "
        f"{len(start.images)} augmented images."
    )
