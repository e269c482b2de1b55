"""Points that a search begins with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.options import Recipe
from transferkit.tuning.default_space import default_space
from transferkit.tuning.points import with_point
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.space import Choices, Range
from transferkit.tuning.stages import plan_stages
from transferkit.tuning.starts import ADVISED, nearest_value, read_starts, starting_points
from transferkit.tuning.study import SLOT, Score, Search, join_study, work

STAGES = [f"stage{number}" for number in range(9)]
SPACE = default_space(lr=1e-3, images=400, stages=STAGES, strategy="few_layers", recipe=Recipe())


def test_the_first_point_is_the_advised_one():
    first = starting_points(SPACE, lr=1e-3, stages=9, batch_size=32)[0]
    assert first["train.lr"] == pytest.approx(1e-3)
    assert (first["train.batch_size"], first["unfreeze"]) == (32, 4)
    for name in ("train.momentum", "train.dropout", "train.weight_decay", "train.layer_decay", "train.schedule"):
        assert first[name] == ADVISED[name]


def test_those_that_ship_are_settings_and_differ():
    points = starting_points(SPACE, lr=1e-3, stages=9)
    assert len(points) == 1 + len(read_starts()) >= 4
    for point in points:
        assert set(point) == set(SPACE)
        assert type(point["unfreeze"]) is int
        with_point(TuneOptions(strategy="few_layers"), point)
    assert len({tuple(point.values()) for point in points}) == len(points)


@given(lr=st.floats(1e-7, 10), stages=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_point_lies_in_the_space(lr, stages, seed):
    space = {
        "train.lr": Range(low=1e-4, high=1e-2, log=True),
        "train.dropout": Range(low=0.1, high=0.3),
        "unfreeze": Choices(values=(1, 3)),
        "train.augment": Choices(values=("none", "light")),
    }
    for point in starting_points(space, lr=lr, stages=stages, seed=seed):
        assert all(one.low <= point[name] <= one.high for name, one in space.items() if isinstance(one, Range))
        assert all(point[name] in one.values for name, one in space.items() if isinstance(one, Choices))


def test_a_space_of_other_settings_has_none():
    assert starting_points({"train.augment": Choices(values=("none", "light"))}, lr=1e-3, stages=9) == []


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [((8, 16, 32), 23, 32), ((0, 1), 0.2, 0), ((1, 3), 3.0, 3), (("a", "b"), "c", "a"), ((None, 0.5), 0.3, 0.5)],
)
def test_the_nearest_choice(values, wanted, found):
    nearest = nearest_value(Choices(values=values), wanted)
    assert nearest == found
    assert type(nearest) is type(found)


@pytest.mark.parametrize("sampler", ["random", "tpe", "coarse_to_fine", "grid"])
def test_a_search_begins_with_them_unless_it_is_a_grid(sampler):
    space = {"lr": Range(low=1e-4, high=1.0, log=True)}
    starts = [{"lr": 0.5}, {"lr": 0.25}]
    search = Search(space=space, stages=plan_stages(sampler, 10), starts=starts)
    study = join_study(search, storage=None, name="test")
    work(study, search, lambda point, stage, report: Score(value=point["lr"], details={}))
    begun = [trial.params for trial in sorted(study.trials, key=lambda trial: trial.user_attrs[SLOT])[:2]]
    assert (begun == starts) == (sampler != "grid")
