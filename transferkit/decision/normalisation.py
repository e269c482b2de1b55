"""What becomes of a backbone's normalisation while it is fine-tuned, before anything is measured."""

from __future__ import annotations

__all__ = ["SMALL_BATCH", "choose_norm"]

SMALL_BATCH = 16
"""Images at once in one process below which a batch's statistics are too noisy to train on: ResNet-50's error on
ImageNet rises from 23.7 to 24.8 % between 16 and 8 (Wu & He, ECCV 2018)."""


def choose_norm(
    *, pretrained: bool, normalises_batches: bool, at_once: int, processes: int = 1, on_gpus: bool = False
) -> tuple[str, str]:
    """The kind of normalisation to fine-tune with, and a sentence that says why.

    Args:
        pretrained: Whether the weights were trained with the statistics that the layers hold.
        normalises_batches: Whether there is any batch normalisation.
        at_once: Images that one process sees at once, >= 1.
        processes: How many train together.
        on_gpus: Whether they do so on GPUs, where they can share a batch's statistics.

    Returns:
        "keep", "frozen", "sync" or "group".

    Example:
        >>> choose_norm(pretrained=True, normalises_batches=True, at_once=2)[0]
        'frozen'
        >>> choose_norm(pretrained=False, normalises_batches=True, at_once=2)[0]
        'group'
    """
    if not normalises_batches:
        return "keep", "The backbone has no batch normalisation, so nothing depends on the size of a batch."
    if pretrained:
        return "frozen", (
            "Batch normalisation keeps the statistics that the weights were trained with, whatever the size of a batch."
        )
    if at_once >= SMALL_BATCH:
        return (
            "keep",
            f"Random weights have no statistics worth keeping; {at_once} images at once are enough for new ones.",
        )
    if on_gpus and processes * at_once >= SMALL_BATCH:
        return "sync", (
            f"Random weights have no statistics worth keeping; {at_once} images at once are too few for new ones, "
            f"those of {processes} processes together are enough."
        )
    return "group", (
        f"Random weights have no statistics worth keeping, and {at_once} images at once are too few for new ones: "
        "group normalisation needs none."
    )
