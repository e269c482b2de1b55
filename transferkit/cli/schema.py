"""The shape of Hydra's configuration: the classes of `transferkit.options`, and how their values become arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from transferkit.cli.dry_run import DryRunOptions
from transferkit.core.errors import OptionError
from transferkit.core.limits import check_image_size
from transferkit.options import (
    AdaptOptions,
    DataOptions,
    FitOptions,
    MeasureOptions,
    Recipe,
    ReviewOptions,
    option,
    value_problem,
)
from transferkit.scarce.zero_shot_options import DescriptionOptions
from transferkit.tuning.search_options import SearchOptions

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["PLACES", "arguments_of", "check_taken", "find_value_problems", "known_settings", "register_schema"]

MISSING = "???"
"""OmegaConf's mark of a value that must be given."""


PLACES = {"folder": "root", "manifest": "path"}
"""Data source -> the setting inside `data` that says where it is."""


TAKEN_BY = {
    "limit": ("doctor labels", "doctor images"),
    "models": ("rank",),
    "tune": ("tune",),
    "tune.": ("tune",),
    "attributes": ("zeroshot",),
    "method": ("zeroshot",),
    "prompts": ("zeroshot",),
    "classes": ("zeroshot",),
    "unlabelled": ("adapt", "doctor"),
    "teacher": ("adapt",),
}
"""Settings, or groups of them, that not every verb takes -> those that do."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of a manifest's columns, where they differ."""

    path: Any = None
    label: Any = None
    split: Any = None
    group: Any = None


@dataclass(frozen=True, kw_only=True)
class DataSettings(DataOptions):
    """The group `data`: where the images are, beside the options of how they are opened."""

    source: str = MISSING
    path: Any = None
    image_size: int | None = option(None, "Side of the input in pixels.", check=check_image_size)
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True, kw_only=True)
class Settings(FitOptions, MeasureOptions, ReviewOptions, DescriptionOptions):
    """The whole configuration of adapt, analyze, rank and doctor."""

    model: str = MISSING
    models: Any = MISSING
    data: DataSettings = field(default_factory=DataSettings)
    train: Recipe | None = field(default_factory=Recipe)
    tune: SearchOptions = field(default_factory=SearchOptions)
    debug: bool = False


def register_schema(strategies: Iterable[str] = ()) -> None:
    """Tell Hydra the types and defaults of all settings; config.yaml starts from them.

    Args:
        strategies: Registered ones without a file in conf/strategy; each gets an entry as if it had one.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(Settings)
    for node in (schema, schema.data, schema.data.columns, schema.train, schema.tune):
        OmegaConf.set_readonly(node, None)  # frozen classes make frozen nodes
    store = ConfigStore.instance()
    store.store(name="settings", node=schema)
    for name in strategies:
        store.store(group="strategy", name=name, node={"strategy": name}, package="_global_")


def known_settings() -> dict[str, Field[Any]]:
    """Setting -> the field behind it: top-level names, `train.NAME`, `tune.NAME`, `data.NAME`, `data.columns.NAME`."""
    groups = {"train.": Recipe, "tune.": SearchOptions, "data.": DataSettings, "data.columns.": Columns}
    inside = {"": Settings, **groups}
    known = {f"{group}{one.name}": one for group, kind in inside.items() for one in fields(kind)}
    return {**known, **{one.name: one for one in fields(DryRunOptions)}}  # taken before Hydra sees the words


def check_taken(verb: str, words: Iterable[str]) -> None:
    """Raise if a setting would have no effect with this verb.

    Args:
        verb: One of the Hydra jobs, "doctor labels".
        words: Settings as typed.

    Raises:
        OptionError: A setting is of another verb.

    Example:
        >>> check_taken("doctor labels", ["limit=20"])
    """
    for name in (word.partition("=")[0].lstrip("+") for word in words):
        group, dot, _ = name.partition(".")
        takers = TAKEN_BY.get(group + dot, (verb,))
        if verb not in takers:
            known = " and ".join(f"transferkit {one}" for one in takers)
            raise OptionError(f"{verb} takes no {name}=, only {known}. See transferkit {verb.split()[0]} --help.")


def find_value_problems(given: dict[str, Any]) -> Iterator[str]:
    """A sentence for each value that cannot be.

    Args:
        given: Setting -> value.
    """
    known = known_settings()
    for name, value in given.items():
        if name in known and (problem := value_problem(known[name], value, name=name)):
            yield problem


def arguments_of(settings: DictConfig, function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of one of transferkit's verbs that the settings give.

    Args:
        settings: As Hydra composed them.
        function: `adapt`, `analyze`, `rank`, `tune` or `decide`.
    """
    data = {one.name: _plain(settings.data[one.name]) for one in fields(DataOptions)}
    data["columns"] = {name: value for name, value in data["columns"].items() if value is not None} or None
    data["root"] = data["root"] if settings.data.source == "manifest" else None
    known = (*fields(AdaptOptions), *fields(ReviewOptions), *fields(DescriptionOptions))
    top = {one.name: _plain(settings[one.name]) for one in known if one.name in settings}
    for group in ("train", "trainer"):
        top[group] = {name: value for name, value in (top[group] or {}).items() if value is not None}
    place = PLACES.get(settings.data.source)
    search = {one.name: _plain(settings.tune[one.name]) for one in fields(SearchOptions)}
    named = {"model": settings.model, "data": settings.data.source if place is None else settings.data[place]}
    taken = inspect.signature(function).parameters
    return {name: value for name, value in {**top, **search, **data, **named}.items() if name in taken}


def _plain(value: Any) -> Any:
    """A list or group of the settings as Python knows it; anything else as it is."""
    from omegaconf import Container, OmegaConf

    return OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
