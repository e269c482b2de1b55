"""Verbs that are Hydra jobs: a folder for each run, sweeps with --multirun."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from transferkit.cli.composition import compose_settings, config_folder, group_choices
from transferkit.cli.dry_run import print_plan, share_passes, take_dry_run
from transferkit.cli.launchers import check_start
from transferkit.cli.outcomes import RunOutcome, collect_outcomes, write_outcome
from transferkit.cli.schema import check_taken, register_schema
from transferkit.cli.sweeps import Sweep, check_runs, differing_words, list_runs
from transferkit.cli.words import MULTIRUN, hydra_words, is_multirun, plain_word, quoted_text
from transferkit.core.distributed import is_first
from transferkit.core.errors import OptionError, TransferkitError
from transferkit.core.paths import MARKER, mark_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun

__all__ = ["EXIT_USER", "Job", "as_typed", "command_line", "current_command", "in_sweep", "output_folder", "stop"]

log = logging.getLogger("transferkit")

EXIT_USER = 2

SHARING = ("checkpoint", "pretrained", "image_size", "geometry", "views", "pooling", "labels", "seed", "cache")
"""Settings that frozen passes depend on, beside model and data."""


@dataclass(frozen=True)
class Job:
    """A verb whose settings are conf/config.yaml and whose output is a run's folder.

    Args:
        verb: Its name.
        run: Does it; what it returns is what Hydra's sweepers compare runs by.
        check: Settings, folder and words of a run, before anything is made -> a sentence to say, maybe empty; raises
            what can be known to be wrong.
        plan: Settings and folder of a run -> what it would do (`dry_run=true`).
        check_closely: What is checked besides where a run has to wait for others: it takes a second.
    """

    verb: str
    run: Callable[[DictConfig], float | None]
    check: Callable[[DictConfig, Path, Sequence[str]], str]
    plan: Callable[[DictConfig, Path], DryRun]
    check_closely: Callable[[DictConfig], object] = bool

    def __call__(self, typed: list[str]) -> None:
        """Check, then run once, or once for each value of a sweep."""
        import hydra

        form, typed = take_dry_run(typed)
        words = hydra_words(typed, sources=group_choices("data"))
        if form:
            print_plan(self._plan(words, typed), form)
            return
        runs = self._check(words)
        names = differing_words(runs) if is_multirun(words) else None
        words = _with_place(words, runs)
        # The first word stays: Lightning starts further processes by it.
        before, sys.argv = sys.argv, [sys.argv[0], *words]
        try:
            from transferkit.strategies import STRATEGIES

            register_schema(set(STRATEGIES) - set(group_choices("strategy")))
            with _own_logging():
                main = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
                job = main(_guarded(self.run, names, typed))
                job() if names is None else _sweep(job, names)
        finally:
            sys.argv = before

    def _plan(self, words: Sequence[str], typed: Sequence[str]) -> DryRun:
        """What the run, or each run of a sweep, would do; checked as for doing it."""
        from transferkit.records import DryRun

        flags, config_dir = _flags(words)
        words = [word for word in words if word not in flags]
        if config_dir is None:  # whose files change what an override may be
            self._check(words)
        if not is_multirun(words):
            return self._plan_run(words, config_dir=config_dir)[0]
        runs = list_runs(words)
        if runs is None:
            raise OptionError("dry_run lists the runs of a sweep from its words; a sweeper of Hydra's makes up these.")
        planned = [self._plan_run(run, config_dir=config_dir, number=number) for number, run in enumerate(runs)]
        shared = share_passes([plan for plan, _ in planned], [inputs for _, inputs in planned])
        return DryRun.of_runs(shared, verb=self.verb, command=shlex.join(["transferkit", *self.verb.split(), *typed]))

    def _plan_run(
        self, words: Sequence[str], *, config_dir: Path | None, number: int | None = None
    ) -> tuple[DryRun, str]:
        """What a run would do; and what its passes depend on."""
        settings = compose_settings(words, job=number, config_dir=config_dir)
        folder = _folder_of(settings, number)
        if config_dir is not None:
            self.check(settings, folder, words)
        with redirect_stdout(sys.stderr):  # whatever a network prints: what is on stdout is the plan
            plan = self.plan(settings, folder)
        more = [] if number is None else [f"out={as_typed(folder)}"]
        given = [word for word in words if number is None or not word.startswith("out=")]
        verb = self.verb if config_dir is None else f"{self.verb} {shlex.quote(f'--config-dir={config_dir}')}"
        plan = replace(plan, verb=self.verb, command=command_line(verb, given, settings, *more))
        inputs = {name: str(settings.get(name)) for name in (*SHARING, "model", "models", "data")}
        return plan, repr(inputs)

    def _check(self, words: Sequence[str]) -> list[list[str]]:
        """Find what is wrong before any folder is made; returns the words of each run, as far as they are known."""
        if any(word.startswith("-") and word not in MULTIRUN for word in words):
            return []  # Hydra's other flags (--cfg, --config-dir, ...) change what an override may be
        notes: list[str] = []
        if is_multirun(words):
            runs = list_runs(words) or []
            check_runs(runs, lambda run, number: self._check_run(run, notes, number))
        else:
            runs = [list(words)]
            self._check_run(words, notes)
        for note in notes:
            print(note, file=sys.stderr)
        return runs

    def _check_run(self, words: Sequence[str], notes: list[str], number: int | None = None) -> None:
        """Raise what is wrong with a run; a sentence to print about it is added to the notes."""
        settings = compose_settings(words, job=number)
        check_taken(self.verb, words)
        if not is_first():
            return
        folder = _folder_of(settings, number)
        if launcher := settings.hydra.runtime.choices.get("launcher"):
            check_start(launcher, settings, in_sweep=number is not None)
        note = self.check(settings, folder, words)
        if number is not None:
            self.check_closely(settings)
        notes += [note] if note else []


def _with_place(words: list[str], runs: Sequence[Sequence[str]]) -> list[str]:
    """The words; where runs start elsewhere, in another working folder, that of the sweep is told in full."""
    if not runs or not any(word.startswith("launcher=") for word in words):
        return words
    folder = Path(compose_settings(runs[0]).hydra.sweep.dir).absolute()
    return [*words, f"hydra.sweep.dir={quoted_text(str(folder))}"]


def _sweep(job: Callable[[], object], names: Sequence[str]) -> None:
    """Start all runs; say how good they are, and leave with exit code 2 if one failed.

    Args:
        job: What Hydra starts.
        names: The settings of each run that differ from the others', as far as they are known.
    """
    from transferkit.cli.sweep_folder import CURRENT

    CURRENT.set(None)
    try:
        job()
    except KeyboardInterrupt as stopped:
        if stopped.args or stopped.__cause__ is not None:  # of a run in this process, which has tidied up
            raise
        raise KeyboardInterrupt(f"runs in other processes may have left something in {CURRENT.get()}.") from stopped
    except SystemExit:  # a launcher that lost a run; Hydra has said how
        if CURRENT.get() is None or not names:
            raise
    folder = CURRENT.get()
    if folder is None:  # the settings were shown, no more
        return
    sweep = Sweep(names=names, outcomes=collect_outcomes(folder))
    sweep.print_scores()
    if failures := sweep.describe_failures():
        print(f"Error: {failures}", file=sys.stderr)
        sys.exit(EXIT_USER)


def _folder_of(settings: DictConfig, number: int | None) -> Path:
    """The folder of a run, or of one of a sweep."""
    from omegaconf import OmegaConf

    if number is None:
        return Path(OmegaConf.select(settings, "hydra.run.dir"))
    return Path(OmegaConf.select(settings, "hydra.sweep.dir"), str(number))


def _flags(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Flags other than --multirun, all of them of one folder of configuration files; and that folder.

    Raises:
        OptionError: There is another flag.
    """
    flags = [word for word in words if word.startswith("-") and word not in MULTIRUN]
    other = [word for word in flags if not word.startswith("--config-dir=")]
    if other or len(flags) > 1:
        raise OptionError(f"dry_run goes with no {(other or flags)[-1]}: of Hydra's flags it knows --config-dir=DIR.")
    return flags, Path(flags[0].partition("=")[2]) if flags else None


def stop(error: TransferkitError, *, debug: bool) -> NoReturn:
    """One short paragraph, exit code 2; with debug the traceback too."""
    if debug:
        traceback.print_exception(error)
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Restore the root logger once the job is over: its log file belongs to one run."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            handler.close()
        root.handlers, root.level = handlers, level


def _guarded(
    run: Callable[[DictConfig], float | None], names: Sequence[str] | None, typed: Sequence[str]
) -> Callable[[DictConfig], float | None]:
    """A job whose user errors end in `SystemExit` instead of Hydra's traceback, and whose failure leaves no folder.

    In a sweep, whose runs have names and may be in other processes, failures are noted, and the next run starts.
    """

    home, starter = Path.cwd(), os.getpid()

    def guarded(settings: DictConfig) -> float | None:
        if os.getpid() != starter and home.is_dir():  # paths are relative to where the sweep was started
            os.chdir(home)
        # Lightning's further processes are given these words again, as they were typed.
        sys.argv = [sys.argv[0], *(typed if names is None else _task_words())]
        folder = output_folder()
        try:
            if is_first():
                _mark(folder)
            score = run(settings)
        except TransferkitError as error:
            _discard_folder()
            if names is None:
                stop(error, debug=bool(settings.debug))
            return _note(names, failure=str(error))
        except KeyboardInterrupt as stopped:
            _discard_folder()
            raise KeyboardInterrupt(*_resume_hint()) from stopped
        except Exception as error:
            log.exception("this is a bug")
            if names is None:
                raise
            traceback.print_exc()
            where = as_typed(folder) / "log.txt"
            return _note(names, failure=f"{type(error).__name__}: {error} (this is a bug; its traceback is in {where})")
        return score if names is None else _note(names, score=score)

    return guarded


def _note(names: Sequence[str], *, score: float | None = None, failure: str = "") -> float | None:
    """Write down what became of this run of a sweep; returns what Hydra's sweepers compare."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    number = config.job.num
    words = names[number] if number < len(names) else " ".join(_task_words())
    folder = str(as_typed(output_folder()))
    outcome = RunOutcome(number=number, words=words, folder=folder, score=score, failure=failure)
    if is_first():
        write_outcome(Path(config.sweep.dir), outcome)
    return float("nan") if failure else score


def _mark(folder: Path) -> None:
    """Mark the folder, and that of the sweep, as ours while the run is still going on."""
    from hydra.core.hydra_config import HydraConfig

    if in_sweep():
        mark_folder(Path(HydraConfig.get().sweep.dir))
    mark_folder(folder)


def _discard_folder() -> None:
    """Remove the run's folder unless it holds more than what was written at the start."""
    if not is_first():
        return
    logging.shutdown()
    folder = output_folder()
    if {path.name for path in folder.iterdir()} - {".hydra", "log.txt", MARKER}:
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    for name in ("log.txt", MARKER):
        (folder / name).unlink(missing_ok=True)
    while folder.is_dir() and not any(folder.iterdir()) and folder != Path.cwd():
        folder.rmdir()
        folder = folder.parent


def _resume_hint() -> list[str]:
    """The command that resumes a run that was stopped in training, as a sentence."""
    out, training = output_folder(), sys.modules.get("transferkit.workflow.training_folder")
    if training is None or not (out / training.WORK).is_dir():
        return []
    words = [word for word in _task_words() if not word.startswith(("out=", "resume=", "launcher=", "hydra"))]
    return [f"resume it with: transferkit {_with_config_dir('adapt')} {shlex.join([*words, f'out={out}'])}"]


def in_sweep() -> bool:
    """Whether this run is one of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def output_folder() -> Path:
    """The folder of this run."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def as_typed(folder: Path) -> Path:
    """Relative to the working folder where it lies inside."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _task_words() -> list[str]:
    """The settings of this run, as typed."""
    from hydra.core.hydra_config import HydraConfig

    return [plain_word(word) for word in HydraConfig.get().overrides.task]


def current_command(verb: str, settings: DictConfig, *more: str) -> str:
    """The command that repeats this run alone."""
    from hydra.core.hydra_config import HydraConfig

    words = list(HydraConfig.get().overrides.task)
    verb = _with_config_dir(verb)
    if not in_sweep():
        return command_line(verb, words, settings, *more)
    alone = [word for word in words if not word.startswith("out=")]
    return command_line(verb, alone, settings, f"out={as_typed(output_folder())}", *more)


def _with_config_dir(verb: str) -> str:
    """The verb with the --config-dir= of this run, quoted for a shell."""
    from hydra.core.hydra_config import HydraConfig

    given = [one.path for one in HydraConfig.get().runtime.config_sources if one.provider == "command-line"]
    return shlex.join([*shlex.split(verb), *(f"--config-dir={as_typed(Path(one))}" for one in given)])


def command_line(verb: str, words: Sequence[str], settings: DictConfig, *more: str) -> str:
    """The command with these settings, quoted for a shell, and the seed with it.

    Args:
        verb: First word, or words: "doctor labels"; quoted for a shell.
        words: In Hydra's grammar.
        settings: What they made.
        more: Further words, as a person would type them.
    """
    shown = [plain_word(word) for word in words if not word.startswith(("-", "hydra", "launcher="))]
    seed = [] if any(word.startswith("seed=") for word in shown) else [f"seed={settings.seed}"]
    return shlex.join(["transferkit", *shlex.split(verb), *shown, *more, *seed])
