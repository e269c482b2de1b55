"""Rank and world size from the environment, before the processes are connected."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from transferkit.core.distributed import broadcast, connect, is_first, local_rank_and_world_size, rank_and_world_size

NAMES = ("RANK", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_a_single_process_is_rank_zero_and_broadcasts_to_itself():
    assert rank_and_world_size() == local_rank_and_world_size() == (0, 1)
    assert is_first()
    assert broadcast({"a": 1}) == {"a": 1}
    connect(torch.device("cpu"))
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # of another machine
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning
        ({"NODE_RANK": "1"}, False),  # a second machine, before Lightning starts any
        ({"LOCAL_RANK": ""}, True),
    ],
)
def test_is_first_is_read_from_the_environment(variables, first, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


def test_only_what_was_started_together_is_a_neighbour(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank_and_world_size() == (0, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert local_rank_and_world_size() == (1, 4)


def test_connected_processes_know_their_place(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    assert rank_and_world_size() == (0, 3)
    assert is_first()
