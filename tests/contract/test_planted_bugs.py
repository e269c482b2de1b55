"""Every planted bug is found and named in a script of a few seconds, and healthy scripts are left alone."""

from __future__ import annotations

import pytest
import torch
from planted.bugs import BUGS
from planted.doctors import consult
from planted.pictures import draw_task
from planted.script import STRATEGIES, write_script

SHAPES = ("disc", "square", "triangle", "stripes", "ring")


def write(strategy):
    torch.set_num_threads(1)
    return write_script(draw_task(SHAPES), "tiny", strategy, pretraining=draw_task(SHAPES, images=320, seed=1))


def strategy_for(bug):
    """One that can have the bug, not always the same."""
    fitting = [one for one in STRATEGIES if bug.fits is None or bug.fits("tiny", one)]
    return fitting[len(bug.name) % len(fitting)]


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_named(name):
    bug = BUGS[name]
    script = write(strategy_for(bug))
    bug.plant(script)
    found = consult(script)
    named = [*found["alarms"], *found["notes"]]
    assert set(named) & bug.causes, (strategy_for(bug), named, found["sentences"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_healthy_script_gets_no_alarm(strategy):
    found = consult(write(strategy))
    assert found["alarms"] == [], found["sentences"]
