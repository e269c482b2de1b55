"""Discovery of a network's stages, stem -> head, by tracing one small batch.

Works for any module: the calls made during one forward pass form a tree; its spine (the sequential calls at the
outermost levels) gives the stages. Convolutional networks yield one stage per width and resolution, isotropic ones
(vision transformers) one per block. Independent of timm and torchvision.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from transferkit.core.errors import BackboneError
from transferkit.nn.pooling import Layout, find_layout, pool
from transferkit.records import TOP

__all__ = [
    "Call",
    "Tap",
    "call_tree",
    "calls_in",
    "collecting",
    "count_parameters",
    "discover_taps",
    "evaluating",
    "explaining",
    "reads_inputs",
    "record",
    "record_taps",
    "tensor_of",
]

Read = Callable[[object, object], torch.Tensor | None]
"""(inputs, output) of a module's call -> the tensor to collect, or None."""

BULK = 0.9
"""A module with this share of all parameters is a wrapper around the network, never one of its blocks."""

LARGE = 0.3
"""A nested `nn.Sequential` with this share of all parameters is part of the spine, not a single step."""

FEWEST_SHAPES = 3
"""With fewer distinct (channels, size) along the spine, and a single grid size, the network is isotropic: its blocks
are the stages."""

MOST_STAGES = 12
"""Maximum number of stages of an isotropic network, at evenly spaced blocks."""


@dataclass(frozen=True)
class Tap:
    """The module at which a stage is read.

    Args:
        stage: The stage's name.
        path: Dotted path of the module to read; "" is the network itself.
        layout: Of that module's output.
        channels: Width C.
        grid: Positions along a side of the output; None without a spatial grid.
    """

    stage: str
    path: str
    layout: Layout
    channels: int
    grid: int | None


@dataclass
class Call:
    """One call of a module.

    Args:
        path: The module's dotted path; "" is the network itself.
        module: The module called.
        maker: The call that made this one, as a weak reference: a cycle would keep a network's outputs alive.
        given: Whether any of its arguments is a tensor.
        returned: What it returned.
        output: The tensor in it, see `tensor_of`.
        calls: Calls made inside it, in order.
    """

    path: str
    module: nn.Module
    maker: weakref.ref[Call] | None = None
    given: bool = True
    returned: object = None
    output: torch.Tensor | None = None
    calls: list[Call] = field(default_factory=list)

    @property
    def parent(self) -> Call | None:
        """The call that made this one; None for the outermost."""
        return None if self.maker is None else self.maker()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's mode is restored afterwards, even after an exception."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def explaining(images: torch.Tensor) -> Iterator[None]:
    """Convert any exception that a network raises inside the block to a BackboneError that names the input shape."""
    try:
        yield
    except Exception as error:
        raise BackboneError(
            f"The network cannot take images of shape {tuple(images.shape)}: {type(error).__name__}: {error}\n"
            "Expected a network for batches of colour images at the size of its preprocessing. If it was built for "
            "another size, pass that: preprocessing=Preprocessing(size=..., ...)."
        ) from error


def tensor_of(output: object) -> torch.Tensor | None:
    """A module's output if it is a tensor, or the first element of a tuple or list (features, then extras)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


class _Recorder:
    """A forward hook that stores `read`'s result in the dict being collected for its owner in this thread, if any."""

    def __init__(self, owner: str, path: str, read: Read) -> None:
        self.owner = owner
        self.path = path
        self.read = read

    def __call__(self, _module: nn.Module, inputs: object, output: object) -> None:
        collected = _collected().get(self.owner)
        if collected is None:
            return
        tensor = self.read(inputs, output)
        if tensor is not None:
            collected[self.path] = tensor


def reads_inputs(hook: object) -> bool:
    """Whether a forward hook may read what its module is given now, not only what it returns.

    Example:
        >>> reads_inputs(print)
        True
    """
    return not isinstance(hook, _Recorder) or (hook.read is not _output_of and hook.owner in _collected())


_active = threading.local()


def _collected() -> dict[str, dict[str, torch.Tensor]]:
    """Owner -> dict that this thread collects for it. A backbone can contain another: each has its own."""
    if not hasattr(_active, "owners"):
        _active.owners = {}
    owners: dict[str, dict[str, torch.Tensor]] = _active.owners
    return owners


def record_taps(network: nn.Module, taps: Sequence[Tap]) -> str:
    """Add hooks to the tapped modules for `collecting` under the returned owner. The hooks are permanent: adding and
    removing them at each call would mix up outputs of threads that share the network."""
    return record(network, {tap.path: _output_of for tap in taps if tap.path})


def record(network: nn.Module, reads: Mapping[str, Read]) -> str:
    """The same for any modules: path -> function of (inputs, output) that returns the tensor to collect."""
    owner = uuid.uuid4().hex
    for path, read in reads.items():
        network.get_submodule(path).register_forward_hook(_Recorder(owner, path, read))
    return owner


def _output_of(_inputs: object, output: object) -> torch.Tensor | None:
    return tensor_of(output)


@contextmanager
def collecting(owner: str) -> Iterator[dict[str, torch.Tensor]]:
    """Module path -> output of every module tapped for `owner` that this thread runs inside the block."""
    outputs: dict[str, torch.Tensor] = {}
    owners = _collected()
    before = owners.get(owner)
    owners[owner] = outputs
    try:
        yield outputs
    finally:
        if before is None:
            del owners[owner]
        else:
            owners[owner] = before


def call_tree(network: nn.Module, images: torch.Tensor) -> Call:
    """The tree of all module calls in one forward pass."""
    stack = [Call("", nn.Identity())]

    def enter(module: nn.Module, arguments: Iterable[object], path: str) -> None:
        call = Call(
            path, module, weakref.ref(stack[-1]), any(tensor_of(argument) is not None for argument in arguments)
        )
        stack[-1].calls.append(call)
        stack.append(call)

    def leave(output: object) -> None:
        call = stack.pop()
        call.returned, call.output = output, tensor_of(output)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for path, module in network.named_modules():
            handles += [
                module.register_forward_pre_hook(
                    lambda m, inputs, options, path=path: enter(m, [*inputs, *options.values()], path), with_kwargs=True
                ),
                module.register_forward_hook(lambda _m, _i, output: leave(output)),
            ]
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return stack[0].calls[0]


def calls_in(call: Call) -> Iterator[Call]:
    """The call itself and all calls inside it, in order."""
    yield call
    for inner in call.calls:
        yield from calls_in(inner)


def count_parameters(module: nn.Module) -> int:
    """Number of a module's parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _is_spine(call: Call, depth: int, share: float) -> bool:
    """Whether the calls inside `call` are sequential, so that each may be a stage."""
    if sum(inner.output is not None for inner in call.calls) < 2:
        return False
    if isinstance(call.module, nn.Sequential):
        return depth == 1 or share >= LARGE
    return depth == 0 or share >= BULK


def _spine(call: Call, depth: int, total: int) -> list[Call]:
    if not _is_spine(call, depth, count_parameters(call.module) / max(total, 1)):
        single = [inner for inner in call.calls if inner.output is not None]
        wraps_one = depth == 0 and len(single) == 1
        return _spine(single[0], 0, total) if wraps_one else [call]
    return [step for inner in call.calls for step in _spine(inner, depth + 1, total)]


def _outermost(step: Call, chosen: list[Call]) -> Call:
    """The outermost call around `step` that returned the same tensor object and contains no other chosen step."""
    outer = step.parent
    while outer is not None and outer.path and outer.output is step.output:
        if any(other is not step and other.path.startswith(f"{outer.path}.") for other in chosen):
            break
        step, outer = outer, outer.parent
    return step


def _readable(steps: list[Call], images: int) -> list[Call]:
    """Steps with a known output layout, whose module runs once, and that do more than pool or reshape."""
    times = Counter(step.path for step in steps)
    readable: list[Call] = []
    for step in steps:
        output = step.output
        if output is None or times[step.path] != 1 or isinstance(step.module, nn.Identity):
            continue
        if output.ndim not in (3, 4) or len(output) != images:
            continue
        if output.ndim == 4 and output.shape[2] not in (output.shape[1], output.shape[3]):
            continue
        if count_parameters(step.module) or (readable and _shape_of(readable[-1]) == _shape_of(step)):
            readable.append(step)
    return readable


def _shape_of(step: Call) -> tuple[Layout, int, int | None]:
    assert step.output is not None
    shape = tuple(step.output.shape)
    layout = find_layout(shape)
    if layout == "channels_first":
        return layout, shape[1], shape[2]
    return layout, shape[-1], shape[1] if layout == "channels_last" else None


def _is_isotropic(steps: list[Call]) -> bool:
    shapes = {_shape_of(step) for step in steps}
    return len(shapes) < FEWEST_SHAPES and len({grid for _, _, grid in shapes if grid is not None}) < 2


def _last_of_each_shape(steps: list[Call]) -> list[Call]:
    followers = [*steps[1:], None]
    return [
        step
        for step, after in zip(steps, followers, strict=True)
        if after is None or _shape_of(after) != _shape_of(step)
    ]


def _blocks(steps: list[Call]) -> list[Call]:
    """The repeated blocks of an isotropic network, evenly subsampled; the last one is always kept."""
    kinds = [type(step.module) for step in steps if count_parameters(step.module)]
    if not kinds:
        return []
    commonest = max(kinds, key=kinds.count)
    blocks = [step for step in steps if type(step.module) is commonest]
    keep = min(MOST_STAGES, len(blocks))
    return [blocks[round((i + 1) * len(blocks) / keep) - 1] for i in range(keep)]


def _is_top(step: Call, vector: torch.Tensor) -> bool:
    """Whether the average of this step's output equals the network's output."""
    assert step.output is not None
    layout, _, grid = _shape_of(step)
    if grid is None:
        return False
    average = pool(step.output, layout, "avg")
    return average.shape == vector.shape and torch.allclose(average, vector, rtol=1e-4, atol=1e-5)


def discover_taps(network: nn.Module, *, size: int) -> tuple[Tap, ...]:
    """The stages of a network that returns one vector per image, stem -> head.

    Args:
        network: Without its classifier: (N, 3, size, size) float -> (N, D) float.
        size: Side of the input, in pixels.

    Returns:
        One tap per stage; the last is "top", the vector itself. If that vector is the average of a spatial output,
        "top" is tapped at that output, so that other poolings are possible too.

    Raises:
        BackboneError: If the network cannot take such images, or does not return (N, D).
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    with explaining(images), evaluating(network), torch.no_grad():
        tree = call_tree(network, images)
        vector = network(images) if tree.output is None else tree.output
    if not isinstance(vector, torch.Tensor) or vector.ndim != 2:
        got = tuple(vector.shape) if isinstance(vector, torch.Tensor) else type(vector).__name__
        raise BackboneError(f"A backbone without its classifier must return (N, D), got {got}.")

    steps = _readable(_spine(tree, 0, count_parameters(network)), len(images))
    steps = _blocks(steps) if _is_isotropic(steps) else _last_of_each_shape(steps)
    steps = [_outermost(step, steps) for step in steps]

    top = Tap(TOP, "", "vector", vector.shape[1], None)
    at = next((i for i, step in enumerate(steps) if _is_top(step, vector)), None)
    if at is not None:
        layout, channels, grid = _shape_of(steps[at])
        if grid != 1:  # with grid 1 it is pooled already and equals the vector
            top = Tap(TOP, steps[at].path, layout, channels, grid)
        steps = steps[:at]
    return (*(Tap(step.path, step.path, *_shape_of(step)) for step in steps), top)
