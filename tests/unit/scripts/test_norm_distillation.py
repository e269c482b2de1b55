"""Distilling normalisation: nearer to the teacher, nothing else touched, the same twice."""

from __future__ import annotations

import pytest
import torch
from norm_distillation import distil_norms
from torch import nn

from tests.unit.nn.norm.test_conversion import Fused, images_of, make_network
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm.conversion import fit_group_norms


def divergence(student: nn.Module, teacher: nn.Module, images: torch.Tensor) -> float:
    """Sum of p (log p - log q), averaged over images."""
    with torch.no_grad():
        wanted, given = teacher(images).softmax(1), student(images).softmax(1)
    return float((wanted * (wanted / given).log()).sum(1).mean())


def test_distilling_brings_the_student_nearer_and_touches_normalisation_only():
    student, teacher = make_network(Fused), make_network(Fused)
    images = images_of(64)
    fit_group_norms(student, images, blend=0.2)
    with torch.no_grad():  # the toy is near already
        student[4].weight.mul_(1.5)
        student[1].bias.add_(0.5)
    kept = {name: value.clone() for name, value in student.state_dict().items()}
    taught = {name: value.clone() for name, value in teacher.state_dict().items()}
    flags = [parameter.requires_grad for parameter in student.parameters()]
    away = divergence(student, teacher, images)
    losses = distil_norms(student, teacher, images, epochs=10, lr=2e-2, batch=16)
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert divergence(student, teacher, images) < 0.5 * away
    for name, value in student.state_dict().items():
        learns = name in ("1.weight", "1.bias", "4.weight", "4.bias")
        assert torch.equal(value, kept[name]) != learns
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())
    assert [parameter.requires_grad for parameter in student.parameters()] == flags
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_same_twice():
    first, second, teacher = make_network(Fused), make_network(Fused), make_network(Fused)
    losses = []
    for network in (first, second):
        fit_group_norms(network, images_of())
        losses.append(distil_norms(network, teacher, images_of(), epochs=2, seed=3))
    assert losses[0] == losses[1]
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_distilled():
    network, teacher, broken = make_network(), make_network(), images_of()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        distil_norms(network, teacher, broken)
    with pytest.raises(OptionError, match="call fit_group_norms on it first"):
        distil_norms(network, teacher, images_of())
    with pytest.raises(OptionError, match="epochs must be >= 1, got 0\n- lr must be finite"):
        distil_norms(network, network, images_of(), epochs=0, lr=float("nan"))
