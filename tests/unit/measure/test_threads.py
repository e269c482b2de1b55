from __future__ import annotations

import pytest
from threadpoolctl import threadpool_info

from transferkit.measure import fitting_threads
from transferkit.measure import threads as module
from transferkit.measure.threads import SMALL


def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_few_images_get_one_thread():
    before = threads()
    with fitting_threads(SMALL):
        assert set(threads()) == {1}
    assert threads() == before


@pytest.mark.parametrize(("all_threads", "crowded"), [(0.02, False), (0.5, True)])
def test_many_images_get_all_threads_unless_these_get_in_each_others_way(monkeypatch, all_threads, crowded):
    monkeypatch.setattr(module, "_seconds", lambda limit: 0.01 if limit == 1 else all_threads)
    before = threads()
    with fitting_threads(SMALL + 1):
        assert threads() == ([1] * len(before) if crowded else before)
    assert threads() == before


def test_the_trial_really_runs_and_leaves_the_threads_alone():
    before = threads()
    assert module._seconds(1) > 0
    assert threads() == before


def test_threads_come_back_after_an_exception():
    before = threads()
    with pytest.raises(ValueError, match="on purpose"), fitting_threads(1):
        raise ValueError("on purpose")
    assert threads() == before
