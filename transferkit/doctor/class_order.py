"""Whether two parts of a project number the classes alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transferkit.records import Symptom

__all__ = ["check_class_order"]


def check_class_order(trained: Sequence[str], served: Sequence[str]) -> tuple[Symptom, ...]:
    """Compare the class names in label order of the model with those that are used to name its outputs.

    Args:
        trained: K names, as the model was trained.
        served: Names of the evaluation data, the service or the export.

    Example:
        >>> [one.cause for one in check_class_order(["cat", "dog"], ["dog", "cat"])]
        ['label_map_changed']
    """
    return tuple(_compare(list(trained), list(served)))


def _compare(trained: list[str], served: list[str]) -> Iterator[Symptom]:
    if trained == served:
        return
    missing, new = sorted(set(trained) - set(served)), sorted(set(served) - set(trained))
    if missing or new or len(trained) != len(served):
        said = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(new)}"] * bool(new)
        said += [f"{len(trained)} names against {len(served)}"] * (len(trained) != len(served))
        yield Symptom(
            cause="other_classes",
            severity="alarm",
            evidence=f"The class names differ from those of training ({'; '.join(said)}).",
            remedy="Use the names that are saved with the model.",
            items=(*missing, *new),
        )
        return
    moved = [name for name, other in zip(trained, served, strict=False) if name != other]
    yield Symptom(
        cause="label_map_changed",
        severity="alarm",
        evidence=f"{len(moved)} of {len(trained)} classes have another number than in training, {moved[0]!r} first.",
        remedy="Keep the order in which the model was trained (that of its saved class names); sorted folders and "
        "dictionaries differ between tools.",
        items=tuple(moved),
    )
