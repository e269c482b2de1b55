"""The headline: how accurate the model is, how certain that is, and what the model is."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import Alternative, RunRecord, TrainingRecord
from transferkit.report._fine_tuning import held_back_interval, name_held_back, name_kept
from transferkit.report._words import (
    capitalise,
    format_count,
    format_measure,
    format_measure_range,
    format_seconds,
    name_split,
    name_stage,
    name_strategy,
    plural,
)
from transferkit.report.sections._stages import chosen_probe
from transferkit.report.sections._timings import total_seconds

__all__ = ["Headline", "write_headline"]

WHAT = {"single_label": "Classes", "multi_label": "Labels", "regression": "Numbers predicted"}

CHOSEN_ON = "Choices were made on these images; expect slightly lower accuracy on new ones."


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The accuracy with its interval, what it was measured on, and facts about the run."""

    figure: str
    subject: str
    interval: str
    low: float
    high: float
    at: float
    caveat: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


def write_headline(record: RunRecord) -> Headline:
    """The headline: test accuracy, else validation accuracy, else that on held-back training images."""
    evidence = record.evidence
    found = _headline_accuracy(record)
    images = sum(evidence.data.size(split) for split in evidence.data.counts)
    facts = (
        ("Backbone", evidence.backbone.name),
        ("Images", format_count(images)),
        (WHAT[evidence.data.task], format_count(evidence.data.num_classes)),
        ("Time", format_seconds(total_seconds(record))),
    )
    sentence = _describe_model(record)
    if found is None:
        return Headline(
            figure="",
            subject=f"No {evidence.data.measure} was measured",
            interval="",
            low=0.0,
            high=0.0,
            at=0.0,
            caveat="There are no test images, and no training image could be held back from the fit.",
            sentence=sentence,
            facts=facts,
        )
    accuracy, low, high, subject, caveat = found
    measure = evidence.data.measure
    return Headline(
        figure=format_measure(accuracy, measure),
        subject=subject,
        interval=format_measure_range(low, high, measure),
        low=_place(low),
        high=_place(high),
        at=_place(accuracy),
        caveat=caveat,
        sentence=sentence,
        facts=facts,
    )


def _place(score: float) -> float:
    """On a line from 0 to 1, in %."""
    return round(100 * min(1.0, max(0.0, score)), 2)


def _describe_model(record: RunRecord) -> str:
    """The returned model; if the probe was kept, that is not what was decided."""
    decision, backbone = record.decision, record.evidence.backbone
    strategy = name_strategy(decision.strategy, record.evidence.data.measure)
    kept = "" if record.training is None else name_kept(record.training.kept)
    probe = name_strategy("linear_probe", record.evidence.data.measure)
    if kept == "probe":
        return f"{capitalise(probe)} of {backbone.name}; {strategy} was tried and not kept."
    text = f"{capitalise(strategy)}, reading {name_stage(decision.stage, backbone)} of {backbone.name}"
    return f"{text}, averaged with {probe}." if kept == "average" else f"{text}."


def _missing_test(record: RunRecord, otherwise: str) -> str:
    """Why there is no test accuracy to head the page with."""
    if not record.untested_images:
        return otherwise
    return f"The {plural(record.untested_images, 'test image')} were not scored yet."


def _expected_accuracy(record: RunRecord, expected: Alternative, images: int) -> tuple[float, float, float, str, str]:
    caveat = (
        f"{_missing_test(record, 'There is no held-out split.')} This was measured on {name_held_back(images)} and "
        "corrected for the choices made on them."
    )
    subject = f"expected {expected.measure} on new images"
    return expected.expected_accuracy, expected.low, expected.high, subject, caveat


def _held_back_accuracy(record: RunRecord, training: TrainingRecord) -> tuple[float, float, float, str, str]:
    low, high = held_back_interval(training.kept, training.held_back)
    subject = f"{training.kept.measure} on the {name_held_back(training.held_back)}"
    caveat = f"{_missing_test(record, 'There is no held-out split.')} {CHOSEN_ON}"
    return training.kept.accuracy, low, high, subject, caveat


def _headline_accuracy(record: RunRecord) -> tuple[float, float, float, str, str] | None:
    """Accuracy, low, high, subject and caveat: of the test images, else validation, else held-back ones."""
    for split, caveat in (
        ("test", "Measured once, at the end; nothing was chosen on these images."),
        (
            "val",
            f"{_missing_test(record, 'There is no test split.')} {CHOSEN_ON}",
        ),
    ):
        scores = record.metrics.get(split)
        if scores is not None:
            if record.is_disappointing(split) and record.decision.expected is not None:
                expected = record.decision.expected
                source = "held-back" if record.decision.held_back else "training"
                caveat += (
                    f" It is below the {format_measure_range(expected.low, expected.high, scores.measure)} expected "
                    f"from the {source} images: "
                    "these images differ from them."
                )
            subject = f"{scores.measure} on {plural(scores.images, f'{name_split(split)} image')}"
            return scores.score, scores.low, scores.high, subject, caveat
    if record.decision.held_back and record.decision.expected is not None:
        return _expected_accuracy(record, record.decision.expected, record.decision.held_back)
    if record.training is not None:
        return _held_back_accuracy(record, record.training)
    probe = chosen_probe(record.evidence.probes, record.decision.stage)
    if probe is None or probe.accuracy is None:
        return None
    subject = f"cross-validated {probe.measure} on {plural(record.evidence.data.train_images, 'training image')}"
    caveat = (
        f"{_missing_test(record, 'There is no held-out split.')} This is the accuracy of a linear classifier on "
        "the images held back from its fit."
    )
    return (*probe.interval, subject, caveat)
