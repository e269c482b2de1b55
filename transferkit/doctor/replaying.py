"""A training step that was not finite, run again from its capsule: the first layer or parameter that was not."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.doctor.capsule import as_drawn, read_capsule
from transferkit.doctor.plain_content import from_plain
from transferkit.doctor.subject import Loss, cross_entropy
from transferkit.records import Diagnosis, Symptom

__all__ = ["replay"]

PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precision of a trainer -> that of autocast."""

HUGE = 1e4
"""Size of outputs or of a loss that earlier steps must have blown up."""

DIVERGED = "Earlier steps have diverged: divide the learning rate by ten, warm it up, or clip gradients."

SAME = 1e-3
"""Relative difference of two losses of the same step, on one device or another, from which on it is another step."""

NAMED = 5
"""Layers, parameters or rows that a sentence names."""


@dataclass(frozen=True)
class _Seen:
    """The first output that was not finite.

    Args:
        name, kind: Path and class of its module; "" for the whole network.
        inputs: What went in, as a phrase.
        fine: Whether that was finite.
        largest: Its largest finite size.
        weights: Names of its own parameters that are not finite.
        before: Path of the module that had last given a finite output; "" for none.
    """

    name: str
    kind: str
    inputs: str
    fine: bool
    largest: float
    weights: tuple[str, ...]
    before: str


def replay(path: str | Path, *, model: nn.Module | None = None, loss: Loss | None = None) -> Diagnosis:
    """Run a capsule's step again, and name the first layer whose output, or parameter whose gradient, is not finite.

    Nothing is trained; random generators are as before afterwards.

    Args:
        path: `nan_capsule.pt`, as `DoctorCallback` and `adapt` write it.
        model: A network or LightningModule like the one in training, not changed. None builds that of a run of
            `adapt`.
        loss: (outputs, targets) -> scalar, for batches (inputs, targets). None: the `training_step` of a
            LightningModule, else cross-entropy.

    Returns:
        Causes `activation_not_finite`, `loss_not_finite`, `gradient_not_finite`; the note `not_reproduced` if the step
        is finite this time.

    Raises:
        RunFolderError: The file is no capsule, or its network cannot be built from its name.
        OptionError: The model does not fit the capsule, or does not run without its trainer.
    """
    capsule = read_capsule(path)
    module = _loaded(capsule, model)
    device = next((one.device for one in module.parameters()), torch.device("cpu"))
    batch = _moved(from_plain(capsule["batch"]), device)
    compute = _loss_of(module, batch, loss, capsule)
    recorded = str(capsule["environment"]["device"])
    skipped = {} if recorded == str(device) else {"same device": f"the step ran on {recorded}, this is {device}"}
    if capsule["left_out"]:
        skipped["whole batch"] = f"it held objects that a file cannot keep: {', '.join(capsule['left_out'])}"
    with as_drawn(capsule["generators"], device), torch.enable_grad():
        symptoms, found = _run(module, batch, compute, capsule)
    then = float(capsule["loss"])
    if found is not None and math.isfinite(then) and not math.isclose(found, then, rel_tol=SAME):
        skipped["same loss"] = f"it was {then:.6g}, and is {found:.6g} when the step is run again"
    return Diagnosis(symptoms=tuple(symptoms or [_not_again(capsule)]), skipped=skipped)


def _run(
    module: nn.Module, batch: Any, compute: Callable[[], torch.Tensor], capsule: Mapping[str, Any]
) -> tuple[list[Symptom], float | None]:
    """What is not finite, and the loss; None where it was not reached."""
    if strange := _strange_inputs(batch):
        return [strange], None
    broken = [name for name, one in module.named_parameters() if not one.isfinite().all()]
    seen, handles, outputs, before = list[_Seen](), [], list[Any](), [""]

    def watch(name: str) -> Any:
        def hook(one: nn.Module, inputs: Any, output: Any) -> None:
            outputs[:] = [output]
            if not seen and not all(part.isfinite().all() for part in _tensors(output)):
                seen.append(_describe(name, one, inputs, before[0]))
            before[0] = name

        return hook

    handles = [one.register_forward_hook(watch(name)) for name, one in module.named_modules()]
    order = list[str]()
    for name, one in module.named_parameters():
        if one.requires_grad:
            note = partial(_note, order, name)
            handles.append(one.register_post_accumulate_grad_hook(note))  # type: ignore[no-untyped-call]
    try:
        with _precision(capsule["precision"], next(module.parameters()).device):
            value = compute()
        if seen or not value.isfinite().all():
            if seen:
                return [_layer_symptom(seen[0], broken, batch)], None
            return [_loss_symptom(float(value.detach().sum()), outputs, batch)], None
        value.backward()  # type: ignore[no-untyped-call, unused-ignore]
    finally:
        for handle in handles:
            handle.remove()
    gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    bad = [name for name in order if name in gradients and not gradients[name].isfinite().all()]
    found = float(value.detach())
    return ([_gradient_symptom(bad, found)] if bad else []), found


def _note(order: list[str], name: str, parameter: torch.Tensor) -> None:
    order.append(name)


def _loaded(capsule: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    """The network with the weights and modes of the capsule, without gradients."""
    if model is None:
        if capsule["network"] is None:
            name = f" ({capsule['module']})" if "module" in capsule else ""
            raise OptionError(
                f"This capsule is of a network of your own{name}: in Python, "
                "transferkit.doctor.replay(path, model=...) with one like it."
            )
        from transferkit.doctor.rebuilding import rebuild_module

        module: nn.Module = rebuild_module(capsule["network"])
    else:
        module = copy.deepcopy(model)
    state = capsule["state"]
    prefix = _prefix(state, module)
    own = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
    if half := next((one.dtype for one in own.values() if one.dtype in (torch.float16, torch.bfloat16)), None):
        module.to(half)
    try:
        module.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise OptionError(f"The model does not fit the capsule: {str(error).splitlines()[-1].strip()}") from error
    module.train()
    evaluating = {name.removeprefix(prefix) for name in capsule["evaluating"] if name.startswith(prefix)}
    for name, one in module.named_modules():
        one.training = name not in evaluating
        for parameter in one.parameters(recurse=False):
            parameter.grad = None
    return module


def _prefix(state: Mapping[str, Any], module: nn.Module) -> str:
    """What stands before the model's names in the capsule: a LightningModule may have held it under any name.

    Raises:
        OptionError: Nothing does.
    """
    wanted = set(module.state_dict())
    name = min(wanted, default="")
    prefixes = sorted({key.removesuffix(name) for key in state if key.endswith(name)}, key=len)
    for prefix in prefixes:
        if all(f"{prefix}{one}" in state for one in wanted):
            return prefix
    raise OptionError(f"The model does not fit the capsule, which has no {name!r}. Pass one like that in training.")


def _loss_of(module: Any, batch: Any, loss: Loss | None, capsule: Mapping[str, Any]) -> Callable[[], torch.Tensor]:
    """What computes the loss of the batch."""
    if loss is None and hasattr(module, "batch_loss") and hasattr(module, "begin_batch"):  # a TransferModule

        def own() -> torch.Tensor:
            module.begin_batch(capsule["epoch"], capsule["batch_index"], rank=capsule["rank"])
            return module.batch_loss(batch, epoch=capsule["epoch"], epochs=capsule["epochs"])

        return own
    if loss is None and hasattr(module, "training_step"):
        return lambda: _training_step(module, batch, capsule)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise OptionError(
            f"The batch is no pair (inputs, targets) but {type(batch).__name__}: pass the LightningModule."
        )
    inputs, targets = batch
    arguments = inputs if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields") else (inputs,)
    chosen = cross_entropy if loss is None else loss
    return lambda: chosen(module(**inputs) if isinstance(inputs, Mapping) else module(*arguments), targets)


class _PastTrainer:
    """What a training step may ask its trainer: where in training it is."""

    def __init__(self, capsule: Mapping[str, Any]) -> None:
        self.current_epoch, self.global_step = capsule["epoch"], capsule["step"]
        self.max_epochs, self.global_rank = capsule["epochs"], capsule["rank"]
        self.world_size = capsule.get("processes", 1)
        self.accumulate_grad_batches = capsule["accumulated"]
        self.precision, self.training, self.sanity_checking = capsule["precision"], True, False
        self.is_global_zero, self.logger, self.loggers = capsule["rank"] == 0, None, list[Any]()


def _log_nothing(*args: object, **kwargs: object) -> None: ...


def _training_step(module: Any, batch: Any, capsule: Mapping[str, Any]) -> torch.Tensor:
    if not getattr(module, "automatic_optimization", True):
        raise OptionError(
            "training_step steps its optimizers itself. Pass a module whose training_step returns the loss that was "
            "not finite, or the network and its loss: replay(path, model=..., loss=...)."
        )
    module._trainer = _PastTrainer(capsule)
    module.log = module.log_dict = _log_nothing
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    try:
        found = module.training_step(batch, *((capsule["batch_index"],) if takes_index else ()))
    except Exception as error:
        raise OptionError(
            f"training_step does not run without its trainer ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}). Pass the network and its loss: "
            "replay(path, model=..., loss=...)."
        ) from error
    value = found["loss"] if isinstance(found, Mapping) else found
    if not isinstance(value, torch.Tensor):
        raise OptionError("training_step returns no loss. Pass the network and its loss: replay(..., loss=...).")
    return value


def _precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    kind = PRECISIONS.get(name)
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(one, device) for name, one in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [_moved(one, device) for one in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of floats, however they are nested."""
    if isinstance(value, torch.Tensor):
        return [value.detach()] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


# ---- Words ----------------------------------------------------------------------------------------------------------


def _range(value: Any) -> str:
    """The values of all tensors in something, as a phrase."""
    values = [one.float().flatten() for one in _tensors(value)]
    if not values:
        return "no tensors of floats"
    whole = torch.cat(values)
    finite = whole[whole.isfinite()]
    strange = len(whole) - len(finite)
    lost = f"{strange:,} of {len(whole):,} values NaN or infinite" if strange else ""
    inside = f"values from {float(finite.min()):.3g} to {float(finite.max()):.3g}" if len(finite) else ""
    return ", ".join(part for part in (inside, lost) if part)


def _largest(value: Any) -> float:
    """Largest finite size of all values of floats; 0 without any."""
    sizes = [one.abs()[one.isfinite()] for one in _tensors(value)]
    return max((float(one.max()) for one in sizes if one.numel()), default=0.0)


def _describe(name: str, one: nn.Module, inputs: Any, before: str) -> _Seen:
    weights = tuple(key for key, tensor in one.named_parameters(recurse=False) if not tensor.isfinite().all())
    fine = all(part.isfinite().all() for part in _tensors(inputs))
    return _Seen(name, type(one).__name__, _range(inputs), fine, _largest(inputs), weights, before)


def _layer_symptom(seen: _Seen, broken: list[str], batch: Any) -> Symptom:
    where = f"layer {seen.name!r} ({seen.kind})" if seen.name else f"the network itself ({seen.kind})"
    if seen.weights or (broken and not seen.fine):
        culprits = [f"{seen.name}.{one}" for one in seen.weights] or broken
        evidence = f"The output of {where} is not finite: {_list(culprits)} held NaN or infinity before the step."
        remedy = "An earlier step broke them: lower the learning rate or clip gradients, and watch from the first step."
    elif not seen.fine:
        source = f"the output of {seen.before!r}" if seen.before else "the batch"
        evidence = f"The input of {where} is not finite ({seen.inputs}), though {source} is."
        remedy = (
            "Look at what happens between the two, outside of any layer: a division, logarithm or square root; add an "
            "epsilon or clamp."
        )
    elif _largest(batch) > HUGE:
        evidence = f"The first output that is not finite is that of {where}; the batch holds {_range(batch)}."
        remedy = "Normalise the inputs: divide by their standard deviation, and look for values that mean 'missing'."
    elif seen.largest > HUGE:
        evidence = f"The first output that is not finite is that of {where}; its input: {seen.inputs}."
        remedy = DIVERGED
    else:
        evidence = f"The first output that is not finite is that of {where}; its input: {seen.inputs}."
        remedy = (
            "Look at what it computes (division, logarithm, square root, exponential, overflow in half precision): add "
            "an epsilon or clamp, lower the learning rate, use bfloat16 or loss scaling."
        )
    items = (seen.name,) if seen.name else ()
    return Symptom(cause="activation_not_finite", severity="alarm", evidence=evidence, remedy=remedy, items=items)


def _strange_inputs(batch: Any) -> Symptom | None:
    """Images that are not finite themselves, by their rows."""
    for one in _tensors(batch):
        if one.dim() and not one.isfinite().all():
            rows = (~one.flatten(1).isfinite() if one.dim() > 1 else ~one.isfinite().unsqueeze(1)).any(dim=1)
            found = [str(row) for row in rows.nonzero().flatten().tolist()]
            return Symptom(
                cause="loss_not_finite",
                severity="alarm",
                evidence=f"The batch itself is not finite: {len(found)} of {len(rows)} rows hold NaN or infinity "
                f"(number {_list(found)}).",
                remedy="Look at how these inputs are loaded and normalised (division by a standard deviation of zero).",
                items=tuple(found),
            )
    return None


def _loss_symptom(value: float, outputs: list[Any], batch: Any) -> Symptom:
    largest = max((float(one.abs().max()) for one in _tensors(outputs) if one.numel()), default=0.0)
    targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    shown = [one for one in (targets,) if isinstance(one, torch.Tensor) and one.numel()]
    said = f"; targets from {float(shown[0].min()):.3g} to {float(shown[0].max()):.3g}" if shown else ""
    return Symptom(
        cause="loss_not_finite",
        severity="alarm",
        evidence=f"All layers give finite outputs, but the loss is {value}; outputs: {_range(outputs)}{said}.",
        remedy=DIVERGED
        if largest > HUGE
        else "Look at the loss function: a logarithm of zero, a mean over no values, weights that sum to zero, "
        "targets out of range.",
    )


def _not_again(capsule: Mapping[str, Any]) -> Symptom:
    processes = capsule.get("processes", 1)
    shared = processes > 1 and capsule["what"] == "gradient"
    elsewhere = (
        f"The gradient is the mean of {processes} processes: replay the capsules of the others (nan_capsule-rank*.pt). "
        if shared
        else ""
    )
    return Symptom(
        cause="not_reproduced",
        severity="note",
        evidence=f"All outputs, the loss and the gradients are finite when the step is run again; its "
        f"{capsule['what']} was {capsule['loss'] if capsule['gradient'] is None else capsule['gradient']}.",
        remedy=f"{elsewhere}Compare the device, the precision ({capsule['precision']}) and versions, or look at the "
        "micro-batches before it.",
    )


def _gradient_symptom(bad: list[str], value: float) -> Symptom:
    return Symptom(
        cause="gradient_not_finite",
        severity="alarm",
        evidence=f"The loss is finite ({value:.4g}), but {len(bad)} gradients are not; the first in the backward pass "
        f"is that of {bad[0]!r}.",
        remedy=DIVERGED
        if abs(value) > HUGE
        else "Look at what follows it: the slope of a square root or norm at zero, of a division, or of a branch of "
        "where() that is not taken; add an epsilon inside, or clamp.",
        items=tuple(bad[:NAMED]),
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
