"""Time and memory of a training step with fixed batch normalisation, plain and as a freeze plan runs it.

    python scripts/bench_training_step.py [--models packaged/tf_efficientnet_lite0] [--sizes 96 128] [--batch 16]
                                          [--steps 12] [--threads N] [--out benchmarks/training_step.json]

Steps on the same images from the same weights (uint8 -> normalised, channels_last, cross-entropy, backward, fused
AdamW), all layers and the affine maps of the norms trained, running statistics fixed:

- "plain": the network as it is.
- "folded": normalisation folded into the convolutions, as `FreezePlan` does.
- "clamps": the same, and ReLU6 keeps its outputs; "plan": the same, and the gradients of large depthwise kernels are
  computed as convolutions, which is all that `FreezePlan` does.
- "fit": as "plan", in `Runner.fit`: Lightning, clipping, the average of the weights and logging.

One step of each in turn, `--steps` times after a warm-up; seconds are medians, ratios are medians of the ratios in a
turn. "kept MB": what autograd keeps for the backward pass, parameters aside. "gradients differ by": norm of the
difference to "plain" over the norm of the gradient, in float64.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from unittest import mock

import torch
from torch.utils.data import DataLoader

from transferkit import TransferModule, load_backbone
from transferkit.core.provenance import environment
from transferkit.finetune import Runner, freeze
from transferkit.finetune.recipe import make_optimizer
from transferkit.nn import Backbone, depthwise
from transferkit.options import Recipe

CLASSES = 10
PARTS = {"plain": (), "folded": ("fold",), "clamps": ("fold", "clamp"), "plan": ("fold", "clamp", "gradients")}
"""What is on in each of the compared steps."""

EPOCHS = 2
"""Of the fit; the first one warms up."""


def draw_batch(size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 3, size, size) uint8 and (count,) int64, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return pictures, torch.randint(0, CLASSES, (count,), generator=generator)


def make_module(backbone: Backbone, batch: int) -> TransferModule:
    """A module that trains all layers."""
    recipe = Recipe(epochs=EPOCHS, batch_size=batch)
    torch.manual_seed(0)
    everything = len(backbone.stages)
    module = TransferModule(copy.deepcopy(backbone), "lp_ft", unfreeze=everything, classes=CLASSES, recipe=recipe)
    for parameter in module.model.classifier.parameters():  # a head of zeros passes no gradient on
        torch.nn.init.normal_(parameter)
    return module.to(memory_format=torch.channels_last)


@contextmanager
def only(parts: tuple[str, ...]) -> Iterator[None]:
    """Inside, a freeze plan that starts switches on only these."""
    names = {"fold": "fold_convolutions", "clamp": "clamp_sparingly"}
    with ExitStack() as stack:
        for part, name in names.items():
            if part not in parts:
                stack.enter_context(mock.patch.object(freeze, name, return_value=[]))
        yield


class Step:
    """One training step, with some of the parts on."""

    def __init__(self, backbone: Backbone, batch: tuple[torch.Tensor, torch.Tensor], parts: tuple[str, ...]) -> None:
        self.batch, self.module = batch, make_module(backbone, len(batch[1]))
        self.fast_on = depthwise.FAST_ON if "gradients" in parts else ()
        with only(parts):
            self.module.freeze_plan.start(0)
        self.module.train()
        self.module.freeze_plan.set_modes(training=True)
        self.optimizer = make_optimizer(self.module.recipe, self.module.freeze_plan.groups())

    def loss(self) -> torch.Tensor:
        pictures, labels = self.batch
        return torch.nn.functional.cross_entropy(self.module(pictures), labels)

    def __call__(self) -> float:
        """Seconds of a step."""
        begun = time.perf_counter()
        with mock.patch.object(depthwise, "FAST_ON", self.fast_on):
            self.optimizer.zero_grad(set_to_none=True)
            self.loss().backward()
            self.optimizer.step()
        return time.perf_counter() - begun

    def gradients(self) -> list[torch.Tensor]:
        """Of all parameters, in float64."""
        module = copy.deepcopy(self.module).double()
        pictures, labels = self.batch
        torch.nn.functional.cross_entropy(module(pictures), labels).backward()
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]

    def kept(self) -> float:
        """MB that autograd keeps for the backward pass."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.module.parameters()}
        found: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            mock.patch.object(depthwise, "FAST_ON", self.fast_on),
        ):
            self.loss()
        return sum(storage.nbytes() for at, storage in found.items() if at not in own) / 1e6


def time_fit(backbone: Backbone, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> float:
    """Seconds per step of the last epoch of a fit."""
    module = make_module(backbone, len(batch[1]))
    loader = DataLoader([batch] * steps, batch_size=None)  # type: ignore[arg-type]
    fitted = Runner(device=torch.device("cpu"), progress=False).fit(
        module, lambda _size: loader, None, name="fit", stop_after=EPOCHS
    )
    return fitted.epochs[-1].seconds / steps


def compare(name: str, size: int, options: argparse.Namespace) -> dict[str, object]:
    """All steps, in turn."""
    backbone = load_backbone(name, image_size=size)
    batch = draw_batch(size, options.batch)
    steps = {kind: Step(backbone, batch, parts) for kind, parts in PARTS.items()}
    kept = {kind: step.kept() for kind, step in steps.items()}
    truth = steps["plain"].gradients()
    scale = sum(float(one.square().sum()) for one in truth) ** 0.5
    away = [float((a - b).square().sum()) for a, b in zip(truth, steps["plan"].gradients(), strict=True)]
    calls: dict[str, Callable[[], float]] = {**steps, "fit": lambda: time_fit(backbone, batch, options.steps)}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(options.steps + 2):  # the first two warm up
        for kind in steps:
            took = calls[kind]()
            seconds[kind] += [took] if number > 1 else []
    ratios = {kind: statistics.median(map(_ratio, times, seconds["plain"])) for kind, times in seconds.items()}
    bare, fit = statistics.median(seconds["plan"]), calls["fit"]()
    return {
        "model": name,
        "image size": size,
        "images per second": {
            kind: options.batch / value
            for kind, value in {**{k: statistics.median(t) for k, t in seconds.items()}, "fit": fit}.items()
        },
        "time over plain": ratios,
        "time of a fit's step over plan": fit / bare,
        "kept MB": kept,
        "memory over plain": {kind: value / kept["plain"] for kind, value in kept.items()},
        "gradients differ by": sum(away) ** 0.5 / scale,
    }


def _ratio(one: float, other: float) -> float:
    return one / other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["packaged/tf_efficientnet_lite0"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models:
        for size in options.sizes:
            rows.append(compare(name, size, options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    found = {
        "script": "scripts/bench_training_step.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "batch": options.batch,
        "steps": options.steps,
        "networks": rows,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
