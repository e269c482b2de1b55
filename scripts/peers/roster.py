"""Who takes part: each contestant with its environment, its arguments and what it is called in the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regret.paths import MODEL

from transferkit.core.errors import OptionError, unknown_name

OURS = ("adapt", "probe", "search")
"""Contestants of this project."""

OUR_PYTHON = "ours"
"""The environment of `OURS`: the Python that runs the benchmark."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the tables.

    Args:
        name: Short name: the key in the file of results.
        label: What it is.
        module: File in `contestants/`.
        venv: Environment: `OUR_PYTHON`, or the name of a `requirements-<venv>.txt`.
        epochs: Passes over the training images, if it counts in epochs.
        options: Its own settings.
        default: Whether it runs if none is named.
    """

    name: str
    label: str
    module: str
    venv: str
    epochs: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    default: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is this project's."""
        return self.venv == OUR_PYTHON

    def arguments(self) -> list[str]:
        """Its own command-line arguments."""
        epochs = [] if self.epochs is None else ["--epochs", str(self.epochs)]
        return epochs + [word for name, value in self.options.items() for word in ("--option", f"{name}={value}")]


def _ours(name: str, label: str, *, default: bool = True, **options: str) -> Contestant:
    return Contestant(
        name=name,
        label=label,
        module="transferkit_adapt",
        venv=OUR_PYTHON,
        options={"model": MODEL, **options},
        default=default,
    )


def _fastai(name: str, epochs: int, label: str, **options: str) -> Contestant:
    return Contestant(name=name, label=label, module="fastai_fine_tune", venv="fastai", epochs=epochs, options=options)


ROSTER: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        _ours("adapt", "transferkit adapt, default"),
        _ours("probe", "transferkit adapt, strategy=linear_probe", strategy="linear_probe"),
        _ours("search", "transferkit adapt, mode=search", mode="search", default=False),
        _fastai("fastai_5", 5, "fastai fine_tune(5)"),
        _fastai("fastai_14", 14, "fastai fine_tune(14)"),
        _fastai("fastai_14_aug", 14, "fastai fine_tune(14), aug_transforms()", augment="yes"),
        Contestant(
            name="lightning_frozen",
            label="Lightning, frozen backbone, linear head, 30 epochs",
            module="lightning_frozen",
            venv="plain",
            epochs=30,
        ),
        Contestant(
            name="all_layers",
            label="plain torch, all layers at 1e-4, 15 epochs",
            module="all_layers",
            venv="plain",
            epochs=15,
        ),
        Contestant(
            name="all_layers_1e-3",
            label="plain torch, all layers at 1e-3, 15 epochs",
            module="all_layers",
            venv="plain",
            epochs=15,
            options={"lr": "1e-3"},
        ),
        Contestant(
            name="timm",
            label="timm factories, layer decay 0.7, 15 epochs",
            module="timm_fine_tune",
            venv="plain",
            epochs=15,
        ),
        Contestant(
            name="sklearn",
            label="scikit-learn, logistic regression on penultimate features",
            module="sklearn_features",
            venv="plain",
        ),
        Contestant(
            name="autogluon",
            label="AutoGluon MultiModal, its defaults",
            module="autogluon_multimodal",
            venv="autogluon",
        ),
        Contestant(
            name="autogluon_16",
            label="AutoGluon MultiModal, batches of 16",
            module="autogluon_multimodal",
            venv="autogluon",
            options={"batch": "16"},
        ),
    )
}


def choose(names: Sequence[str] | None) -> list[Contestant]:
    """Contestants by name, in the roster's order; None: those that run by default.

    Raises:
        OptionError: A name is unknown.

    Example:
        >>> [one.name for one in choose(["timm", "probe"])]
        ['probe', 'timm']
    """
    for name in names or ():
        if name not in ROSTER:
            raise OptionError(unknown_name("contestant", name, ROSTER))
    return [one for one in ROSTER.values() if (one.default if names is None else one.name in names)]
