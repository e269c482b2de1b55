"""Covariate and label shift between a run's training images and new ones: found, explained, perhaps mended.

`measure_shift` opens both sides; the rest is arithmetic on features and held-back scores, a file each.
"""

from transferkit.shift.measuring import measure_shift
from transferkit.shift.shift_options import ShiftOptions

__all__ = ["ShiftOptions", "measure_shift"]
