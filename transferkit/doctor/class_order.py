"""Whether two parts of a project number the classes alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.records import Symptom

__all__ = ["check_class_order"]

Names = Iterable[str] | Mapping[str, int] | Mapping[int, str]
"""Class names in label order, or with their numbers: name -> number, as of `ImageFolder.class_to_idx`, or number ->
name, as of `id2label`."""

NAMED = 10
"""So many names are listed in a sentence; `Symptom.items` has all."""


def check_class_order(trained: Names, served: Names) -> tuple[Symptom, ...]:
    """Compare the class names in label order of the model with those that are used to name its outputs.

    Args:
        trained: K names in label order, as the model was trained, or a mapping of names and numbers.
        served: The same of the evaluation data, the service or the export.

    Raises:
        OptionError: These are no names, or numbers of a mapping are not 0, 1, ..., K - 1.

    Example:
        >>> [one.cause for one in check_class_order(["cat", "dog"], ["dog", "cat"])]
        ['label_map_changed']
        >>> check_class_order(["cat", "dog"], {"dog": 1, "cat": 0})
        ()
    """
    return tuple(_compare(_in_order(trained, "trained"), _in_order(served, "served")))


def _in_order(names: Any, which: str) -> list[str]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise OptionError(f"{which} must be the class names in label order, got {names!r}.")
    if not isinstance(names, Mapping):
        found = list(names)
    elif all(_is_number(one) for one in names.values()):
        found = _by_number({int(number): name for name, number in names.items()}, len(names), which)
    else:
        is_numbered = all(_is_number(one) for one in names)
        found = _by_number({int(one): name for one, name in names.items()} if is_numbered else {}, len(names), which)
    if any(one is None for one in found):
        raise OptionError(f"{which} must be the class names in label order, got None among them.")
    return [str(one) for one in found]


def _is_number(value: Any) -> bool:
    return str(value).isdecimal()


def _by_number(names: dict[int, Any], classes: int, which: str) -> list[Any]:
    if sorted(names) != list(range(classes)):
        raise OptionError(
            f"{which} must map class names to numbers 0 to {classes - 1}, or these to names, got the numbers "
            f"{sorted(names)[:NAMED]}."
        )
    return [names[number] for number in range(classes)]


def _compare(trained: list[str], served: list[str]) -> Iterator[Symptom]:
    if trained == served:
        return
    same = {_plain(name): name for name in trained}
    known = set(trained)
    # Names that one program wrote otherwise are no other classes, unless two classes differ by that alone.
    if len(same) == len(known):
        renamed = [name if name in known else same.get(_plain(name), name) for name in served]
        spelt = [name for name, other in zip(served, renamed, strict=True) if name != other]
        if spelt and sorted(renamed) == sorted(trained):
            yield _spelling_symptom(
                spelt, [other for name, other in zip(served, renamed, strict=True) if name != other]
            )
            served = renamed
            if trained == served:
                return
    missing, new = sorted(known - set(served)), sorted(set(served) - known)
    if missing or new or len(trained) != len(served):
        said = [f"missing: {_list(missing)}"] * bool(missing) + [f"unknown: {_list(new)}"] * bool(new)
        said += [f"{len(trained)} names against {len(served)}"] * (len(trained) != len(served))
        yield Symptom(
            cause="other_classes",
            severity="alarm",
            evidence=f"The class names differ from those of training ({'; '.join(said)}).",
            remedy="Use the names that are saved with the model.",
            items=(*missing, *new),
        )
        return
    moved = [name for name, other in zip(trained, served, strict=True) if name != other]
    yield Symptom(
        cause="label_map_changed",
        severity="alarm",
        evidence=f"{len(moved)} of {len(trained)} classes have another number than in training, {moved[0]!r} first.",
        remedy="Keep the order in which the model was trained (that of its saved class names); sorted folders and "
        "dictionaries differ between tools.",
        items=tuple(moved),
    )


def _plain(name: str) -> str:
    """Without case, surrounding space and the way that accents are stored."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _list(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _spelling_symptom(served: list[str], trained: list[str]) -> Symptom:
    return Symptom(
        cause="other_spelling",
        severity="note",
        evidence=f"{len(served)} class names are spelt otherwise than in training (case, spaces or the storage of "
        f"accents): {served[0]!a} for {trained[0]!a} first.",
        remedy="Use the names that are saved with the model: look-ups by name fail, and sorting may differ.",
        items=tuple(served),
    )
