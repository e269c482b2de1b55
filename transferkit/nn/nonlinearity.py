"""What a nonlinearity does to the scale of a signal, from its values rather than from a table.

A nonlinearity is kept as its outputs on a grid of inputs, so one that is put together from several operators, such as
x * sigmoid(1.702 x), is as good as one that torch has a name for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["Nonlinearity", "assumed", "grid", "is_affine", "name_of"]

REACH, NODES = 16.0, 6401
"""The grid reaches from -16 to 16 in steps of 0.005. Even steps, not Gauss-Hermite nodes: those converge slowly at a
kink (ReLU), and hold for one scale of the input only."""

SCALES = np.geomspace(0.25, 4.0, 81)
"""Gains among which the one that keeps the second moment is looked for; the normal density of the largest ends on the
grid."""

AFFINE = 1e-9
"""Largest share of the variance that a straight line may leave unexplained."""

RECTIFIED = 0.5
"""A rectifier hands on less than this share of the second moment of positive inputs for negative ones."""

SAME = 1e-4
"""Largest difference between outputs of the same function."""


@cache
def grid() -> torch.Tensor:
    """(Q,) float64, the inputs at which nonlinearities are known."""
    with torch.inference_mode(False):
        return torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)


def is_affine(outputs: torch.Tensor) -> bool:
    """Whether outputs on the grid, (Q, ...), are a straight line for every trailing position."""
    wide = outputs.double().reshape(len(outputs), -1)
    if not bool(torch.isfinite(wide).all()):
        return False
    x = (grid() / grid().std(correction=0))[:, None]
    centred = wide - wide.mean(dim=0)
    rest = centred - x * (x * centred).mean(dim=0)
    return bool(((rest**2).mean(dim=0) <= AFFINE * (centred**2).mean(dim=0).clamp_min(1e-30)).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Nonlinearity:
    """A function of single values that follows a layer.

    Args:
        name: As in `torch.nn.functional` where it is known; "linear" for nothing.
        outputs: (Q, ...) its values on `grid()`, with trailing axes where channels have their own; None where it is no
            function of single values (softmax).

    Example:
        >>> [round(assumed(name).gain, 3) for name in ("relu", "selu", "gelu", "tanh", "linear")]
        [1.414, 1.0, 1.468, 1.593, 1.0]
    """

    name: str
    outputs: torch.Tensor | None

    @cached_property
    def gain(self) -> float:
        """Factor g on weights of standard deviation 1 / sqrt(fan-in) that keeps the signal's second moment; > 0.

        With f the nonlinearity and z standard normal, g solves E f(g z)^2 = 1: inputs of second moment 1 come out with
        second moment 1. Of several solutions the nearest to 1. A function whose outputs stay too small for that (tanh,
        sigmoid) keeps the second moment of its input instead: g = 1 / sqrt(E f(z)^2), to which a deep network tends.
        1 where the function is not known.

        References:
            sqrt(2) for ReLU and sqrt(2 / (1 + slope^2)) for leaky ones, as in He et al., ICCV 2015; 1 for SELU, as in
            Klambauer et al., NeurIPS 2017. Deviations from `torch.nn.init.calculate_gain`: its 3/4 for SELU gives up
            the fixed point for the sake of gradients (its documentation); its 5/3 for tanh is rounded from 1.593; it
            has no others. 1 / sqrt(E f(z)^2) for GELU and its like (Brock et al., ICLR 2021, by variance) keeps the
            scale where layers already have inputs of variance 1, as behind normalisation; here the first layers push
            the signal away from that point, which is not stable: x 22 after 30 layers of GELU, against x 1.0.
        """
        if self._fixed is not None:
            return self._fixed
        moment = self._moment(1.0)
        return 1 / math.sqrt(moment) if math.isfinite(moment) and moment > 0 else 1.0

    @property
    def keeps(self) -> bool:
        """Whether some gain hands on a second moment of 1; not for bounded functions such as tanh."""
        return self._fixed is not None

    @cached_property
    def rectifies(self) -> bool:
        """Whether it suppresses negative inputs, so that units can die."""
        if self.outputs is None or not self.keeps:
            return False
        density = torch.exp(-0.5 * grid() ** 2)[:, None]
        weighted = density * self.outputs.double().reshape(NODES, -1) ** 2
        return bool(weighted[: NODES // 2].sum() < RECTIFIED * weighted[NODES // 2 :].sum())

    @cached_property
    def _fixed(self) -> float | None:
        """The gain nearest to 1 at which the second moment is kept."""
        excess = np.array([self._moment(float(scale)) - 1 for scale in SCALES])
        crossed = np.flatnonzero(np.isfinite(excess[1:] * excess[:-1]) & (excess[1:] * excess[:-1] <= 0))
        if not len(crossed):
            return None
        k = int(crossed[np.argmin(np.abs(np.log(SCALES[crossed])))])
        from scipy.optimize import brentq  # here: importing transferkit stays light

        return float(brentq(lambda scale: self._moment(scale) - 1, SCALES[k], SCALES[k + 1]))

    def _moment(self, scale: float) -> float:
        """E f(scale z)^2, NaN where the function is not known."""
        if self.outputs is None:
            return math.nan
        density = torch.exp(-0.5 * (grid() / scale) ** 2)
        squares = (self.outputs.double().reshape(NODES, -1) ** 2).mean(dim=1)
        return float((density * squares).sum() / density.sum())


def _functions() -> dict[str, torch.Tensor]:
    x = grid()
    return {
        "relu": F.relu(x),
        "relu6": F.relu6(x),
        "selu": F.selu(x),
        "elu": F.elu(x),
        "gelu": F.gelu(x),
        "gelu_tanh": F.gelu(x, approximate="tanh"),
        "quick_gelu": x * torch.sigmoid(1.702 * x),
        "silu": F.silu(x),
        "mish": F.mish(x),
        "hardswish": F.hardswish(x),
        "softplus": F.softplus(x),
        "squared_relu": F.relu(x) ** 2,
        "hardtanh": F.hardtanh(x),
        "softsign": F.softsign(x),
        "tanhshrink": F.tanhshrink(x),
        "tanh": torch.tanh(x),
        "sigmoid": torch.sigmoid(x),
    }


@cache
def _known() -> dict[str, torch.Tensor]:
    # Whoever follows the operators of a forward pass must not see these.
    with torch.inference_mode(False), torch.no_grad():
        return _functions()


def name_of(outputs: torch.Tensor, otherwise: str) -> str:
    """The name of the function with these outputs on the grid; `otherwise` if none is known."""
    if outputs.dim() > 1 and not bool((outputs == outputs[:, :1]).all()):
        return otherwise
    wide = outputs.double().reshape(NODES, -1)[:, 0]
    return next((name for name, known in _known().items() if bool(((wide - known).abs() < SAME).all())), otherwise)


def assumed(name: str) -> Nonlinearity:
    """The nonlinearity of a known name, "linear" among them."""
    return Nonlinearity(name=name, outputs=grid() if name == "linear" else _known()[name])
