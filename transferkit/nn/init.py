"""Initialisation of weights, by the nonlinearity that follows each layer, and by data.

A layer keeps the scale of its signal if the variance of its weights fits its fan-in and what follows it: gain^2 /
fan_in, with a gain of sqrt(2) where a ReLU sets half of the outputs to zero (He), or 2 / (fan_in + fan_out) as a
compromise with the gradient's scale, where a tanh or nothing follows (Xavier). What follows is seen in a forward pass
(`find_nonlinearities`), functional or not, and its gain computed from its values (`Nonlinearity.gain`).
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
from transferkit.nn.following import LAYERS, as_at_start, call, find_nonlinearities
from transferkit.nn.nonlinearity import Nonlinearity, assumed
from transferkit.nn.packed import UnitPart, find_parts
from transferkit.nn.weight_blocks import (
    Block,
    Site,
    attention_blocks,
    gates_of,
    is_recurrent,
    layer_block,
    own_modules,
    part_blocks,
    recurrent_blocks,
    rest,
)

__all__ = ["INITS", "Initialised", "initialise", "initialise_by_data"]

Fill = Callable[[torch.Tensor, Site, torch.Generator], None]
"""(weight, where it is, generator): fills the weight in place."""

INITS: Registry[Fill] = Registry("initialisation")
"""Name -> function that fills the weight of a linear or convolutional layer."""

SPARSE_INPUTS = 15
"""Nonzero weights per unit with "sparse"."""

LSUV_TOLERANCE, LSUV_TRIES = 0.02, 10
"""How near 1 the standard deviation of a layer's outputs must come, and in how many corrections."""

SMALL_BIAS = 0.01
"""With bias="positive": every rectified unit lets something through at the start."""

FORGET_BIAS = 1.0
"""Of the forget gates of an LSTM: what it holds is kept at the start (Jozefowicz et al., ICML 2015)."""


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """What was done to one layer.

    Args:
        layer: Dotted path.
        init: Name of the initialisation; "left alone" for a module with other parameters, which keeps them.
        nonlinearity: What follows the layer, or the first of its parts that something follows; "linear" for nothing.
        parts: Maps that its outputs hold, as seen with `batch=`: three for packed query, key and value.
        gain: Factor that keeps the second moment of its signal (`Nonlinearity.gain`).
        deviation: Standard deviation of the weights afterwards; NaN if left alone.
        reason: Why it was left alone; else empty.
    """

    layer: str
    init: str
    nonlinearity: str
    parts: int = 1
    gain: float = 1.0
    deviation: float
    reason: str = ""


@INITS.register("he_normal")
def _he_normal(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    weight.normal_(0.0, site.gain / math.sqrt(site.inputs), generator=generator)


@INITS.register("he_uniform")
def _he_uniform(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    bound = site.gain * math.sqrt(3.0 / site.inputs)
    weight.uniform_(-bound, bound, generator=generator)


@INITS.register("xavier_normal")
def _xavier_normal(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    weight.normal_(0.0, math.sqrt(2.0 / (site.inputs + site.outputs)), generator=generator)


@INITS.register("xavier_uniform")
def _xavier_uniform(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (site.inputs + site.outputs))
    weight.uniform_(-bound, bound, generator=generator)


@INITS.register("sparse")
def _sparse(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    """`SPARSE_INPUTS` inputs of every unit, at the scale of He: units start different, and none is drowned in sums."""
    kept = min(SPARSE_INPUTS, site.inputs)
    flat = weight.view(len(weight), -1)
    order = torch.rand(flat.shape, generator=generator, device=weight.device).argsort(dim=1)[:, :kept]
    values = torch.empty(order.shape, dtype=weight.dtype, device=weight.device)
    values.normal_(0.0, site.gain / math.sqrt(kept * site.share), generator=generator)
    flat.zero_().scatter_(1, order, values)


@INITS.register("orthogonal")
def _orthogonal(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    # A unit of a grouped convolution sees its group only.
    for part in weight.chunk(site.groups):
        nn.init.orthogonal_(part, gain=site.gain / math.sqrt(site.share), generator=generator)


@INITS.register("auto")
def _auto(weight: torch.Tensor, site: Site, generator: torch.Generator) -> None:
    """He with its gain before a nonlinearity that can keep the scale, such as a rectifier; else Xavier, with a gain
    too: at a gain of 1 tanh lets the signal shrink forever."""
    if site.nonlinearity.keeps and site.nonlinearity.name != "linear":
        _he_normal(weight, site, generator)
        return
    _xavier_uniform(weight, site, generator)
    weight.mul_(site.gain)


def initialise(
    module: nn.Module,
    init: str = "auto",
    *,
    batch: Any = None,
    bias: str = "zero",
    prior: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Initialised, ...]:
    """Initialise the linear, convolutional, attention and recurrent layers of a network in place.

    Running statistics of batch normalisation belong to the weights before, and are reset.

    Args:
        module: The network, or the part of it that is new.
        init: A name in `INITS`: "auto" (He with the gain of what follows; Xavier before nothing, and times the gain
            before tanh and sigmoid), "he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "sparse",
            "orthogonal". Query, key and value of an attention are three maps followed by nothing, as is each gate of
            a recurrent layer; its recurrent maps are orthogonal whatever the name. Parts of a layer whose outputs are
            taken apart (packed query, key and value; a gate beside what it gates) are maps of their own as well, if
            there is a batch to see that.
        batch: An input (or a tuple of inputs) of the module, from which is seen what follows each layer. None assumes
            a ReLU after every layer but the last.
        bias: "zero", except forget gates of an LSTM (1); "positive": also 0.01 before a rectifier, so that each unit
            is active at the start; "keep".
        prior: (K,) class shares: the biases of the last layer become their logarithms, so that the first loss is that
            of guessing by them, not ln K. None treats it as the others.
        seed: Of the weights.

    Returns:
        What was done, layer by layer; then modules with other parameters (embeddings, tokens, learnt scales), which
        are left alone, and why. Normalisation is left alone without being listed.

    Raises:
        OptionError: An unknown name, a module without such layers, or a prior that does not fit the last layer.

    References:
        Glorot and Bengio, AISTATS 2010; He et al., ICCV 2015; Martens, ICML 2010 (sparse); Saxe et al., ICLR 2014
        (orthogonal). Deviation: the fan-in of a transposed convolution counts the weights that an output sees, where
        `torch.nn.init` takes its fan-out.

    Example:
        >>> net = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 2))
        >>> [(one.layer, one.nonlinearity, round(one.deviation, 2)) for one in initialise(net)]
        [('0', 'relu', 0.07), ('2', 'linear', 0.08)]
    """
    fill = INITS[init]
    if bias not in ("zero", "positive", "keep"):
        raise OptionError(unknown_name("rule for biases", bias, ("zero", "positive", "keep")))
    modules = own_modules(module)
    if not modules:
        raise OptionError("There is no linear or convolutional layer to initialise.")
    follows, last = _what_follows(module, modules, batch)
    parts = {} if batch is None else find_parts(module, batch)
    if prior is not None:
        _check_prior(modules.get(last), last, prior)
    _reset_statistics(module)
    generator = torch.Generator(device=next(module.parameters()).device).manual_seed(seed)
    done = []
    with torch.no_grad():
        for name, layer in modules.items():
            nonlinearity = follows.get(name, assumed("linear"))
            for block in _blocks(layer, nonlinearity, parts.get(name, ())):
                # Contiguous and in single precision: not every initialisation knows other layouts and types.
                weight = torch.empty(block.shape, dtype=torch.float32, device=generator.device)
                (_orthogonal if block.recurrent else fill)(weight, block.site, generator)
                block.write(weight)
            if bias != "keep":
                _fill_biases(layer, SMALL_BIAS if bias == "positive" and nonlinearity.rectifies else 0.0)
            done.append(replace(_note(name, layer, init, nonlinearity), parts=max(1, len(parts.get(name, ())))))
        if prior is not None:
            modules[last].bias.copy_(_log_shares(modules[last].bias, prior))
    return (*done, *(_left_alone(name, reason) for name, reason in rest(module).items()))


def _what_follows(module: nn.Module, modules: dict[str, Any], batch: Any) -> tuple[dict[str, Nonlinearity], str]:
    """Path -> nonlinearity of every linear and convolutional layer, and the last one to run."""
    names = [name for name, layer in modules.items() if isinstance(layer, LAYERS)]
    if not names:
        return {}, ""
    if batch is None:
        return {**dict.fromkeys(names[:-1], assumed("relu")), names[-1]: assumed("linear")}, names[-1]
    # A layer that did not run by itself, such as a projection of attention, has no nonlinearity of its own.
    seen = {name: found for name, found in find_nonlinearities(module, batch).items() if name in names}
    return seen, [*names, *seen][-1]


def _blocks(layer: Any, nonlinearity: Nonlinearity, parts: Sequence[UnitPart]) -> list[Block]:
    if parts:
        return list(part_blocks(layer, parts))
    if isinstance(layer, nn.MultiheadAttention):
        return list(attention_blocks(layer))
    if is_recurrent(layer):
        return list(recurrent_blocks(layer))
    return [layer_block(layer, nonlinearity)]


def _fill_biases(layer: Any, value: float) -> None:
    """All biases to a value; of a recurrent layer to 0, but for forget gates."""
    if isinstance(layer, nn.MultiheadAttention):
        if layer.in_proj_bias is not None:
            layer.in_proj_bias.zero_()
        return
    for name, bias in layer.named_parameters(recurse=False):
        if name.startswith("bias"):
            bias.fill_(0.0 if is_recurrent(layer) else value)
            # Gates are stacked as input, forget, cell, output, and the two biases are added.
            if is_recurrent(layer) and gates_of(layer) == 4 and name.startswith("bias_ih"):
                bias.chunk(4)[1].fill_(FORGET_BIAS)


def _note(name: str, layer: Any, init: str, nonlinearity: Nonlinearity) -> Initialised:
    weights = [one.detach().float().flatten() for key, one in layer.named_parameters(recurse=False) if "weight" in key]
    return Initialised(
        layer=name,
        init=init,
        nonlinearity=nonlinearity.name,
        gain=nonlinearity.gain,
        deviation=float(torch.cat(weights).std(correction=0)),
    )


def _left_alone(name: str, reason: str) -> Initialised:
    return Initialised(layer=name, init="left alone", nonlinearity="linear", deviation=math.nan, reason=reason)


def _running(module: nn.Module) -> list[Any]:
    """Normalisation with running statistics."""
    return [
        one
        for one in module.modules()
        if isinstance(one, nn.modules.batchnorm._NormBase) and one.running_mean is not None
    ]


def _reset_statistics(module: nn.Module) -> None:
    for one in _running(module):
        one.reset_running_stats()


def _check_prior(layer: Any, name: str, prior: Sequence[float]) -> None:
    if (
        layer is None
        or layer.bias is None
        or len(layer.bias) != len(prior)
        or not all(0 < one < math.inf for one in prior)
    ):
        outputs = 0 if layer is None or layer.bias is None else len(layer.bias)
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

    Running statistics of batch normalisation are those of the batch afterwards (reset where it is a single image): the
    old ones belong to other weights.

    Args:
        module: The network; layers are scaled in the order in which they run.
        batch: Real inputs (or a tuple of them), of as many images as a training batch or more.
        seed: Of the weights.
        tolerance: Largest distance of a standard deviation from 1.

    Returns:
        What was done, layer by layer, as for `initialise`. A layer whose outputs cannot be scaled to variance 1 is
        left orthogonal, and says so; attention and recurrent layers are so by their kind.

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
    layers = {name: layer for name, layer in own_modules(module).items() if isinstance(layer, LAYERS)}
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
    _estimate_statistics(module, batch)
    return tuple(done.values())


def _estimate_statistics(module: nn.Module, batch: Any) -> None:
    """Running statistics of one batch of several images, in a pass without dropout."""
    images = batch[0] if isinstance(batch, tuple) else batch
    norms = _running(module)
    if not norms or not isinstance(images, torch.Tensor) or len(images) < 2:
        return
    momenta = [one.momentum for one in norms]
    with as_at_start(module, batch):
        try:
            for one in norms:
                one.training, one.momentum = True, 1.0
            call(module, batch)
        finally:
            for one, momentum in zip(norms, momenta, strict=True):
                one.momentum = momentum
    for one in norms:
        # Known from now on, though no training step has been made.
        one.num_batches_tracked.fill_(1)


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
