"""Default choice of the normalisation for fine-tuning, before any measurement."""

from __future__ import annotations

__all__ = ["SMALL_BATCH", "choose_norm"]

SMALL_BATCH = 16
"""Images per forward pass of one process below which batch statistics are too noisy to train on: ResNet-50's error on
ImageNet increases from 23.7 to 24.8 % between 16 and 8 (Wu & He, ECCV 2018)."""


def choose_norm(
    *, pretrained: bool, normalises_batches: bool, at_once: int, processes: int = 1, on_gpus: bool = False
) -> tuple[str, str]:
    """The kind of normalisation to fine-tune with, and a sentence with the reason.

    Args:
        pretrained: Whether the weights were trained with the layers' statistics.
        normalises_batches: Whether there is any batch normalisation.
        at_once: Images per forward pass of one process, >= 1.
        processes: World size.
        on_gpus: Whether they train on GPUs, where batch statistics can be synchronised.

    Returns:
        "keep", "frozen", "sync" or "group".

    Example:
        >>> choose_norm(pretrained=True, normalises_batches=True, at_once=2)[0]
        'frozen'
        >>> choose_norm(pretrained=False, normalises_batches=True, at_once=2)[0]
        'group'
    """
    if not normalises_batches:
        return "keep", "The backbone has no batch normalisation, so nothing depends on the batch size."
    if pretrained:
        return "frozen", (
            "Batch normalisation keeps the statistics that the weights were trained with, at any batch size."
        )
    if at_once >= SMALL_BATCH:
        return (
            "keep",
            f"Random weights have no useful statistics; {at_once} images per batch are enough to estimate new ones.",
        )
    if on_gpus and processes * at_once >= SMALL_BATCH:
        return "sync", (
            f"Random weights have no useful statistics; {at_once} images per batch are too few to estimate new ones, "
            f"those of {processes} processes together are enough."
        )
    return "group", (
        f"Random weights have no useful statistics, and {at_once} images per batch are too few to estimate new ones: "
        "group normalisation needs none."
    )
