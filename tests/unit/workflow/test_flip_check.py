"""Whether mirroring is safe, on pictures whose answer is known: slopes are not, stripes across and down are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import PACKAGED
from transferkit.options import PassOptions
from transferkit.workflow.flip_check import check_flip
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import open_session

SIDE = 32


def pictures(slopes: tuple[tuple[int, int], ...], *, each: int = 150):
    """Noisy waves; a slope is how many rows and columns a wave goes down and across."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    made = []
    for label, (down, across) in enumerate(slopes):
        for _ in range(each):
            wave = 127 + 90 * np.sin((down * rows + across * columns) / 3 + rng.uniform(0, 6))
            noise = rng.normal(0, 15, (SIDE, SIDE, 3))
            made.append((np.clip(wave[..., None] + noise, 0, 255).astype(np.uint8), label))
    return made


OPTIONS = PassOptions(image_size=SIDE, test=0.0, device="cpu", progress=False, geometry="crop", views=1)


@pytest.mark.parametrize(("slopes", "safe"), [(((1, 1), (1, -1)), False), (((1, 0), (0, 1)), True)])
def test_slopes_that_turn_into_each_other_must_not_be_mirrored_and_others_may(slopes, safe):
    session = open_session(PACKAGED, {"train": pictures(slopes)}, OPTIONS)
    rows = session.data.indices("train")
    preprocessing = session.backbone.spec.preprocessing

    def mirrored(positions):
        seen = replace(preprocessing, mirrored=True)
        done = read_features(
            session.backbone,
            session.data,
            bank=session.bank,
            pooling="avg+max",
            preprocessing=seen,
            among=rows[positions],
        )
        assert done.computed == len(positions)  # a shelf of their own: nothing was taken for what it is not
        return done.table

    known = session.data.folds.take(rows)
    check = check_flip(session.measured.primary, known, mirrored, classes=2, folds=known.split(2))
    assert check.safe == safe
    assert check.images == 120  # a fifth of the images in each of two folds
    assert check.right > 110
    assert (check.right_mirrored > 100) == safe
    assert "on 120 images" in str(check)
