"""Settings as Hydra composes them: checked before any folder is made, complaints in this project's words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.renaming import RENAMED, explain_renamed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig

__all__ = ["compose_settings", "config_folder", "data_sources", "named_values", "plain"]

NUMBERS = ("similarity", "cache_limit", "budget", "data.val", "data.test", "train.lr_scale")
WHOLE_NUMBERS = (
    *("image_size", "batch_size", "seed", "data.max_pixels"),
    *("train.epochs", "train.batch_size", "train.folds", "train.views"),
)


def config_folder() -> Path:
    """conf/: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def data_sources() -> list[str]:
    """Names that `data=` may have."""
    return sorted(path.stem for path in (config_folder() / "data").glob("*.yaml"))


def compose_settings(words: Sequence[str], *, job: int | None = None) -> DictConfig:
    """The settings that these words make, Hydra's own under `hydra`.

    Args:
        words: In Hydra's grammar, without flags and sweeps.
        job: Number of the run in its sweep.

    Raises:
        OptionError: They do not fit the configuration, or a value is missing or no number.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _initialized():
        from hydra import compose

        try:
            numbered = [] if job is None else [f"hydra.job.num={job}"]
            composed = compose("config", overrides=[*words, *numbered], return_hydra_config=True)
            missing = sorted(OmegaConf.missing_keys(composed.data))
        except (HydraException, OmegaConfBaseException) as error:
            raise OptionError(_explain(error, words)) from error
    if missing:
        settings = ", ".join(f"{key}=..." for key in missing)
        raise OptionError(f"data={composed.data.source} needs {settings} (see transferkit adapt --help).")
    _check_numbers(composed)
    return composed


@contextmanager
def _initialized() -> Iterator[None]:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def _check_numbers(composed: DictConfig) -> None:
    """Words where a number belongs, all at once."""
    from omegaconf import OmegaConf

    wrong = []
    for key in (*WHOLE_NUMBERS, *NUMBERS):
        value, kind = OmegaConf.select(composed, key), int if key in WHOLE_NUMBERS else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            wrong.append(f"{key} must be a {'whole ' if key in WHOLE_NUMBERS else ''}number, got {value!r}.")
    if wrong:
        raise OptionError(" ".join(wrong))


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint in the words of this project: the key that is not known, and the closest that are."""
    from hydra import compose
    from omegaconf import OmegaConf

    defaults = OmegaConf.to_container(compose("config"), resolve=False)
    assert isinstance(defaults, dict)
    inside = [f"{group}.{key}" for group in ("train", "trainer") for key in defaults[group]]
    known = [*map(str, defaults), *inside, *(f"data.{key}" for key in _data_keys())]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            return f"{override!r} is not a setting. Write key=value; see transferkit adapt --help."
        if key in RENAMED:
            return explain_renamed(key)
        if key.lstrip("+~") not in known and not key.startswith(("hydra", "+", "~")):
            return unknown_name("setting", key, known, remedy="See transferkit adapt --help.")
    groups = data_sources()
    places = {"data.root": ("folder", "manifest"), "data.path": ("manifest",)}
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    for key in given.keys() & places.keys():
        if given.get("data") in groups and given["data"] not in places[key]:
            remedy = "Leave data= out: a folder is data.root=DIR, a manifest data.path=FILE."
            return f"data={given['data']} has no {key}. {remedy}"
    for override in overrides:
        key, _, value = override.partition("=")
        if "," in value and str(error).startswith("Ambiguous value"):
            return f"{override!r} is several values. A list has brackets: {key}=[{value}]; a run for each --multirun."
        if key == "data" and value not in groups:
            return unknown_name("data source", value, groups, remedy="A folder is data.root=DIR.")
    return str(error).split("\n")[0]


def _data_keys() -> set[str]:
    from omegaconf import OmegaConf

    loaded = [OmegaConf.to_container(OmegaConf.load(path)) for path in (config_folder() / "data").glob("*.yaml")]
    groups = [group for group in loaded if isinstance(group, dict)]
    columns = {f"columns.{name}" for group in groups for name in group.get("columns", {})}
    return columns | {str(key) for group in groups for key in group}


def plain(value: Any) -> Any:
    """A list of the settings as Python knows it; anything else as it is."""
    from omegaconf import ListConfig, OmegaConf

    return OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value


def named_values(group: DictConfig | None) -> dict[str, Any]:
    """The settings of a group that are not left open."""
    from omegaconf import OmegaConf

    if group is None:  # as `train=null` leaves it
        return {}
    values = OmegaConf.to_container(group, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if value is not None}
