"""Initialisation of weights, by the nonlinearity that follows each layer, and by data.

A layer keeps the scale of its signal if the variance of its weights fits its fan-in and what follows it: 2 / fan_in
where a ReLU sets half of the outputs to zero (He), 1 / fan_in, or 2 / (fan_in + fan_out) as a compromise with the
gradient's scale, where a tanh or nothing follows (Xavier). What follows is seen in a forward pass
(`find_nonlinearities`), functional or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.registry import Registry
from transferkit.nn.following import RECTIFIERS, as_at_start, call, find_nonlinearities, list_layers

__all__ = ["INITS", "Initialised", "initialise", "initialise_by_data"]


@dataclass(frozen=True)
class _Site:
    """What decides about the scale of a layer's weights.

    Args:
        inputs: Numbers that one output is computed from (fan-in).
        outputs: Numbers that one input takes part in (fan-out).
        nonlinearity: What follows the layer; "linear" for nothing.
        groups: Of a grouped convolution.
    """

    inputs: int
    outputs: int
    nonlinearity: str
    groups: int = 1

    @property
    def gain(self) -> float:
        """Factor on the standard deviation 1 / sqrt(fan-in) that keeps the signal's second moment."""
        if self.nonlinearity in RECTIFIERS:
            return math.sqrt(2.0)
        return float(nn.init.calculate_gain("tanh")) if self.nonlinearity == "tanh" else 1.0


Fill = Callable[[torch.Tensor, _Site, torch.Generator], None]
"""(weight, where it is, generator): fills the weight in place."""

INITS: Registry[Fill] = Registry("initialisation")
"""Name -> function that fills the weight of a linear or convolutional layer."""

SPARSE_INPUTS = 15
"""Nonzero weights per unit with "sparse"."""

LSUV_TOLERANCE, LSUV_TRIES = 0.02, 10
"""How near 1 the standard deviation of a layer's outputs must come, and in how many corrections."""

SMALL_BIAS = 0.01
"""With bias="positive": every rectified unit lets something through at the start."""


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """What was done to one layer.

    Args:
        layer: Dotted path.
        init: Name of the initialisation.
        nonlinearity: What follows the layer; "linear" for nothing.
        deviation: Standard deviation of the weights afterwards.
    """

    layer: str
    init: str
    nonlinearity: str
    deviation: float


@INITS.register("he_normal")
def _he_normal(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    weight.normal_(0.0, site.gain / math.sqrt(site.inputs), generator=generator)


@INITS.register("he_uniform")
def _he_uniform(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    bound = site.gain * math.sqrt(3.0 / site.inputs)
    weight.uniform_(-bound, bound, generator=generator)


@INITS.register("xavier_normal")
def _xavier_normal(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    weight.normal_(0.0, math.sqrt(2.0 / (site.inputs + site.outputs)), generator=generator)


@INITS.register("xavier_uniform")
def _xavier_uniform(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (site.inputs + site.outputs))
    weight.uniform_(-bound, bound, generator=generator)


@INITS.register("sparse")
def _sparse(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    """`SPARSE_INPUTS` inputs of every unit, at the scale of He: units start different, and none is drowned in sums."""
    kept = min(SPARSE_INPUTS, site.inputs)
    flat = weight.view(len(weight), -1)
    order = torch.rand(flat.shape, generator=generator, device=weight.device).argsort(dim=1)[:, :kept]
    values = torch.empty(order.shape, dtype=weight.dtype, device=weight.device)
    values.normal_(0.0, site.gain / math.sqrt(kept), generator=generator)
    flat.zero_().scatter_(1, order, values)


@INITS.register("orthogonal")
def _orthogonal(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    # A unit of a grouped convolution sees its group only.
    for part in weight.chunk(site.groups):
        nn.init.orthogonal_(part, gain=site.gain, generator=generator)


@INITS.register("auto")
def _auto(weight: torch.Tensor, site: _Site, generator: torch.Generator) -> None:
    """He before a rectifier, else Xavier."""
    (_he_normal if site.nonlinearity in RECTIFIERS else _xavier_uniform)(weight, site, generator)


def initialise(
    module: nn.Module,
    init: str = "auto",
    *,
    batch: Any = None,
    bias: str = "zero",
    prior: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Initialised, ...]:
    """Initialise the linear and convolutional layers of a network in place.

    Args:
        module: The network, or the part of it that is new.
        init: A name in `INITS`: "auto" (He before a rectifier, else Xavier), "he_normal", "he_uniform",
            "xavier_normal", "xavier_uniform", "sparse", "orthogonal".
        batch: An input (or a tuple of inputs) of the module, from which is seen what follows each layer. None assumes
            a ReLU after every layer but the last.
        bias: "zero"; "positive": 0.01 before a rectifier, so that each unit is active at the start; "keep".
        prior: (K,) class shares: the biases of the last layer become their logarithms, so that the first loss is that
            of guessing by them, not ln K. None treats it as the others.
        seed: Of the weights.

    Returns:
        What was done, layer by layer.

    Raises:
        OptionError: An unknown name, a module without such layers, or a prior that does not fit the last layer.

    References:
        Glorot and Bengio, AISTATS 2010; He et al., ICCV 2015; Martens, ICML 2010 (sparse). Deviation: the gain
        sqrt(2) is used for all rectifiers, GELU and SiLU among them, whose exact gains are within 15 % of it.

    Example:
        >>> net = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 2))
        >>> [(one.layer, one.nonlinearity, round(one.deviation, 2)) for one in initialise(net)]
        [('0', 'relu', 0.07), ('2', 'linear', 0.08)]
    """
    fill = INITS[init]
    if bias not in ("zero", "positive", "keep"):
        raise OptionError(unknown_name("rule for biases", bias, ("zero", "positive", "keep")))
    layers = _own_layers(module)
    if not layers:
        raise OptionError("There is no linear or convolutional layer to initialise.")
    names = list(layers)
    follows = dict.fromkeys(names[:-1], "relu") | {names[-1]: "linear"}
    if batch is not None:
        seen = {name: found for name, found in find_nonlinearities(module, batch).items() if name in layers}
        # A layer that did not run by itself, such as a projection of attention, has no nonlinearity of its own.
        follows, names = {**dict.fromkeys(layers, "linear"), **seen}, list(seen) or names
    if prior is not None:
        _check_prior(layers[names[-1]], names[-1], prior)
    generator = torch.Generator(device=next(module.parameters()).device).manual_seed(seed)
    done = []
    with torch.no_grad():
        for name, layer in layers.items():
            # Contiguous and in single precision: not every initialisation knows other layouts and types.
            weight = torch.empty(layer.weight.shape, dtype=torch.float32, device=layer.weight.device)
            fill(weight, _site(layer, follows[name]), generator)
            layer.weight.copy_(weight)
            if layer.bias is not None and bias != "keep":
                layer.bias.fill_(SMALL_BIAS if bias == "positive" and follows[name] in RECTIFIERS else 0.0)
            done.append(
                Initialised(
                    layer=name, init=init, nonlinearity=follows[name], deviation=float(layer.weight.std(correction=0))
                )
            )
        if prior is not None:
            layers[names[-1]].bias.copy_(_log_shares(layers[names[-1]].bias, prior))
    return tuple(done)


def _site(layer: Any, nonlinearity: str) -> _Site:
    field = math.prod(layer.weight.shape[2:])
    groups = getattr(layer, "groups", 1)
    return _Site(layer.weight.shape[1] * field, layer.weight.shape[0] // groups * field, nonlinearity, groups)


def _own_layers(module: nn.Module) -> dict[str, Any]:
    """Path -> layer; one of several layers that share a weight, and none whose weight is computed from others.

    Raises:
        OptionError: A weight is parametrised or not made yet.
    """
    found, weights = dict[str, Any](), set[int]()
    for name, layer in list_layers(module):
        if nn.utils.parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
            raise OptionError(
                f"The weight of {name!r} is computed from others (weight_norm, pruning): initialise before that "
                "is added."
            )
        if isinstance(layer.weight, nn.UninitializedParameter):
            raise OptionError(f"{name!r} has no weight yet: run the network once, then initialise it.")
        if id(layer.weight) not in weights:
            found[name] = layer
            weights.add(id(layer.weight))
    return found


def _check_prior(layer: Any, name: str, prior: Sequence[float]) -> None:
    if layer.bias is None or len(layer.bias) != len(prior) or not all(0 < one < math.inf for one in prior):
        outputs = 0 if layer.bias is None else len(layer.bias)
        raise OptionError(
            f"prior must give a share > 0 for each of the {outputs} biases of the last layer {name!r}, got "
            f"{list(prior)!r}."
        )


def _log_shares(bias: torch.Tensor, prior: Sequence[float]) -> torch.Tensor:
    shares = torch.tensor(list(prior), dtype=bias.dtype, device=bias.device)
    return (shares / shares.sum()).log()


def initialise_by_data(
    module: nn.Module, batch: Any, *, seed: int = 0, tolerance: float = LSUV_TOLERANCE
) -> tuple[Initialised, ...]:
    """Layer-sequential unit variance (LSUV): orthogonal weights, scaled until each layer's outputs have variance 1.

    Args:
        module: The network; layers are scaled in the order in which they run.
        batch: Real inputs (or a tuple of them), of as many images as a training batch or more.
        seed: Of the weights.
        tolerance: Largest distance of a standard deviation from 1.

    Returns:
        What was done, layer by layer. A layer whose outputs cannot be scaled to variance 1 is left orthogonal, and
        says so.

    Raises:
        OptionError: There is no linear or convolutional layer.

    References:
        Mishkin and Matas, ICLR 2016. Biases are zero.

    Example:
        >>> rows = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
        >>> done = initialise_by_data(net, rows)
        >>> bool((net(rows).std() - 1).abs() < 0.05)
        True
    """
    done = {one.layer: one for one in initialise(module, "orthogonal", batch=batch, seed=seed)}
    layers = _own_layers(module)
    for name in [name for name in find_nonlinearities(module, batch) if name in layers]:
        weight, start = layers[name].weight, layers[name].weight.detach().clone()
        reached = False
        for _ in range(LSUV_TRIES):
            deviation = _output_deviation(module, layers[name], batch)
            reached = abs(deviation - 1) <= tolerance
            if reached or deviation == 0 or not math.isfinite(deviation):
                break
            with torch.no_grad():
                weight.div_(deviation)
        if not reached:
            with torch.no_grad():
                weight.copy_(start)
        done[name] = replace(
            done[name],
            init="lsuv" if reached else "orthogonal",
            deviation=float(weight.detach().float().std(correction=0)),
        )
    return tuple(done.values())


def _output_deviation(module: nn.Module, layer: nn.Module, batch: Any) -> float:
    """Standard deviation of a layer's outputs in evaluation mode."""
    found = list[float]()
    handle = layer.register_forward_hook(lambda _, __, output: found.append(float(output.float().std(correction=0))))
    try:
        with as_at_start(module, batch):
            call(module, batch)
    finally:
        handle.remove()
    return found[0]  # of its first call: later ones see what it did before
