"""What watching costs: time of training steps with a TrainingMonitor and the checks of every step over that without.

    python scripts/bench_monitor.py [--models timm/resnet18 ...] [--size 96] [--batch 32] [--every 20] [--rounds 1]
                                    [--threads N] [--out benchmarks/monitor.json]

Steps of a network with random weights on fixed noise: forward, cross-entropy, backward, fused AdamW. Two copies take
turns, step by step: one plain, one watched as `transferkit.doctor.DoctorCallback` and `adapt` watch it, that is with a
monitored step every `--every`, the norm of the gradient and the keeping of random generators and running statistics in
every step, and a comparison of features on 16 images every fourth monitored step. A round is four times `--every` steps
of each, so that it holds all of that in its right proportion; the first steps, with the features at the start, come
before. "overhead": seconds of a round with over those without, minus 1, median over rounds, with the range of rounds.
The aim is below 5 %.

Every network is written when it is finished; with `--out`, those that are there already are not measured again. About a
minute per network on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit import zoo
from transferkit.core.provenance import environment
from transferkit.doctor import TrainingMonitor
from transferkit.doctor.callback import COMPARED, gradient_norm
from transferkit.doctor.capsule import StepKeeper

CLASSES = 10
MODELS = ["timm/tf_efficientnet_lite0", "timm/resnet18", "timm/vit_tiny_patch16_224"]
IMAGES = 16


class Steps:
    """A network in training on one batch, watched or not."""

    def __init__(self, network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], *, every: int) -> None:
        self.network, self.batch = network.train(), batch
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        self.monitor = TrainingMonitor(network, self.optimizer, every=every, images=IMAGES) if every else None
        self.keeper = StepKeeper(network, Path(tempfile.gettempdir()) / "never.pt")

    def __call__(self) -> float:
        """Seconds of a step."""
        begun = time.perf_counter()
        if self.monitor is not None:
            self.keeper.begin(self.batch)
        pixels, labels = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.network(pixels), labels)
        if self.monitor is not None:
            self.monitor.observe(loss)
        loss.backward()
        if self.monitor is not None:
            norm = gradient_norm([one.grad for one in self.network.parameters() if one.grad is not None])
            assert bool(torch.stack([loss.detach(), norm]).isfinite().all())
        self.optimizer.step()
        if self.monitor is not None and self.monitor.steps_taken % (COMPARED * self.monitor.every) == 0:
            self.monitor.compare_features()
        return time.perf_counter() - begun


def make_network(name: str, size: int) -> nn.Module:
    """The network with random weights and a head for the classes."""
    torch.manual_seed(0)
    network: Any = zoo.load(name, pretrained=False)[0]
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    network.reset_classifier(CLASSES)
    return network.to(memory_format=torch.channels_last)


def compare(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Both kinds of steps, in turn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    labels = torch.arange(options.batch) % CLASSES
    batch = pixels.contiguous(memory_format=torch.channels_last), labels
    plain = Steps(make_network(name, options.size), batch, every=0)
    watched = Steps(make_network(name, options.size), batch, every=options.every)
    for _ in range(2):  # the second copy's first step is monitored, and computes the features at the start
        plain(), watched()
    rounds = []
    for _ in range(options.rounds):
        seconds = [[0.0, 0.0] for _ in range(COMPARED * options.every)]
        for number, pair in enumerate(seconds):
            order = (0, 1) if number % 2 else (1, 0)
            for which in order:
                pair[which] = (plain, watched)[which]()
        rounds.append((sum(one for one, _ in seconds), sum(other for _, other in seconds), seconds))
    overheads = [other / one - 1 for one, other, _ in rounds]
    return {
        "model": name,
        "million parameters": sum(one.numel() for one in plain.network.parameters()) / 1e6,
        "seconds per step": statistics.median(one for *_, seconds in rounds for one, _ in seconds),
        "overhead": statistics.median(overheads),
        "overhead of rounds": [min(overheads), max(overheads)],
        "overhead of a step that is not monitored": statistics.median(
            other / one - 1 for *_, seconds in rounds for one, other in seconds
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = {"size": options.size, "batch": options.batch, "every": options.every, "rounds": options.rounds}
    found: dict[str, Any] = {
        "script": "scripts/bench_monitor.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        **setting,
        "networks": [],
    }
    if options.out and options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if all(before.get(name) == value for name, value in setting.items()):
            found["networks"] = before["networks"]
    for name in options.models:
        if name in [one["model"] for one in found["networks"]]:
            continue
        found["networks"].append(compare(name, options))
        print(json.dumps(found["networks"][-1]), file=sys.stderr, flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
