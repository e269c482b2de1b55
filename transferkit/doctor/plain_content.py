"""Batches and states as what `torch.load(weights_only=True)` reads: tensors, numbers, strings and containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from transferkit.finetune.cut_batch import CutBatch

__all__ = ["from_plain", "to_plain"]

KIND = "transferkit kind"
"""Key of a dictionary that stands for a `CutBatch`."""


def to_plain(value: Any) -> tuple[Any, list[str]]:
    """A value on the CPU in plain containers, and the names of the types that were left out.

    Example:
        >>> to_plain({"labels": np.array([1, 2]), "names": ("a", None), "reader": open})
        ({'labels': tensor([1, 2]), 'names': ('a', None), 'reader': None}, ['builtin_function_or_method'])
    """
    left_out = list[str]()
    return _plain(value, left_out), sorted(set(left_out))


def _plain(value: Any, left_out: list[str]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    if isinstance(value, CutBatch):
        return {KIND: "CutBatch", "fields": [_plain(one, left_out) for one in value]}
    if isinstance(value, Mapping):
        return {name: _plain(one, left_out) for name, one in value.items() if isinstance(name, (str, int))}
    if isinstance(value, (tuple, list)):
        parts = [_plain(one, left_out) for one in value]
        return parts if isinstance(value, list) else tuple(parts)
    left_out.append(type(value).__name__)
    return None


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`; other named tuples stay plain ones."""
    if isinstance(value, dict):
        if KIND in value:
            return CutBatch(*(from_plain(one) for one in value["fields"]))
        return {name: from_plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(from_plain(one) for one in value)
    return value
