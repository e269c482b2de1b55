"""All checks of a training set-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.doctor.causes import ranked
from transferkit.doctor.checks import CHECKS, Skipped
from transferkit.doctor.subject import Loss, Subject, cross_entropy, seeded
from transferkit.records import Diagnosis, Preprocessing, Symptom

__all__ = ["examine", "run_check"]


def examine(
    model: nn.Module,
    batch: tuple[Any, Any],
    *,
    loss: Loss = cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
    classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    checks: Sequence[str] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Check a training set-up before its first step; nothing of it is changed.

    Args:
        model: Any PyTorch module, in the mode in which it will be trained.
        batch: (inputs, targets) as the training loop gets them; inputs may be a tuple of the model's arguments.
        loss: (outputs, targets) -> scalar.
        optimizer: As it will be used; None skips the checks that need one.
        classes: K of a classifier; None where targets are no class numbers.
        preprocessing: What the backbone was trained with (`Backbone.spec.preprocessing`); None if it was not.
        checks: Names in `CHECKS`; None for all.
        seed: Of random directions and dropout.

    Returns:
        Symptoms, alarms first and causes before consequences; what was checked and found well; what could not
        be checked.

    Raises:
        OptionError: A check is unknown, or the batch has fewer than two images.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> rows, targets = torch.randn(16, 6), torch.arange(16) % 3
        >>> sgd = torch.optim.SGD(net[2].parameters(), lr=0.1)
        >>> found = examine(net, (rows, targets), optimizer=sgd, classes=3, checks=["optimizer"])
        >>> [one.cause for one in found.symptoms]
        ['not_in_optimizer']
    """
    inputs, targets = batch
    subject = Subject(model, inputs, targets, loss, optimizer, classes, seed, preprocessing)
    symptoms, passed, skipped = list[Symptom](), list[str](), dict[str, str]()
    with seeded(seed), _keeping(model):
        for name in CHECKS if checks is None else checks:
            found, why = run_check(partial(CHECKS[name], subject))
            symptoms += found
            if why:
                skipped[name] = why
            elif not found:
                passed.append(name)
    return Diagnosis(symptoms=ranked(symptoms), passed=tuple(passed), skipped=skipped)


@contextmanager
def _keeping(model: nn.Module) -> Iterator[None]:
    """Gradients, modes and statistics of the model are afterwards as before: a loss may call the model itself."""
    gradients = [(one, None if one.grad is None else one.grad.clone()) for one in model.parameters()]
    buffers = [(one, one.detach().clone()) for one in model.buffers()]
    modes = [(one, one.training) for one in model.modules()]
    try:
        yield
    finally:
        for one, gradient in gradients:
            one.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode


def run_check(check: Callable[[], Iterable[Symptom]]) -> tuple[list[Symptom], str]:
    """The symptoms found before a check ended or gave up, and why it did."""
    found = list[Symptom]()
    try:
        for one in check():
            found.append(one)
    except Skipped as error:
        return found, str(error)
    except OptionError:
        raise
    except Exception as error:  # whatever a person's model or loss raises in a check must not stop the others
        return found, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return found, ""
