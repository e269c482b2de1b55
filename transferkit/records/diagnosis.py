"""What the training doctor found: symptoms with their evidence and remedy, and what was checked without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Diagnosis", "Symptom"]


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """Something that is wrong with a training set-up, or may be.

    Args:
        cause: Name of the likely cause, e.g. "not_in_optimizer".
        severity: "alarm": training will fail or mislead; "note": worth a look.
        evidence: What was seen, a sentence with the numbers in it.
        remedy: What to do, a sentence.
        items: Names of the parameters, layers, images or classes it concerns.
    """

    cause: str
    severity: Literal["alarm", "note"]
    evidence: str
    remedy: str
    items: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Evidence, then remedy."""
        return f"{self.evidence} {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The outcome of an examination.

    Args:
        symptoms: Alarms first.
        passed: Names of the checks that found nothing.
        skipped: Check -> why it could not be made.
    """

    symptoms: tuple[Symptom, ...]
    passed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def alarms(self) -> tuple[Symptom, ...]:
        """Symptoms of severity "alarm"."""
        return tuple(one for one in self.symptoms if one.severity == "alarm")

    @property
    def healthy(self) -> bool:
        """Whether there is no alarm."""
        return not self.alarms

    @property
    def sentences(self) -> tuple[str, ...]:
        """A line per symptom; where all is well, one reassuring line.

        Example:
            >>> Diagnosis(symptoms=(), passed=("gradients", "evaluation")).sentences
            ('Healthy: 2 checks found nothing (gradients, evaluation).',)
        """
        lines = tuple(f"{one.severity.capitalize()}: {one.sentence}" for one in self.symptoms)
        missing = (
            f" Not checked: {'; '.join(f'{name} ({why})' for name, why in self.skipped.items())}."
            if self.skipped
            else ""
        )
        if lines:
            return (*lines, *((missing.strip(),) if missing else ()))
        checks = "1 check" if len(self.passed) == 1 else f"{len(self.passed)} checks"
        return (f"Healthy: {checks} found nothing ({', '.join(self.passed)}).{missing}",)
