import numpy as np
import pytest

from transferkit.core.errors import OptionError
from transferkit.core.intervals import wilson_interval


def test_wilson_interval_solves_its_own_equation():
    # By definition the ends are the shares p with |8/20 - p| = z sqrt(p (1 - p) / 20).
    for end in wilson_interval(8, 20):
        assert abs(0.4 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 20))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 9)[0] == 0.0
    assert wilson_interval(9, 9)[1] == pytest.approx(1.0)


def test_wilson_interval_narrows_with_more_trials():
    widths = [np.diff(wilson_interval(n // 2, n))[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_successes_must_not_exceed_trials():
    with pytest.raises(OptionError, match=r"successes must be in \[0, 3\], got 4"):
        wilson_interval(4, 3)
