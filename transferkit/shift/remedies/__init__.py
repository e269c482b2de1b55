"""What may be done about a shift, a file each: a remedy makes another model of a run's, or says why it cannot."""

from transferkit.shift.remedies import (  # noqa: F401  registers the remedies, in the order in which they are tried
    class_proportions,
    entropy,
    feature_alignment,
    importance_weights,
    norm_statistics,
    subspace_alignment,
)
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit

__all__ = ["REMEDIES", "ShiftCase", "Unfit"]
