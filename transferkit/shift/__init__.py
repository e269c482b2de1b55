"""Covariate and label shift between a run's training images and new ones: found, explained, perhaps mended.

`compare_with_run` opens both sides; the rest is arithmetic on features and held-back scores, a file each.
"""

from transferkit.shift.measuring import Shifted, compare_with_run
from transferkit.shift.shift_options import ShiftOptions

__all__ = ["ShiftOptions", "Shifted", "compare_with_run"]
