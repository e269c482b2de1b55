"""Classes known by a sentence: the head is the text embeddings of a text-image model; nothing is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit import zoo
from transferkit.core.errors import OptionError, list_problems
from transferkit.core.intervals import wilson_interval
from transferkit.nn import TransferModel
from transferkit.records import Choice
from transferkit.scarce.zero_shot import Described
from transferkit.workflow.session import Session

__all__ = ["check_prompts", "classify_by_prompts"]

PLACE = "{}"
"""Stands for the class's name in a prompt."""

SOURCE = "open_clip/"


def check_prompts(prompts: Any, classes: Any, *, model: Any, checkpoint: Any) -> tuple[str, ...]:
    """The prompts as a tuple.

    Raises:
        OptionError: Something is wrong; all that is wrong is in the message.
    """
    given = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    problems = [f"prompt {one!r} has no {PLACE}, where the class's name goes" for one in given if PLACE not in str(one)]
    if not given:
        problems.append(f"prompts is empty; 'a photo of a {PLACE}' is a usual one")
    if isinstance(classes, str) or any(not str(name).strip() for name in classes):
        problems.append(f"classes is a list of names, got {classes!r}")
    if not isinstance(model, str) or not model.startswith(SOURCE):
        shown = model if isinstance(model, str) else type(model).__name__
        problems.append(f"prompts need a text-image model, model={SOURCE}NAME, got {shown}")
    elif checkpoint is None:
        problems.append("checkpoint=FILE is missing: the weights of the text-image model")
    if problems:
        raise OptionError(list_problems("zeroshot cannot work with these prompts:", problems))
    return tuple(str(one) for one in given)


def classify_by_prompts(session: Session, prompts: Sequence[str], classes: Sequence[str] = ()) -> Described:
    """A classifier over the classes of the images and others, from their names alone.

    A class is the mean of its prompts' embeddings, of length 1 again; a logit is its cosine with the image's embedding
    times the factor of the model's training.

    Args:
        session: An open_clip backbone with its weights file, and labelled images to measure on.
        prompts: Sentences with {}.
        classes: Names of further classes.

    Returns:
        A model whose classes are those of the images, then the others; and its accuracy on the training images.

    References:
        Radford et al., ICML 2021. Deviation: where a picture is read in several views, their logits are averaged.
    """
    own = session.data.summary.classes
    names = (*own, *(name for name in map(str, classes) if name not in own))
    architecture = session.backbone.spec.architecture
    weight, scale = _embed_classes(architecture, session.options.checkpoint, names, prompts)
    stage = session.backbone.stages[-1].name
    model = TransferModel(session.backbone, stages=[stage], pooling="avg", classes=names)
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(scale * weight))
        model.linear.bias.zero_()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    right = _answers(session, stage, weight) == session.measured.labels
    low, high = wilson_interval(int(right.sum()), len(right))
    said = (
        f"{len(names)} classes by {len(prompts)} {'prompt' if len(prompts) == 1 else 'prompts'} ({prompts[0]!r}"
        f"{', ...' if len(prompts) > 1 else ''}); nothing was fitted.",
        f"Accuracy on the {len(right):,} labelled training images, none of which was used, among all {len(names)} "
        f"classes: {100 * right.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f}).",
    )
    choice = Choice(strategy="linear_probe", stage=stage, mode="given", reasons=said)
    return Described(model.eval(), choice, float(right.mean()), len(right))


def _embed_classes(
    architecture: str, checkpoint: Any, names: Sequence[str], prompts: Sequence[str]
) -> tuple[npt.NDArray[np.float32], float]:
    """(K, D) float32 of length 1, and the factor of the cosines."""
    words = [name.replace("_", " ") for name in names]
    texts = [prompt.replace(PLACE, word) for word in words for prompt in prompts]
    found, scale = zoo.encode_texts(architecture, checkpoint, texts)
    means = found.reshape(len(names), len(prompts), -1).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True), scale


def _answers(session: Session, stage: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Class of each training image, from the bank."""
    features = session.measured.features(session.measured.train)
    start = features.blocks[stage].start
    block = slice(start, start + weight.shape[1])  # the mean comes first; of a vector there is nothing else
    return np.concatenate([(chunk[:, block] @ weight.T).argmax(axis=1) for chunk in features.chunks()])
