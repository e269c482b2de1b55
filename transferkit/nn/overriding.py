"""Another `forward` for a single module, which its class does not know, until it is removed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Override", "is_rewritten", "is_traced", "is_transformed"]


class Override:
    """Replaces the `forward` of a module by another function, like a hook that is kept until `remove`.

    Copies of the module, and of what it belongs to, are replaced alike if the function is a method or of a module.

    Args:
        module: Has no other `forward` than its class's.
        forward: Called instead, with the same arguments.

    Example:
        >>> layer = nn.Identity()
        >>> override = Override(layer, torch.neg)
        >>> layer(torch.ones(())).item(), (override.remove(), layer(torch.ones(())).item())[1]
        (-1.0, 1.0)
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        vars(module)["forward"] = forward

    def remove(self) -> None:
        """Give the module its class's `forward` back."""
        vars(self._module).pop("forward", None)


def is_rewritten(module: nn.Module) -> bool:
    """Whether a module has a `forward` of its own.

    Example:
        >>> is_rewritten(nn.Identity())
        False
    """
    return "forward" in vars(module)


def is_traced() -> bool:
    """Whether this call is compiled or traced for an export: what it does is then written down, not only done.

    Example:
        >>> is_traced()
        False
    """
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_transformed() -> bool:
    """Whether this call runs inside a transformation of `torch.func`, which knows no functions of our own.

    Example:
        >>> is_transformed()
        False
    """
    return torch._C._functorch.peek_interpreter_stack() is not None
