"""Where the runs of a sweep are started: what each choice of `launcher=` needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING

from transferkit.core.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["LAUNCHERS", "check_launcher", "check_start"]


@dataclass(frozen=True, kw_only=True)
class LauncherPackages:
    """What has to be installed for a launcher.

    Args:
        packages: Import names.
        install: The command that installs them.
    """

    packages: tuple[str, ...]
    install: str


LAUNCHERS = {
    "local": LauncherPackages(
        packages=("hydra_plugins.hydra_joblib_launcher",), install="pip install 'transferkit[cluster]'"
    ),
    # Its metadata asks for cloudpickle < 3, which joblib and thereby scikit-learn exclude; its code does not mind.
    "ray": LauncherPackages(
        packages=("ray", "hydra_plugins.hydra_ray_launcher"),
        install="pip install 'transferkit[ray]', then pip install --no-deps hydra-ray-launcher==1.2.2",
    ),
    "slurm": LauncherPackages(
        packages=("hydra_plugins.hydra_submitit_launcher",), install="pip install 'transferkit[cluster]'"
    ),
}
"""Choice of `launcher=` -> what it needs."""


def check_launcher(name: str | None) -> None:
    """Whether a launcher's packages are installed.

    Args:
        name: One of `LAUNCHERS`, or another, of which nothing is known.

    Raises:
        MissingDependencyError: They are not.
    """
    if name in LAUNCHERS and not all(map(_is_there, LAUNCHERS[name].packages)):
        raise MissingDependencyError(f"launcher={name} needs more packages: {LAUNCHERS[name].install}")


def check_start(launcher: str, settings: DictConfig, *, in_sweep: bool) -> None:
    """Whether a launcher can start this run here: it is one of a sweep, and trains in one process.

    Args:
        launcher: One of `LAUNCHERS`.
        settings: Of the run.
        in_sweep: Whether it is one of a sweep.

    Raises:
        OptionError: It cannot.
    """
    if not in_sweep:
        raise OptionError("launcher= says where the runs of a sweep start. Add --multirun, or leave it out.")
    trainer = settings.trainer
    if str(trainer.devices) not in ("None", "1") or str(trainer.num_nodes) not in ("None", "1"):
        raise OptionError(
            "launcher= starts each run in a process of its own, and trainer.devices wants several for one run. Leave "
            "launcher out: then one run after another has all devices (docs/scale.md)."
        )
    if launcher == "slurm" and which("sbatch") is None:
        raise OptionError("launcher=slurm: there is no sbatch on this machine. Start it where jobs are submitted from.")


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
