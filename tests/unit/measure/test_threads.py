from __future__ import annotations

import pytest
from threadpoolctl import threadpool_info

from transferkit.measure import fitting_threads
from transferkit.measure.threads import SMALL


def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_few_images_get_one_thread():
    before = threads()
    with fitting_threads(SMALL):
        assert set(threads()) == {1}
    assert threads() == before


def test_many_images_get_all_threads_whatever_the_load_of_the_machine():
    before = threads()
    with fitting_threads(SMALL + 1):
        assert threads() == before
    assert threads() == before


def test_threads_come_back_after_an_exception():
    before = threads()
    with pytest.raises(ValueError, match="on purpose"), fitting_threads(1):
        raise ValueError("on purpose")
    assert threads() == before
