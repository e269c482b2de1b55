"""The part of a backbone behind a frozen stage, run on activations that were computed once.

Any module will do; nothing is traced or rewritten. The network's own forward code runs, in shallow copies of the few
modules that hold the cut stage. In these copies the cut stage's module hands on the activation given, and whatever ran
before it hands on blanks of the right shape; everything behind it is the very same modules, so training the tail trains
the backbone. Whether that gives what the whole network gives is tried out when the cut is made: blanks of NaN show if
anything behind the cut reads what was computed before it.
"""

from __future__ import annotations

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
"""Images in the batch that is watched; another number is used to check, so that shapes that follow the batch show."""

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How far the tail may be from the whole network: other memory layouts add up in another order. Absolute: in units of
the largest value."""


class CutError(BackboneError):
    """The network cannot be cut at that stage; the message says why."""


@dataclass(frozen=True)
class _Early:
    """A module that is done before the cut.

    Args:
        paths: Every place from which it can be called on the way to the cut.
        returned: What it returned, call by call, tensors without their values.
    """

    paths: tuple[str, ...]
    returned: tuple[object, ...]


@dataclass(frozen=True)
class _Anatomy:
    """How a network falls apart at a cut.

    Args:
        early: What is done before it, outermost modules only.
        returned: What the cut stage's module returned, tensors without their values.
        behind: Paths of the outermost modules that run only behind it.
    """

    early: tuple[_Early, ...]
    returned: object
    behind: tuple[str, ...]


class _StandIn:
    """Hangs in a module's place: hands on what it was told to, call by call, then lets the module itself run.

    The last is for modules without weights that a network uses over and over. Attributes are the module's own.
    """

    def __init__(self, module: nn.Module, returns: Sequence[object]) -> None:
        self.module = module
        self.returns = list(returns)

    def __call__(self, *inputs: object, **options: object) -> object:
        return self.returns.pop(0) if self.returns else self.module(*inputs, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, name)


class _Reached(Exception):
    """The cut stage is done; nothing behind it need run."""

    def __init__(self, returned: object) -> None:
        self.returned = returned


class _Last(_StandIn):
    """Hangs in the cut stage's place and ends the forward pass there."""

    def __call__(self, *inputs: object, **options: object) -> object:
        raise _Reached(self.module(*inputs, **options))


class Tail:
    """What of a backbone runs behind one of its stages. Made by `cut`.

    It is no module and owns no parameters: it runs those of the backbone, in whatever mode they are in, with whatever
    hooks they have when it is called.

    Args:
        backbone: The whole.
        tap: Of the stage that the activations are taken from.
        anatomy: How the network falls apart there.
        shape: Of one image's activation.

    Attributes:
        backbone, tap, shape: As given.
        stages_behind: Names of the stages strictly behind the cut, in order.
        stages_before: Names of the others: up to the cut, and including it.
        modules_behind: Paths inside the trunk of the outermost modules that run only behind the cut.
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
    def stage(self) -> str:
        """Name of the stage that the activations are taken from."""
        return self.tap.stage

    def __call__(self, activation: torch.Tensor) -> torch.Tensor:
        """(N, *shape) float -> (N, D), what the backbone returns for those images; gradients flow."""
        return self.outputs(activation)[""]

    def pooled_stages(
        self, activation: torch.Tensor, *, pooling: str, names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Stage name -> one vector per image, as `Backbone.pooled_stages` gives it; gradients flow.

        Args:
            activation: (N, *shape) float. It is not changed, even if the network computes in place.
            pooling: "avg" or "avg+max".
            names: Stages behind the cut; None gives all of them.

        Raises:
            OptionError: If one of the names is not behind the cut.
        """
        wanted = self._behind(names)
        return _pool_all(self.backbone, self.outputs(activation), pooling, wanted)

    def activations(
        self, images: torch.Tensor, *, pooling: str = "avg", names: Sequence[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the backbone up to the cut and no further.

        Args:
            images: (N, 3, H, W) float, normalised.
            pooling: "avg" or "avg+max".
            names: Stages up to the cut whose vectors are wanted as well.

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
        """The same cut in a copy of the backbone, whatever has become of its weights; nothing is checked again."""
        return Tail(backbone, self.tap, self._anatomy, self.shape)

    def prefix(self) -> nn.Module:
        """The trunk without what runs only behind the cut; for looking at, not for running. Weights are shared."""
        return _graft(self._trunk, dict.fromkeys(self.modules_behind))

    @property
    def _trunk(self) -> nn.Module:
        return self.backbone.trunk

    def _behind(self, names: Sequence[str] | None) -> set[str]:
        wanted = set(self.stages_behind if names is None else names)
        if strange := sorted(wanted - set(self.stages_behind)):
            raise OptionError(
                f"Stage {strange[0]!r} is not behind {self.stage!r}; those are: {', '.join(self.stages_behind)}."
            )
        return wanted

    def outputs(self, activation: torch.Tensor, *, blank: float = 0.0) -> dict[str, torch.Tensor]:
        """Module path -> raw output of every tapped module behind the cut; "" is the network itself.

        Args:
            activation: (N, *shape) float.
            blank: Stands for whatever was computed before the cut. Nothing depends on it.
        """
        count, trunk = len(activation), self._trunk
        parts: dict[str, object] = {}
        for early in self._anatomy.early:
            blanks = [_fill(returned, count, activation, blank) for returned in early.returned]
            parts |= dict.fromkeys(early.paths, _StandIn(trunk.get_submodule(early.paths[0]), blanks))
        # A clone, for the next module may well compute in place.
        handed = _hand_on(_fill(self._anatomy.returned, count, activation, blank), activation.clone())
        parts[self.tap.path] = _StandIn(trunk.get_submodule(self.tap.path), [handed])
        side = self.backbone.spec.preprocessing.size
        images = torch.full((), blank, dtype=activation.dtype, device=activation.device).expand(count, 3, side, side)
        # Copied anew for each call: modes, hooks and what else has changed in the network since then all count.
        network = _graft(trunk, parts)
        with self.backbone.recording_stages() as outputs:
            outputs[""] = network(images)
        return outputs


def cut(backbone: Backbone, stage: str | int) -> Tail:
    """What runs behind a stage, checked to give what the whole backbone gives.

    Costs three forward passes over two or three images.

    Args:
        backbone: Left as it is.
        stage: Name or index of the last stage that stays frozen.

    Raises:
        OptionError: If there is no such stage.
        CutError: If nothing runs behind it, or what does needs more than the stage's output: a connection that skips
            the stage, or weights that are used on both sides of it.

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
            f"{backbone.spec.name} cannot be cut behind stage {tap.stage!r}: {error}. "
            "Train it without cached activations, or freeze up to another stage."
        ) from error.__cause__


def _cut(backbone: Backbone, tap: Tap) -> Tail:
    """The same, where a CutError holds the reason only."""
    if tap is backbone.taps[-1] or not tap.path:
        raise CutError("no other stage runs behind it")
    images = _draw(backbone, TRACED)
    with explaining(images), evaluating(backbone), torch.no_grad():
        tree = call_tree(backbone.trunk, images)
    anatomy = _dissect(backbone.trunk, tree, tap.path)
    output = tensor_of(anatomy.returned)
    if output is None or not output.ndim or len(output) != TRACED or not output.is_floating_point():
        raise CutError("its output is no tensor with one part per image")
    tail = Tail(backbone, tap, anatomy, tuple(output.shape[1:]))
    with evaluating(backbone), torch.no_grad():
        _check(tail, _draw(backbone, TRACED + 1))
    return tail


def _draw(backbone: Backbone, count: int) -> torch.Tensor:
    """Normalised noise of the size in use, the same at each call."""
    side = backbone.spec.preprocessing.size
    device = next((tensor.device for tensor in backbone.trunk.state_dict().values()), torch.device("cpu"))
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _check(tail: Tail, images: torch.Tensor) -> None:
    """See to it that prefix and tail together are the backbone, and that no blank reaches a result.

    Raises:
        CutError: If not.
    """
    backbone = tail.backbone
    with backbone.recording_stages() as outputs:
        outputs[""] = backbone.trunk(images)
    whole = {**_pool_all(backbone, outputs, "avg", {tap.stage for tap in backbone.taps}), "": outputs[""]}
    activation, before = tail.activations(images, names=tail.stages_before)
    if not _agree(before, whole):
        raise CutError("its output is changed in place by what follows")
    try:
        outputs = tail.outputs(activation, blank=torch.nan)
        behind = {**_pool_all(backbone, outputs, "avg", tail.stages_behind), "": outputs[""]}
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CutError(f"what follows does not run on its own ({type(error).__name__}: {reason})") from error
    if not _agree(behind, whole):
        raise CutError("what follows also reads what was computed before it")


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


# How a network falls apart


def _dissect(trunk: nn.Module, tree: Call, path: str) -> _Anatomy:
    """What is over before the module at `path` is, and what begins afterwards.

    Raises:
        CutError: If the two cannot be told apart.
    """
    at, *more = [call for call in calls_in(tree) if call.path == path]
    if more:
        raise CutError(f"its module runs {1 + len(more)} times")
    chain = [at]
    while (holder := chain[0].parent) is not None:
        chain.insert(0, holder)
    before, after = [], []
    for holder, held in pairwise(chain):
        place = next(i for i, call in enumerate(holder.calls) if call is held)
        before += holder.calls[:place]
        after += holder.calls[place + 1 :]
    ran = {id(inner.module) for call in [*before, at] for inner in calls_in(call)}
    for again in (inner for call in after for inner in calls_in(call)):
        if id(again.module) in ran and again.module.state_dict():
            raise CutError(f"{again.path!r} runs on both sides of it")
    early = _group_early(trunk, tree, before, {id(call.module) for call in chain[:-1]})
    behind = [call.path for call in after if not any(id(inner.module) in ran for inner in calls_in(call))]
    return _Anatomy(tuple(early), _forget(at.returned), tuple(dict.fromkeys(behind)))


def _group_early(trunk: nn.Module, tree: Call, before: Sequence[Call], holders: Collection[int]) -> Iterator[_Early]:
    """The modules of these calls. Those that were given no tensor (a table of positions) can go on running."""
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
    """The network with other things hanging at these paths: the modules that hold them copied, all else the same."""
    copies = {"": _copied(network)}
    for path, part in parts.items():
        *owners, name = path.split(".")
        holder = copies[""]
        for owner, at in zip(owners, accumulate(owners, "{}.{}".format), strict=True):
            if at not in copies:
                copies[at] = _copied(holder.get_submodule(owner))
                holder._modules[owner] = copies[at]
            holder = copies[at]
        holder._modules[name] = part  # type: ignore[assignment] # a stand-in is called like a module, no more
    return copies[""]


def _copied(module: nn.Module) -> nn.Module:
    """A module of its own that shares everything with this one but the table of its children.

    Not `copy.copy`: parametrised modules refuse it.
    """
    copied: nn.Module = object.__new__(type(module))
    copied.__dict__ = {**vars(module), "_modules": dict(vars(module)["_modules"])}
    return copied


# What modules return


def _replace_tensors(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same tuples, lists and dicts around other tensors.

    Raises:
        CutError: If it is something else that may hold tensors.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _replace_tensors(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return _like(value, [_replace_tensors(part, change) for part in value])
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    raise CutError(f"a module hands on a {type(value).__name__}, which cannot be stood in for")


def _forget(returned: object) -> object:
    """Shapes and dtypes, no values: what is kept of a call must not keep its tensors alive."""
    return _replace_tensors(returned, lambda tensor: tensor.detach().to("meta"))


def _fill(returned: object, count: int, like: torch.Tensor, blank: float) -> object:
    """What was returned for `TRACED` images, for `count` of them and on the device of `like`; one value throughout."""

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


def _hand_on(returned: object, activation: torch.Tensor) -> object:
    """What the cut stage's module returned, the activation in the place of its first tensor (see `tensor_of`)."""
    if isinstance(returned, (tuple, list)):
        return _like(returned, [activation, *returned[1:]])
    return activation


def _like(given: tuple[object, ...] | list[object], parts: list[object]) -> object:
    """A tuple, named tuple or list of the same type."""
    kind: Callable[..., object] = type(given)
    return kind(*parts) if hasattr(given, "_fields") else kind(parts)
