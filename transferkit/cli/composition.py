"""Settings as Hydra composes them: checked before any folder is made, complaints in this project's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from transferkit.cli.launchers import check_launcher
from transferkit.cli.schema import PLACES, find_value_problems, known_settings, register_schema
from transferkit.core.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig

__all__ = ["GROUPS", "compose_settings", "config_folder", "group_choices"]

GROUPS = {
    "backbone": "backbone",
    "data": "data source",
    "strategy": "strategy",
    "finetune": "way of fine-tuning",
    "trainer": "trainer",
    "tune": "search",
    "experiment": "experiment",
    "launcher": "launcher",
}
"""Group of the configuration -> what one of its choices is called in messages."""

REMEDIES = {
    "backbone": "Any backbone is model=NAME; transferkit zoo lists them.",
    "data": "A folder is data.root=DIR.",
    "finetune": "Single values are train.epochs=10.",
    "trainer": "Single values are trainer.precision=bf16-mixed.",
    "tune": "Your own DIR/tune/NAME.yaml is --config-dir=DIR tune=NAME; single values are tune.trials=50; how many "
    "stages are trained is unfreeze=2.",
}

HELP = "The verb's --help lists them."


def config_folder() -> Path:
    """conf/: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def group_choices(group: str) -> list[str]:
    """Names that a group's choice may have: the files in its folder of conf/."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def compose_settings(words: Sequence[str], *, job: int | None = None, config_dir: Path | None = None) -> DictConfig:
    """The settings that these words make, Hydra's own under `hydra`.

    Args:
        words: In Hydra's grammar, without flags and sweeps.
        job: Number of the run in its sweep.
        config_dir: A folder with further configuration files (--config-dir), which may have what is unknown here.

    Raises:
        OptionError: They do not fit the configuration, or a value is missing or no number.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with _initialized():
        from hydra import compose

        words = list(words)
        strategy = check_words(words).get("strategy", "auto") if config_dir is None else "auto"
        has_file = strategy in group_choices("strategy")
        words = [word for word in words if has_file or not word.startswith("strategy=")]
        words += [] if config_dir is None else [f"hydra.searchpath=['file://{config_dir.absolute()}']"]
        try:
            numbered = [] if job is None else [f"hydra.job.num={job}"]
            composed = compose("config", overrides=[*words, *numbered], return_hydra_config=True)
            if not has_file:  # if it is not registered either, that is said later, with everything else that is wrong
                composed.strategy = strategy
        except (HydraException, OmegaConfBaseException) as error:
            raise OptionError(_explain(error)) from error
    source = composed.data.source
    if source in PLACES and composed.data[PLACES[source]] is None:
        raise OptionError(f"data={source} needs data.{PLACES[source]}=... .")
    return composed


def _explain(error: Exception) -> str:
    """The first line of Hydra's complaint and, where that only names the word, of what it came from."""
    said = [str(one).split("\n")[0] for one in (error, error.__cause__) if one is not None]
    return ": ".join(dict.fromkeys(said))


@contextmanager
def _initialized() -> Iterator[None]:
    from hydra import initialize_config_dir

    register_schema()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def check_words(words: Sequence[str]) -> dict[str, Any]:
    """Setting -> value of these words; what is wrong with single ones is said before Hydra composes them.

    Args:
        words: In Hydra's grammar, without flags and sweeps.

    Raises:
        OptionError: A setting is unknown or has the wrong type, or a group has no such choice.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, value = _split(word)
        _check_choice(key, value)
        given[key.lstrip("+")] = value
    check_launcher(given.get("launcher"))
    values = {name: value for name, value in given.items() if name not in GROUPS or name == "strategy"}
    if problems := list(find_value_problems(values)):
        raise OptionError(" ".join(problems))
    _check_places(given)
    return given


def _split(word: str) -> tuple[str, Any]:
    """Key and value of a word, the value as Hydra reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, text = word.partition("=")
    if word.startswith("~"):
        raise OptionError(f"{word!r}: a setting cannot be removed. Leave it out for its default.")
    if not equals:
        raise OptionError(f"{word!r} is not a setting. Write key=value; the verb's --help lists them.")
    _check_key(key)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise OptionError(f"{word!r} is not a setting: {str(error).splitlines()[0]}") from error
    if override.is_sweep_override():
        raise OptionError(
            f"{word!r} is several values. A list has brackets: {key}=[{text}]; a run for each --multirun."
        )
    value = override.value()
    if key in ("train", "data.columns") and not isinstance(value, (Mapping, NoneType)):
        raise OptionError(f"{key} is several settings. Set one of them: {_inside(key, known_settings())}.")
    if isinstance(value, Mapping) and key != "tune.space":  # whose names are hyperparameters
        for name in value:
            _check_key(f"{key}.{name}")
    return key, value


def _check_key(key: str) -> None:
    name = key.lstrip("+")
    known = dict.fromkeys([*known_settings(), *GROUPS])
    if key.startswith("trainer.") and key not in (trainer := _trainer_settings()):
        raise OptionError(unknown_name("setting", key, trainer, remedy=f"Any other of Lightning's is +{key}=..."))
    if not name.startswith(("hydra", "trainer.")) and name not in known:
        raise OptionError(unknown_name("setting", name, known, remedy=HELP))


def _trainer_settings() -> list[str]:
    """Options of Lightning's trainer that conf/trainer/ lists."""
    from omegaconf import OmegaConf

    listed = OmegaConf.load(config_folder() / "trainer" / "default.yaml")
    return [f"trainer.{name!s}" for name in listed]


def _inside(group: str, known: Iterable[str]) -> str:
    return ", ".join(f"{name}=..." for name in known if name.startswith(f"{group}."))


def _check_choice(key: str, value: Any) -> None:
    """Whether a group has this choice."""
    choices = group_choices(key) if key in GROUPS and key != "strategy" else []
    if choices and value not in choices:
        raise OptionError(unknown_name(GROUPS[key], str(value), choices, remedy=REMEDIES.get(key, "")))


def _check_places(given: Mapping[str, Any]) -> None:
    """Whether the data source that is named knows the places that are."""
    places = {"data.root": ("folder", "manifest"), "data.path": ("manifest",)}
    for key in given.keys() & places.keys():
        if "data" in given and given["data"] not in places[key]:
            remedy = "Leave data= out: a folder is data.root=DIR, a manifest data.path=FILE."
            raise OptionError(f"data={given['data']} has no {key}. {remedy}")
