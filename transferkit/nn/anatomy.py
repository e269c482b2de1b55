"""Assignment of a network's modules to its stages, by the order in which modules finish.

A module that finishes after one stage's tap and no later than the next one's belongs to the next stage. Parameters
owned directly by a module that contains several stages (position embeddings, class tokens) are used at the input and
belong to the first of them. Modules that are never called, because their owner reads their parameters, belong to their
owner's stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from transferkit.nn.stages import Tap, evaluating, explaining

__all__ = ["assign_stages", "calls_in_order", "find_stage"]


def calls_in_order(network: nn.Module, paths: Sequence[str], *, size: int) -> list[str]:
    """The paths in the order in which their modules finish on one small batch; repeated if a module runs repeatedly."""
    finished: list[str] = []
    handles = [
        network.get_submodule(path).register_forward_hook(lambda _m, _i, _o, path=path: finished.append(path))
        for path in paths
    ]
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    images = torch.zeros(2, 3, size, size, device=device)
    try:
        with explaining(images), evaluating(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return finished


def assign_stages(network: nn.Module, taps: Sequence[Tap], *, size: int) -> dict[str, str]:
    """Module path -> name of its stage, for every module.

    Args:
        network: Without its classifier.
        taps: Its stages, stem -> head.
        size: Side of the input, in pixels.
    """
    paths = [path for path, _ in network.named_modules()]
    finished = calls_in_order(network, paths, size=size)
    first = {path: finished.index(path) for path in dict.fromkeys(finished)}
    stages: dict[str, str] = {}
    for path in paths:
        # "" contains everything, so the recursion ends; `paths` lists parents before children.
        inside = [tap.stage for tap in taps if tap.path != path and _holds(path, tap.path)]
        if inside:
            stages[path] = inside[0]
        elif path in first:
            stages[path] = next((tap.stage for tap in taps if first[tap.path] >= first[path]), taps[-1].stage)
        else:
            stages[path] = find_stage(stages, path)
    return stages


def find_stage(stages: Mapping[str, str], path: str) -> str:
    """The stage of the nearest known parent module; modules added later belong to their owner's stage."""
    while path not in stages:
        path = path.rpartition(".")[0]
    return stages[path]


def _holds(outer: str, inner: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")
