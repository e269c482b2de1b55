"""The part of a backbone after a frozen stage, run on cached activations of that stage.

Works for any module, without tracing or rewriting. The network's own forward code runs, in shallow copies of the few
modules that contain the cut stage. In these copies the cut stage's module returns the given activation, and modules
that ran before it return placeholders of the right shape; everything after it is the original modules, so training the
tail trains the backbone. When the cut is made, the result is compared with the full network: placeholders of NaN reveal
whether anything after the cut reads values computed before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import nn

from transferkit.core.errors import BackboneError, OptionError
from transferkit.nn.backbone import Backbone
from transferkit.nn.pooling import pool
from transferkit.nn.stages import Call, Tap, call_tree, calls_in, evaluating, explaining, tensor_of

__all__ = ["CutError", "Tail", "cut"]

TRACED = 2
"""Batch size for tracing; the check uses another one, to detect shapes that depend on the batch size."""

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerated difference between tail and full network, as other memory layouts sum in another order. Absolute: in units
of the largest value."""


class CutError(BackboneError):
    """The network cannot be split at that stage; the message gives the reason."""


@dataclass(frozen=True)
class _Early:
    """A module that finishes before the cut.

    Args:
        paths: All paths by which it can be called before the cut.
        returned: Its return value for each call, with meta tensors.
    """

    paths: tuple[str, ...]
    returned: tuple[object, ...]


@dataclass(frozen=True)
class _Anatomy:
    """How a network divides at a cut.

    Args:
        early: The outermost modules that finish before it.
        returned: Return value of the cut stage's module, with meta tensors.
        behind: Paths of the outermost modules that run only after it.
    """

    early: tuple[_Early, ...]
    returned: object
    behind: tuple[str, ...]


class _StandIn:
    """Replaces a module: returns given values, call by call, then runs the module itself.

    The latter is for modules without weights that a network uses repeatedly. Attributes are the module's.
    """

    def __init__(self, module: nn.Module, returns: Sequence[object]) -> None:
        self.module = module
        self.returns = list(returns)

    def __call__(self, *inputs: object, **options: object) -> object:
        return self.returns.pop(0) if self.returns else self.module(*inputs, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, name)


class _Reached(Exception):
    """Raised when the cut stage has finished, to skip everything after it."""

    def __init__(self, returned: object) -> None:
        self.returned = returned


class _Last(_StandIn):
    """Replaces the cut stage's module and ends the forward pass there."""

    def __call__(self, *inputs: object, **options: object) -> object:
        raise _Reached(self.module(*inputs, **options))


class Tail:
    """The part of a backbone that runs after one of its stages; returned by `cut`.

    Not a module, and without own parameters: it runs the backbone's modules, in their current mode and with their
    current hooks.

    Args:
        backbone: The full backbone.
        tap: Of the stage whose activations are the input.
        anatomy: How the network divides there.
        shape: Of one image's activation.

    Attributes:
        backbone, tap, shape: As passed.
        stages_behind: Names of the stages after the cut, in order.
        stages_before: Names of the stages up to and including the cut.
        modules_behind: Paths inside the trunk of the outermost modules that run only after the cut.
    """

    def __init__(self, backbone: Backbone, tap: Tap, anatomy: _Anatomy, shape: tuple[int, ...]) -> None:
        self.backbone = backbone
        self.tap = tap
        self.shape = shape
        names = [known.stage for known in backbone.taps]
        at = names.index(tap.stage) + 1
        self.stages_before, self.stages_behind = tuple(names[:at]), tuple(names[at:])
        self.modules_behind = anatomy.behind
        self._anatomy = anatomy

    @property
    def stores_less(self) -> bool:
        """Whether an activation has no more values than the image."""
        return math.prod(self.shape) <= 3 * self.backbone.spec.preprocessing.size**2

    @property
    def stage(self) -> str:
        """Name of the stage whose activations are the input."""
        return self.tap.stage

    def __call__(self, activation: torch.Tensor) -> torch.Tensor:
        """(N, *shape) float -> (N, D), the backbone's output for those images; differentiable."""
        return self.outputs(activation)[""]

    def pooled_stages(
        self, activation: torch.Tensor, *, pooling: str, names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Stage name -> one vector per image, as from `Backbone.pooled_stages`; differentiable.

        Args:
            activation: (N, *shape) float. Not modified, even if the network computes in place.
            pooling: "avg" or "avg+max".
            names: Stages after the cut; None for all of them.

        Raises:
            OptionError: If one of the names is not after the cut.
        """
        wanted = self._behind(names)
        return _pool_all(self.backbone, self.outputs(activation), pooling, wanted)

    def activations(
        self, images: torch.Tensor, *, pooling: str = "avg", names: Sequence[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the backbone up to the cut only.

        Args:
            images: (N, 3, H, W) float, normalised.
            pooling: "avg" or "avg+max".
            names: Stages up to the cut whose vectors are returned as well.

        Returns:
            (N, *shape), and stage name -> one vector per image.
        """
        last = _Last(self._trunk.get_submodule(self.tap.path), ())
        with self.backbone.recording_stages() as outputs:
            try:
                _graft(self._trunk, {self.tap.path: last})(images)
            except _Reached as reached:
                activation = tensor_of(reached.returned)
        assert activation is not None
        return activation, _pool_all(self.backbone, outputs, pooling, set(names) & set(self.stages_before))

    def on(self, backbone: Backbone) -> Tail:
        """The same cut in a copy of the backbone with any weights; not checked again."""
        return Tail(backbone, self.tap, self._anatomy, self.shape)

    def begins_like(self, other: Backbone) -> bool:
        """Whether another backbone, of the same structure, computes the same up to the cut; on two random images."""
        images = _draw(self.backbone, TRACED)
        with torch.no_grad():
            found, expected = ({"": tail.activations(images)[0]} for tail in (self.on(other), self))
        return _agree(found, expected)

    def prefix(self) -> nn.Module:
        """The trunk without the modules that run only after the cut, for inspection only. Weights are shared."""
        return _graft(self._trunk, dict.fromkeys(self.modules_behind))

    @property
    def _trunk(self) -> nn.Module:
        return self.backbone.trunk

    def _behind(self, names: Sequence[str] | None) -> set[str]:
        wanted = set(self.stages_behind if names is None else names)
        if strange := sorted(wanted - set(self.stages_behind)):
            raise OptionError(
                f"Stage {strange[0]!r} is not after {self.stage!r}. Stages after it: {', '.join(self.stages_behind)}."
            )
        return wanted

    def outputs(self, activation: torch.Tensor, *, blank: float = 0.0) -> dict[str, torch.Tensor]:
        """Module path -> raw output of every tapped module after the cut; "" is the network itself.

        Args:
            activation: (N, *shape) float.
            blank: Placeholder for values computed before the cut. Nothing depends on it.
        """
        count, trunk = len(activation), self._trunk
        parts: dict[str, object] = {}
        for early in self._anatomy.early:
            blanks = [_fill(returned, count, activation, blank) for returned in early.returned]
            parts |= dict.fromkeys(early.paths, _StandIn(trunk.get_submodule(early.paths[0]), blanks))
        # A clone, because the next module may compute in place.
        handed = _with_activation(_fill(self._anatomy.returned, count, activation, blank), activation.clone())
        parts[self.tap.path] = _StandIn(trunk.get_submodule(self.tap.path), [handed])
        side = self.backbone.spec.preprocessing.size
        images = torch.full((), blank, dtype=activation.dtype, device=activation.device).expand(count, 3, side, side)
        # Copied for each call, so that changes of modes, hooks and the like in the network take effect.
        network = _graft(trunk, parts)
        with self.backbone.recording_stages() as outputs:
            outputs[""] = network(images)
        return outputs


def cut(backbone: Backbone, stage: str | int) -> Tail:
    """The part of a backbone after a stage, checked to give the same result as the full backbone.

    Costs three forward passes over two or three images.

    Args:
        backbone: Not modified.
        stage: Name or index of the last frozen stage.

    Raises:
        OptionError: If there is no such stage.
        CutError: If nothing runs after it, or what runs after it needs more than the stage's output: a connection that
            skips the stage, or weights used both before and after it.

    Example:
        >>> from transferkit.records import BackboneSpec, Preprocessing
        >>> plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> spec = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=plain, pretrained=False)
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(),
        ...                     nn.Conv2d(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> tail = cut(Backbone(toy, spec), "3")
        >>> tail.shape, tail.stages_behind, tail.pooled_stages(torch.zeros(5, 8, 7, 7), pooling="avg")["top"].shape
        ((8, 7, 7), ('top',), torch.Size([5, 16]))
    """
    names = backbone.find_stages(stage)
    if len(names) != 1:
        raise OptionError(f"A backbone is cut at one stage, got {stage!r}.")
    tap = next(tap for tap in backbone.taps if tap.stage == names[0])
    try:
        return _cut(backbone, tap)
    except CutError as error:
        raise CutError(
            f"{backbone.spec.name} cannot be cut after stage {tap.stage!r}: {error}. "
            "Train it without cached activations, or freeze up to another stage."
        ) from error.__cause__


def _cut(backbone: Backbone, tap: Tap) -> Tail:
    """The same, with only the reason in a CutError."""
    if tap is backbone.taps[-1] or not tap.path:
        raise CutError("no other stage runs after it")
    images = _draw(backbone, TRACED)
    with explaining(images), evaluating(backbone), torch.no_grad():
        tree = call_tree(backbone.trunk, images)
    anatomy = _dissect(backbone.trunk, tree, tap.path)
    output = tensor_of(anatomy.returned)
    if output is None or not output.ndim or len(output) != TRACED or not output.is_floating_point():
        raise CutError("its output is not a tensor with one entry per image")
    tail = Tail(backbone, tap, anatomy, tuple(output.shape[1:]))
    with evaluating(backbone), torch.no_grad():
        _check(tail, _draw(backbone, TRACED + 1))
    return tail


def _draw(backbone: Backbone, count: int) -> torch.Tensor:
    """Normally distributed images of the size in use, the same at each call."""
    side = backbone.spec.preprocessing.size
    device = next((tensor.device for tensor in backbone.trunk.state_dict().values()), torch.device("cpu"))
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _check(tail: Tail, images: torch.Tensor) -> None:
    """Check that prefix and tail together equal the backbone, and that no placeholder affects a result.

    Raises:
        CutError: If not.
    """
    backbone = tail.backbone
    with backbone.recording_stages() as outputs:
        outputs[""] = backbone.trunk(images)
    full = {**_pool_all(backbone, outputs, "avg", {tap.stage for tap in backbone.taps}), "": outputs[""]}
    activation, before = tail.activations(images, names=tail.stages_before)
    if not _agree(before, full):
        raise CutError("its output is changed in place by what follows")
    try:
        outputs = tail.outputs(activation, blank=torch.nan)
        behind = {**_pool_all(backbone, outputs, "avg", tail.stages_behind), "": outputs[""]}
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CutError(f"what follows does not run alone ({type(error).__name__}: {reason})") from error
    if not _agree(behind, full):
        raise CutError("what follows also reads values computed before it")


def _agree(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return all(
        part.shape == expected[name].shape
        and torch.allclose(
            part, expected[name], rtol=RELATIVE, atol=ABSOLUTE * float(expected[name].abs().amax()), equal_nan=False
        )
        for name, part in found.items()
    )


def _pool_all(
    backbone: Backbone, outputs: Mapping[str, torch.Tensor], pooling: str, names: Collection[str]
) -> dict[str, torch.Tensor]:
    return {tap.stage: pool(outputs[tap.path], tap.layout, pooling) for tap in backbone.taps if tap.stage in names}


# How a network divides


def _dissect(trunk: nn.Module, tree: Call, path: str) -> _Anatomy:
    """The modules that finish before the module at `path`, and those that start after it.

    Raises:
        CutError: If the two cannot be separated.
    """
    at, *more = [call for call in calls_in(tree) if call.path == path]
    if more:
        raise CutError(f"its module runs {1 + len(more)} times")
    chain = [at]
    while (holder := chain[0].parent) is not None:
        chain.insert(0, holder)
    before, after = [], []
    for holder, held in pairwise(chain):
        position = next(i for i, call in enumerate(holder.calls) if call is held)
        before += holder.calls[:position]
        after += holder.calls[position + 1 :]
    ran = {id(inner.module) for call in [*before, at] for inner in calls_in(call)}
    for again in (inner for call in after for inner in calls_in(call)):
        if id(again.module) in ran and again.module.state_dict():
            raise CutError(f"{again.path!r} runs both before and after it")
    early = _group_early(trunk, tree, before, {id(call.module) for call in chain[:-1]})
    behind = [call.path for call in after if not any(id(inner.module) in ran for inner in calls_in(call))]
    return _Anatomy(tuple(early), _forget(at.returned), tuple(dict.fromkeys(behind)))


def _group_early(trunk: nn.Module, tree: Call, before: Sequence[Call], holders: Collection[int]) -> Iterator[_Early]:
    """The modules of these calls, except those without a tensor argument (a table of positions), which still run."""
    passed = {id(call.module) for call in calls_in(tree)} - set(holders)
    paths: dict[int, list[str]] = {}
    for path, module in trunk.named_modules(remove_duplicate=False):
        *owners, _ = accumulate(path.split("."), "{}.{}".format)
        if not any(id(trunk.get_submodule(owner)) in passed for owner in owners):
            paths.setdefault(id(module), []).append(path)
    for module in dict.fromkeys(call.module for call in before if call.given):
        if id(module) not in paths:
            raise CutError(f"{type(module).__name__} runs before it under a name that was not found")
        returned = [_forget(call.returned) for call in before if call.module is module]
        yield _Early(tuple(paths[id(module)]), tuple(returned))


def _graft(network: nn.Module, parts: Mapping[str, object]) -> nn.Module:
    """The network with the modules at these paths replaced: only the modules that contain them are copied."""
    copies = {"": _copied(network)}
    for path, part in parts.items():
        *owners, name = path.split(".")
        holder = copies[""]
        for owner, at in zip(owners, accumulate(owners, "{}.{}".format), strict=True):
            if at not in copies:
                copies[at] = _copied(holder.get_submodule(owner))
                holder._modules[owner] = copies[at]
            holder = copies[at]
        holder._modules[name] = part  # type: ignore[assignment] # a stand-in is only called like a module
    return copies[""]


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module that shares everything with it except the dict of its children.

    Not `copy.copy`: parametrised modules refuse it.
    """
    copied: nn.Module = object.__new__(type(module))
    copied.__dict__ = {**vars(module), "_modules": dict(vars(module)["_modules"])}
    return copied


# Return values of modules


def _replace_tensors(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same tuples, lists and dicts with every tensor replaced.

    Raises:
        CutError: If it is another type that may contain tensors.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _replace_tensors(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [_replace_tensors(part, change) for part in value])
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    raise CutError(f"a module returns a {type(value).__name__}, which cannot be replaced by a placeholder")


def _forget(returned: object) -> object:
    """The return value with meta tensors: a recorded call must not keep its tensors alive."""
    return _replace_tensors(returned, lambda tensor: tensor.detach().to("meta"))


def _fill(returned: object, count: int, like: torch.Tensor, blank: float) -> object:
    """A return value for `TRACED` images, resized to `count`, on the device of `like`, filled with `blank`."""

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        floating = tensor.is_floating_point()
        value = torch.full(
            (), blank if floating else 0, dtype=like.dtype if floating else tensor.dtype, device=like.device
        )
        if not tensor.ndim:
            return value
        length = len(tensor)
        return value.expand(length if length % TRACED else length // TRACED * count, *tensor.shape[1:])

    return _replace_tensors(returned, filled)


def _with_activation(returned: object, activation: torch.Tensor) -> object:
    """The return value of the cut stage's module, with its first tensor (see `tensor_of`) replaced."""
    if isinstance(returned, (tuple, list)):
        return _like(returned, [activation, *returned[1:]])
    return activation


def _like(given: tuple[object, ...] | list[object], parts: list[object]) -> object:
    """A tuple, named tuple or list of the same type."""
    kind: Callable[..., object] = type(given)
    return kind(*parts) if hasattr(given, "_fields") else kind(parts)
