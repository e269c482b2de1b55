"""A step that was not finite, kept in a file: batch, random generators, weights and optimizers from just before it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transferkit.core.errors import RunFolderError
from transferkit.core.provenance import environment
from transferkit.doctor.plain_content import to_plain

__all__ = ["CAPSULE", "StepKeeper", "as_drawn", "read_capsule"]

CAPSULE = "nan_capsule.pt"
"""Name of the file."""

SCHEMA = 1


class StepKeeper:
    """Keeps what is needed to write down the current step, should it turn out not to be finite.

    Per step that is a reference to the batch, the states of the random generators, and a copy of the buffers that the
    forward pass changes, as running statistics. Weights and optimizers are not copied: they change after the loss is
    known.

    Args:
        module: The network in training.
        path: The file.

    Attributes:
        written: Whether the file was written; only the first such step is.
    """

    def __init__(self, module: nn.Module, path: Path) -> None:
        self.path, self.written = path, False
        self._module = module
        self._versions = dict[str, tuple[int, int]]()
        self._changing = set[str]()
        self._copies = dict[str, torch.Tensor]()
        self._batch: Any = None
        self._generators: dict[str, Any] = {}
        self._evaluating: list[str] = []

    def begin(self, batch: Any) -> None:
        """Note a batch that is about to be run."""
        if self.written:
            return
        self._batch, self._generators = batch, _generators(self._module)
        self._copy_buffers()

    def _copy_buffers(self) -> None:
        """All in the first step; then running statistics, and what was written or replaced since, as a version tells
        (kernels of batch normalisation write without a new version)."""
        buffers = dict(self._module.named_buffers())
        versions = {name: (id(one), one._version) for name, one in buffers.items()}
        if self._versions:
            self._changing |= {name for name, one in versions.items() if self._versions.get(name) != one}
        else:
            self._changing = set(buffers)
        first, self._versions = not self._versions, versions
        with torch.no_grad():
            known = [
                name for name in self._changing if name in buffers and _fits(self._copies.get(name), buffers[name])
            ]
            if known:
                torch._foreach_copy_([self._copies[name] for name in known], [buffers[name] for name in known])
            for name in self._changing & set(buffers) - set(known):
                self._copies[name] = buffers[name].detach().clone()
        if first:
            self._changing = {name for name in buffers if name.endswith(("running_mean", "running_var"))}

    def write(
        self,
        *,
        loss: float,
        gradient: float | None,
        optimizers: Sequence[torch.optim.Optimizer],
        facts: Mapping[str, Any],
        network: Mapping[str, Any] | None,
    ) -> None:
        """Write the file, before the optimizer's step; the batch is released.

        Args:
            loss: Of the batch.
            gradient: Norm of its gradient before clipping, if that was not finite; None otherwise.
            optimizers: Their states.
            facts: Where in training it is: step, epoch, batch_index, rank, precision.
            network: How to build the network again; None if that takes a module of the person's own.

        Raises:
            RunFolderError: The file cannot be written.
        """
        state = dict(self._module.state_dict())
        state |= {name: copy for name, copy in self._copies.items() if name in state}
        batch, left_out = to_plain(self._batch)
        device = next((one.device for one in self._module.parameters()), torch.device("cpu"))
        content = {
            "schema": SCHEMA,
            "what": "loss" if gradient is None else "gradient",
            "loss": loss,
            "gradient": gradient,
            **facts,
            "batch": batch,
            "left_out": left_out,
            "generators": self._generators,
            "state": to_plain(state)[0],
            "evaluating": [name for name, one in self._module.named_modules() if not one.training],
            "optimizers": [to_plain(one.state_dict())[0] for one in optimizers],
            "network": None if network is None else dict(network),
            "environment": environment(seed=0, device=str(device)),
        }
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, partial)
            partial.replace(self.path)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        finally:
            partial.unlink(missing_ok=True)
        self.written, self._batch = True, None


def read_capsule(path: str | Path) -> dict[str, Any]:
    """The content of a capsule; nothing is unpickled but tensors and plain values.

    Raises:
        RunFolderError: It is no capsule, or of another version.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        schema = found["schema"]
    except Exception as error:  # whatever a foreign file makes torch raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunFolderError(f"{path} is no capsule of a training step: {reason}") from error
    if schema != SCHEMA:
        raise RunFolderError(f"The capsule {path} has schema {schema}, this version reads {SCHEMA}.")
    return dict(found)


def _fits(copy: torch.Tensor | None, one: torch.Tensor) -> bool:
    return copy is not None and (copy.shape, copy.dtype, copy.device) == (one.shape, one.dtype, one.device)


def _generators(module: nn.Module) -> dict[str, Any]:
    device = next((one.device for one in module.parameters()), torch.device("cpu"))
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - of libraries that accept no generator
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


@contextmanager
def as_drawn(generators: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Inside, the random generators are as they were before the step; afterwards, as they were before the block."""
    kind, keys, *rest = generators["numpy"]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(generators["torch"])
        if device.type == "cuda" and generators["cuda"] is not None:
            torch.cuda.set_rng_state(generators["cuda"], device)
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        version, state, gauss = generators["python"]
        random.setstate((version, tuple(state), gauss))
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
