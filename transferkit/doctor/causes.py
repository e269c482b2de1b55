"""Which symptom comes first: what is wrong with the data explains what the network does with it, not the other way
round."""

from __future__ import annotations

from collections.abc import Iterable

from transferkit.records import Symptom

__all__ = ["CAUSES", "ranked"]

CAUSES = (
    "inputs_not_finite",
    "range",
    "channel_order",
    "mean_std",
    "size",
    "same_inputs",
    "ignores_inputs",
    "weights_not_finite",
    "uninitialised",
    "zero_weights",
    "equal_units",
    "not_loaded",
    "dead_units",
    "signal_explodes",
    "same_features",
    "targets_out_of_range",
    "class_missing",
    "not_shuffled",
    "labels_unrelated",
    "label_map_changed",
    "other_classes",
    "leak_across_splits",
    "repeated_augmentation",
    "number_of_outputs",
    "random_evaluation",
    "mixes_samples",
    "double_softmax",
    "squashed_outputs",
    "missing_log_softmax",
    "shape_mismatch",
    "loss_ignores_outputs",
    "targets_no_distribution",
    "foreign_parameters",
    "not_in_optimizer",
    "frozen_head",
    "no_gradient",
    "wrong_gradient",
    "gradients_not_zeroed",
    "batch_of_one",
    "evaluated_in_training_mode",
    "trained_in_evaluation_mode",
    "frozen_norm_in_training_mode",
    "frozen_moves",
    "dead_network",
    "gradient_not_finite",
    "unused_parameters",
    "rate_zero",
    "rate_vanishes",
    "step_changes_nothing",
    "decay_too_strong",
    "dropout_too_strong",
    "augmented_held_back",
    "lr_too_high",
    "no_learning",
    "lr_too_low",
    "loss_not_finite",
    "start_loss",
)
"""From root to consequence; what is not listed comes last."""


def ranked(symptoms: Iterable[Symptom]) -> tuple[Symptom, ...]:
    """Alarms first, causes before consequences, each cause once.

    Example:
        >>> late = Symptom(cause="start_loss", severity="alarm", evidence="", remedy="")
        >>> early = Symptom(cause="range", severity="alarm", evidence="", remedy="")
        >>> [one.cause for one in ranked([late, early, late])]
        ['range', 'start_loss']
    """
    once: dict[str, Symptom] = {}
    for one in symptoms:
        known = once.get(one.cause)
        if known is None or (known.severity == "note" and one.severity == "alarm"):
            once[one.cause] = one
    place = {cause: number for number, cause in enumerate(CAUSES)}
    return tuple(sorted(once.values(), key=lambda one: (one.severity != "alarm", place.get(one.cause, len(CAUSES)))))
