"""How many CPUs and GPUs of a cluster each worker gets, and what Ray is asked for; the cluster itself: test_ray.py."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import MissingDependencyError, OptionError
from transferkit.options import options_from
from transferkit.tuning.points import check_search
from transferkit.tuning.ray_workers import divide, run_on_ray
from transferkit.tuning.search_options import TuneOptions

NODES = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=5)


def places(nodes, cpus, gpus):
    return sum(min(own // cpus, int(there / gpus) if gpus else own) for own, there in nodes)


@given(NODES, st.integers(1, 40))
def test_all_workers_find_a_place_where_there_is_one_for_each(nodes, workers):
    cpus, gpus = divide(nodes, workers)
    smallest = 1 / 8 if any(there for _, there in nodes) else 0.0
    assert places(nodes, cpus, gpus) >= min(workers, places(nodes, 1, smallest))
    assert (gpus > 0) == (smallest > 0)
    if (cpus, gpus) != (1, smallest):
        assert places(nodes, cpus + 1, gpus) < workers


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([(4, 0)], 1, (4, 0)),
        ([(4, 0)], 3, (1, 0)),
        ([(4, 0), (2, 0)], 3, (2, 0)),
        ([(4, 0)], 9, (1, 0)),  # the others wait
        ([(0, 0), (2, 0)], 2, (1, 0)),  # a head that is not worked on
        ([(64, 8)], 8, (8, 1)),
        ([(64, 8)], 16, (4, 0.5)),
        ([(16, 1), (16, 1)], 2, (16, 1)),
    ],
)
def test_a_cluster_is_shared_evenly(nodes, workers, share):
    assert divide(nodes, workers) == share


def test_a_file_is_no_study_for_several_machines(monkeypatch):
    nodes = [
        {"Alive": True, "NodeManagerAddress": place, "Resources": {"CPU": 2.0}} for place in ("10.0.0.1", "10.0.0.2")
    ]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes))
    with pytest.raises(OptionError, match=r"has 2 machines, and sqlite:///study.db is a file on one of them. .*postgr"):
        run_on_ray(print, workers=2, storage="sqlite:///study.db", takes_gpus=False)


def test_what_cannot_start_is_told_before_any_work(monkeypatch):
    with pytest.raises(OptionError, match="Unknown launcher 'rai'. Closest known: ray"):
        check_search(options_from(TuneOptions, {"launcher": "rai"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else True)
    with pytest.raises(MissingDependencyError, match=r"need Ray: pip install 'transferkit\[ray\]'"):
        check_search(options_from(TuneOptions, {"launcher": "ray"}))
