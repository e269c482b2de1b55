"""The command line: a verb, then Hydra overrides. The only place that knows Hydra.

`adapt`, `analyze` and `rank` are Hydra jobs (a folder each, sweeps with --multirun); other verbs borrow its grammar.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transferkit.errors import OptionError, TransferkitError, list_problems, unknown_name
from transferkit.processes import is_first

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.result import Result
    from transferkit.types import DataSummary, Evidence, ProbeScore, Ranking, TrainingRecord

__all__ = ["main"]

log = logging.getLogger("transferkit")

EXIT_USER = 2
EXIT_INTERRUPTED = 130

USAGE = """\
transferkit: a classifier for your images from a pretrained backbone. It measures before it decides.

  transferkit                                     adapt the packaged backbone to scikit-learn's digits, offline
  transferkit adapt data=folder data.root=DIR     your own images: DIR/<class>/* or DIR/{train,val,test}/<class>/*
  transferkit analyze data=folder data.root=DIR   only measure and advise
  transferkit rank models='packaged/*' data=folder data.root=DIR   which backbone, before any training
  transferkit predict run=DIR images=PATH         classify images with a finished run
  transferkit export run=DIR                      a finished run as ONNX
  transferkit zoo [pattern=resnet*]               which backbones there are
  transferkit cache [clear=true]                  what the feature bank holds

`transferkit VERB --help` says more.
"""

HELP = {
    "adapt": """\
transferkit adapt [key=value ...]: measure, decide, train, verify; leaves model, result and report in one folder.

  transferkit adapt                                                    scikit-learn's digits, offline
  transferkit adapt data=folder data.root=DIR image_size=96 out=runs/x
  transferkit adapt data=manifest data.path=labels.csv                 columns path, label [, split, group]
  transferkit adapt model=timm/resnet50.a1_in1k data=folder data.root=DIR
  transferkit adapt model=torchvision/resnet18 checkpoint=my.pth data=folder data.root=DIR

  model=NAME            packaged/..., timm/..., torchvision/... (transferkit zoo lists them)
  checkpoint=FILE       your weights for that architecture, or the folder of a finished run of it
  data=digits|folder|manifest, data.root=DIR, data.path=FILE
  data.test=0.2         share of train held back for the test, where the data has no test split; as it is, only where
                        it has no splits at all
  data.strict=true      what would be set aside is an error; data.max_pixels=N: larger images are set aside
  data.columns.label=NAME   what a manifest calls the column; also .path, .split, .group; data.root=DIR: where its
                        paths start
  image_size=N          side in pixels; smaller is faster
  geometry=auto         or crop (the checkpoint's own), full, squash, pad: how one view shows a picture
  views=auto            or 1, or crop+squash+pad[+mirror]: features and predictions are averaged over these; a pass each
  strategy=auto         or linear_probe, few_layers (the last ones), many_layers, lp_ft (all, from a solved head),
                        surgical, norm_only, bias_only, lora; with stage=NAME for what the head reads (joined: all
                        stages; selected: their useful features)
  tune=K                the last K stages learn (few_layers, many_layers, surgical); tune=[blocks.5,top]: these
  train.epochs=N        and train.lr=, train.lr_scale=, train.optimizer=, train.augment=, ...: how to fine-tune
  trainer.precision=bf16-mixed, trainer.devices=2, trainer.strategy=ddp (or fsdp): options for Lightning's trainer
  resume=auto           the same command with the same out=DIR takes a killed run up; false starts afresh
  mode=evidence         or search: fine-tuning is tried on held-back images before it is chosen; or rule: the
                        textbook's matrix on the number of images and their similarity to the source
  norm=auto             or frozen, keep, or what to swap batch normalisation for (group, renorm, ...): fine-tuning
  budget=SECONDS        limit on fitting what strategy=auto chooses; with mode=search on all trials as well
  similarity=0..1       if you know better than what is measured; source=DIR: images like the backbone's own
  head=auto             or ridge, logistic, average (of the two)
  class_weight=none     or balanced, auto
  out=DIR               where the run goes
  cache=DIR, cache_limit=GB, device=auto, batch_size=N, seed=0, progress=false, debug=true

  transferkit adapt --multirun seed=0,1,2     one run per value
  transferkit adapt --cfg job                 show the settings and stop
""",
    "analyze": """\
transferkit analyze [key=value ...]: one frozen pass over your images; prints how well each stage tells the classes
apart and what to do, and leaves evidence.json in the run's folder. Takes the same keys as adapt.

  transferkit analyze data=folder data.root=DIR image_size=96
""",
    "rank": """\
transferkit rank [key=value ...]: which backbone suits your images, from features only. One frozen pass each over
the training images; prints ranks with their intervals, costs and measures; leaves ranking.json and ranking.html.

  transferkit rank models='packaged/*' data=folder data.root=DIR image_size=96
  transferkit rank models=[packaged/tf_efficientnet_lite0,timm/resnet18.a1_in1k] data=folder data.root=DIR

  models=[NAME,...]     as for adapt's model; a name with * stands for what it matches and is on this machine
  image_size=N          for all of them; without it each runs at its checkpoint's own
  geometry=..., views=...   as for adapt; auto is one view here, each checkpoint's own crop
  data=..., data.root=DIR, data.path=FILE, pretrained, pooling, class_weight, cache=DIR, cache_limit=GB,
  device=auto, batch_size=N, seed=0, progress=false, out=DIR   as for adapt

What is computed stays in the feature bank: the same command again, or adapt with the winner, reads it there.
""",
    "predict": """\
transferkit predict run=DIR images=PATH [key=value ...]: classify images with a finished run.

  transferkit predict run=runs/x images=photo.jpg
  transferkit predict run=runs/x images=folder/ out=answers.csv

  run=DIR         the folder that adapt wrote
  images=PATH     an image, a folder of images, or a list: images=[a.jpg,b.jpg]
  out=FILE        .csv or .json; without it the answers are printed
  format=csv      or json, for printing
  device=auto
""",
    "export": """\
transferkit export run=DIR [key=value ...]: a finished run for other programs.

  transferkit export run=runs/x out=model.onnx

  run=DIR         the folder that adapt wrote
  out=FILE        default: DIR/model.onnx
  format=onnx     takes (N, 3, S, S) uint8 pixels, gives (N, K) probabilities; where predictions are averaged over
                  several geometries (N, G, 3, S, S): the metadata's "geometries" say which; mirror images and the
                  mean are made inside
""",
    "zoo": """\
transferkit zoo [key=value ...]: which backbones there are.

  transferkit zoo pattern='*efficientnet*' source=timm
  transferkit zoo offline=true                what can be loaded without any network

  pattern=GLOB    matched on the name
  source=NAME     packaged, timm, torchvision
  offline=true    only those whose weights are on this machine
""",
    "cache": """\
transferkit cache [key=value ...]: what the feature bank holds, and clearing it.

  transferkit cache
  transferkit cache clear=true                all of it
  transferkit cache clear=NAME                one shelf

  cache=DIR       another bank than the usual one
""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `transferkit` command.

    Exits with 0, with 2 after an error that the user can mend, with 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given and "=" not in given[0] and not given[0].startswith("-") else None
    wants_help = any(word in ("-h", "--help", "help") for word in given)
    if wants_help or verb == "help" or "--version" in given:
        _print_help(verb, version="--version" in given)
        return
    verb = verb or "adapt"
    try:
        if verb not in VERBS:
            raise OptionError(unknown_name("verb", verb, VERBS, remedy="See transferkit --help."))
        VERBS[verb](given)
    except TransferkitError as error:
        _stop(error, debug="debug=true" in given)
    except KeyboardInterrupt as stopped:
        print(f"\nInterrupted; {stopped or 'nothing half-written was left behind.'}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _print_help(verb: str | None, *, version: bool) -> None:
    from transferkit import __version__

    print(__version__ if version else HELP.get(verb or "", USAGE), end="\n" if version else "")


def _stop(error: TransferkitError, *, debug: bool) -> NoReturn:
    """One short paragraph, exit code 2; with debug the traceback too."""
    if debug:
        raise error
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER)


# ---- Hydra jobs ------------------------------------------------------------------------------------------------------


def _config_folder() -> Path:
    """conf/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def _job(run: Callable[[DictConfig], None]) -> Callable[[list[str]], None]:
    """A verb whose settings are conf/config.yaml and whose output is a run's folder."""

    def verb(overrides: list[str]) -> None:
        import hydra

        _check_overrides(overrides)
        # The first word stays: Lightning starts further processes by it.
        before, sys.argv = sys.argv, [sys.argv[0], *overrides]
        try:
            with _own_logging():
                hydra.main(version_base="1.3", config_path=str(_config_folder()), config_name="config")(_guarded(run))()
        finally:
            sys.argv = before

    return verb


@contextmanager
def _own_logging() -> Iterator[None]:
    """The root logger as it was before, once the job is over: its log file belongs to one run."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            handler.close()
        root.handlers, root.level = handlers, level


def _check_overrides(overrides: Sequence[str]) -> None:
    """Compose once beforehand, so that a mistyped key is met with the keys there are, before any folder is made.

    Raises:
        OptionError: If the overrides do not fit the configuration.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = [word for word in overrides if not word.startswith("-")]
    if len(plain) != len(overrides):
        return  # Hydra's own flags (--multirun, --cfg, ...) change what an override may be; Hydra says so itself
    with initialize_config_dir(str(_config_folder()), version_base="1.3"):
        try:
            composed = compose("config", overrides=plain, return_hydra_config=True)
            missing = sorted(OmegaConf.missing_keys(composed.data))
        except (HydraException, OmegaConfBaseException) as error:
            raise OptionError(_explain(error, plain)) from error
    if missing:
        settings = ", ".join(f"{key}=..." for key in missing)
        raise OptionError(f"data={composed.data.source} needs {settings} (see transferkit adapt --help).")
    _check_numbers(composed)


NUMBERS = ("similarity", "cache_limit", "budget", "data.val", "data.test", "train.lr_scale")
WHOLE_NUMBERS = (
    "image_size",
    "batch_size",
    "seed",
    "data.max_pixels",
    "train.epochs",
    "train.batch_size",
    "train.folds",
    "train.views",
)


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
        if key.lstrip("+~") not in known and not key.startswith(("hydra", "+", "~")):
            return unknown_name("setting", key, known, remedy="See transferkit adapt --help.")
    groups = sorted(path.stem for path in (_config_folder() / "data").glob("*.yaml"))
    for override in overrides:
        key, _, value = override.partition("=")
        if "," in value and str(error).startswith("Ambiguous value"):
            return f"{override!r} is several values. A list has brackets: {key}=[{value}]; a run for each --multirun."
        if key == "data" and value not in groups:
            return unknown_name("data source", value, groups, remedy="A folder is data=folder data.root=DIR.")
    return str(error).split("\n")[0]


def _data_keys() -> set[str]:
    from omegaconf import OmegaConf

    loaded = [OmegaConf.to_container(OmegaConf.load(path)) for path in (_config_folder() / "data").glob("*.yaml")]
    groups = [group for group in loaded if isinstance(group, dict)]
    columns = {f"columns.{name}" for group in groups for name in group.get("columns", {})}
    return columns | {str(key) for group in groups for key in group}


def _guarded(run: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Errors a user can mend leave as `SystemExit`, past Hydra's own traceback; a failed run leaves no folder."""

    def guarded(settings: DictConfig) -> None:
        try:
            run(settings)
        except TransferkitError as error:
            _discard_folder()
            _stop(error, debug=bool(settings.debug))
        except KeyboardInterrupt as stopped:
            _discard_folder()
            raise KeyboardInterrupt(*_way_back()) from stopped
        except Exception:
            log.exception("this is a bug")
            raise

    return guarded


def _discard_folder() -> None:
    """Remove the run's folder if all that is in it is what Hydra put there; anything else is not ours to remove."""
    if not is_first():
        return
    logging.shutdown()
    folder = _output_folder()
    if {path.name for path in folder.iterdir()} - {".hydra", "log.txt"}:
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    (folder / "log.txt").unlink(missing_ok=True)
    while folder.is_dir() and not any(folder.iterdir()) and folder != Path.cwd():
        folder.rmdir()
        folder = folder.parent


def _way_back() -> list[str]:
    """How a run that was stopped in training goes on, in words."""
    from hydra.core.hydra_config import HydraConfig

    out, training = _output_folder(), sys.modules.get("transferkit.training")
    if training is None or not (out / training.WORK).is_dir():
        return []
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith(("out=", "resume="))]
    return [f"this takes it up: {shlex.join(['transferkit', 'adapt', *words, f'out={out}'])}"]


def _data_arguments(settings: DictConfig) -> dict[str, Any]:
    """The arguments of `adapt` and `analyze` that say what the data is."""
    data = settings.data
    place = {"folder": "root", "manifest": "path"}.get(data.source)
    return {
        "data": data.source if place is None else data[place],
        "root": data.get("root") if data.source == "manifest" else None,
        "columns": {str(key): str(name) for key, name in data.get("columns", {}).items() if name is not None} or None,
        **({} if data.max_pixels is None else {"max_pixels": data.max_pixels}),
        "val": data.val,
        "test": data.test,
        "strict": data.strict,
    }


SHARED = (
    "model", "checkpoint", "pretrained", "image_size", "geometry", "views", "similarity", "source", "pooling",
    "class_weight", "cache", "cache_limit", "device", "batch_size", "seed", "progress",
)  # fmt: skip


def _shared_arguments(settings: DictConfig) -> dict[str, Any]:
    return {**{key: _plain(settings[key]) for key in SHARED}, **_data_arguments(settings)}


def _command(verb: str) -> str:
    from hydra.core.hydra_config import HydraConfig

    return shlex.join(["transferkit", verb, *HydraConfig.get().overrides.task])


def _output_folder() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def _adapt(settings: DictConfig) -> None:
    from transferkit.api import adapt

    out = _output_folder()
    result = adapt(
        **_shared_arguments(settings),
        **_deciding_arguments(settings),
        head=settings.head,
        resume=settings.resume,
        out=out,
        command=_command("adapt"),
    )
    if not is_first():
        return
    for line in _summary(result, out):
        print(line)
        log.info(line)


def _deciding_arguments(settings: DictConfig) -> dict[str, Any]:
    """What `adapt` and `decide` take alike."""
    return {
        **{key: settings[key] for key in ("strategy", "stage", "mode", "norm", "budget")},
        "tune": _plain(settings.tune),
        "train": _named_values(settings.train),
        "trainer": _named_values(settings.trainer),
    }


def _plain(value: Any) -> Any:
    """A list of the settings as Python knows it; anything else as it is."""
    from omegaconf import ListConfig, OmegaConf

    return OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value


def _named_values(group: DictConfig) -> dict[str, Any]:
    """The settings of a group that are not left open."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(group, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value is not None}


def _nearness(evidence: Evidence) -> list[str]:
    """How near the data is to what the backbone has seen, in a sentence."""
    detail = evidence.similarity_detail
    if detail is None:
        return []
    if detail.value is None:
        return [detail.note]
    between = "" if detail.low is None else f" ({detail.low:.2f} to {detail.high:.2f})"
    return [f"Similarity to what the backbone was trained on: {detail.value:.2f}{between} of 1. {detail.note}"]


def _summary(result: Result, out: Path) -> list[str]:
    lines = [
        *_data_lines(result.evidence.data, "report.html"),
        *result.decision.reasons,
        *_training_lines(result.record.training),
        "",
    ]
    for split, metrics in result.metrics.items():
        lines.append(
            f"{split} accuracy {100 * metrics.accuracy:.1f} % ({100 * metrics.low:.1f} to {100 * metrics.high:.1f}) "
            f"on {metrics.images:,} images"
        )
        if result.record.is_disappointing(split):
            lines.append(f"That is less than was expected: the {split} images differ from the training images.")
    evidence = result.evidence
    everything = sum(evidence.data.size(split) for split in evidence.data.counts)
    lines.append(
        f"{result.record.seconds['total']:.1f} s in all, {evidence.seconds['frozen pass']:.1f} s of it the frozen pass "
        f"({evidence.images_computed:,} of {everything:,} images computed, the rest from the bank)"
    )
    return [*lines, f"report: {out / 'report.html'}"]


def _training_lines(training: TrainingRecord | None) -> list[str]:
    """What was trained, at which rate, and what is worth knowing of how it went."""
    if training is None:
        return []
    from transferkit.train import claims_table

    table = [f"  {line}" for line in claims_table(training.claims)]
    return [training.how, *training.notes, "What was trained:", *table]


def _data_lines(data: DataSummary, file: str) -> list[str]:
    """What the data is, how it came to be split, and what the audit found; the rest of that is in a file."""
    counts = ", ".join(f"{data.size(split):,} {split}" for split in data.counts)
    lines = [f"{data.origin}: {data.num_classes} classes, {counts}. {data.split_rule}"]
    # Why nothing will be measured on test images is told even to those who asked for it.
    told = [one for one in data.findings if one.severity in ("set_aside", "warning") or one.kind == "no_test_split"]
    if told:
        lines.append(list_problems("The audit found:", [finding.message for finding in told]))
    if more := len(data.findings) - len(told):
        lines.append(f"{more} more {'note' if more == 1 else 'notes'} on the data: see {file} in the run's folder.")
    return [*lines, ""]


def _analyze(settings: DictConfig) -> None:
    import json

    from transferkit.api import analyze, decide
    from transferkit.serialise import to_json

    if settings.mode == "search":
        raise OptionError("analyze only measures; mode=search trains. Use transferkit adapt mode=search.")
    evidence = analyze(**_shared_arguments(settings))
    decision = decide(evidence, **_deciding_arguments(settings), batch_size=settings.batch_size, device=settings.device)
    plain = {"schema": 1, "evidence": to_json(evidence), "decision": to_json(decision)}
    out = _output_folder() / "evidence.json"
    out.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    rows = [(score.stage, score.method, str(score.dim), *_accuracy_cells(score)) for score in evidence.probes]
    for line in _data_lines(evidence.data, "evidence.json"):
        print(line)
    _print_table(("stage", "method", "features", "accuracy", "95 % interval"), rows)
    print("\n".join(["", *_nearness(evidence), *decision.reasons, "", f"evidence: {out}"]))


def _accuracy_cells(score: ProbeScore) -> tuple[str, str]:
    if score.accuracy is None:
        return "unknown", ""
    accuracy, low, high = score.interval
    return f"{100 * accuracy:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"


ADAPT_ONLY = (
    "model",
    "checkpoint",
    "strategy",
    "stage",
    "tune",
    "mode",
    "norm",
    "budget",
    "head",
    "similarity",
    "source",
)
"""Settings that say nothing about a ranking; given all the same, they mean another verb."""

RANK_ARGUMENTS = tuple(key for key in SHARED if key not in ADAPT_ONLY)


def _rank(settings: DictConfig) -> None:
    import json

    from hydra.core.hydra_config import HydraConfig

    from transferkit.ranking import rank
    from transferkit.report import render_ranking
    from transferkit.serialise import to_json

    given = {override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task}
    if alien := [key for key in ADAPT_ONLY if key in given]:
        raise OptionError(f"rank takes no {', '.join(alien)}; what to rank is models=[NAME,...].")
    models = settings.models if isinstance(settings.models, str) else [str(name) for name in settings.models or []]
    ranking = rank(
        models,
        **{key: _plain(settings[key]) for key in RANK_ARGUMENTS},
        **_data_arguments(settings),
        command=_command("rank"),
    )
    out = _output_folder()
    plain = {"schema": 1, "ranking": to_json(ranking)}
    (out / "ranking.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    (out / "ranking.html").write_text(render_ranking(ranking), encoding="utf-8")
    for line in _data_lines(ranking.data, "ranking.json"):
        print(line)
    _print_ranking(ranking)
    for line in ranking.reasons:
        log.info(line)
    print("\n".join(["", *ranking.reasons, "", f"ranking: {out / 'ranking.html'}"]))


def _print_ranking(ranking: Ranking) -> None:
    """Ranks and costs, then what the measures say, then who is not there."""
    prior = "parameters" if ranking.prior == "parameters" else "published"
    rows = [
        (
            str(row.rank),
            f"{row.rank_low} to {row.rank_high}",
            f"{100 * row.best:.1f} %",
            row.name,
            *_accuracy_cells(row.joined),
            f"{row.best_stage.stage} {_accuracy_cells(row.best_stage)[0]}",
            f"{row.prior / 1e6:.1f} M" if ranking.prior == "parameters" else f"{100 * row.prior:.1f} %",
            str(row.prior_rank),
            "" if row.images_per_second is None else f"{row.images_per_second:.0f}",
            f"{row.parameters / 1e6:.1f}",
            "" if row.gigaflops is None else f"{row.gigaflops:.2f}",
            str(row.image_size),
        )
        for row in ranking.models
    ]
    header = ("rank", "95 %", "best in", "model", "accuracy", "95 % interval", "best stage", prior, "its rank",
              "images/s", "Mparams", "GFLOPs", "pixels")  # fmt: skip
    _print_table(header, rows)
    print()
    names = [score.measure for score in ranking.best.scores]
    values = [
        (row.name, *("" if score.value is None else f"{score.value:.3g}" for score in row.scores))
        for row in ranking.models
    ]
    _print_table(("measure, higher is better", *names), values)
    if ranking.left_out:
        print("\n" + list_problems("Not ranked:", [f"{one.name}: {one.reason}" for one in ranking.left_out]))


# ---- Light verbs -----------------------------------------------------------------------------------------------------


def _light(verb: str, do: Callable[[dict[str, Any]], None], **defaults: Any) -> Callable[[list[str]], None]:
    """A verb with a handful of settings, each key=value in Hydra's grammar."""

    def parsed(overrides: list[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        settings = dict(defaults)
        for word in overrides:
            try:
                override = OverridesParser.create().parse_override(word)
            except HydraException as error:
                raise OptionError(
                    f"{word!r} is not a setting. Write key=value; see transferkit {verb} --help."
                ) from error
            key = override.get_key_element()
            if key not in settings:
                raise OptionError(
                    unknown_name(f"setting of {verb}", key, settings, remedy=f"See transferkit {verb} --help.")
                )
            settings[key] = override.value()
        needed = [key for key, value in settings.items() if value is ...]
        if needed:
            raise OptionError(f"transferkit {verb} needs {', '.join(f'{key}=...' for key in needed)}.")
        do(settings)

    return parsed


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        for row in (header, *rows):
            print("\t".join(row))
        return
    table = Table(*header, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _predict(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    form = Path(settings["out"]).suffix.lstrip(".") if settings["out"] else settings["format"]
    if form not in ("csv", "json"):
        raise OptionError(unknown_name("format", form, ["csv", "json"], remedy="Name the file .csv or .json."))
    answers = load(settings["run"]).predict(settings["images"], device=settings["device"])
    text = answers.to_csv() if form == "csv" else answers.to_json() + "\n"
    if settings["out"] is None:
        print(text, end="")
        return
    try:
        Path(settings["out"]).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{settings['out']} cannot be written: {error.strerror}. Choose another file.") from error
    print(f"{len(answers)} images: {settings['out']}")


def _export(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    out = settings["out"] or Path(settings["run"]) / f"model.{settings['format']}"
    print(load(settings["run"]).export(out, format=settings["format"]))


def _zoo(settings: dict[str, Any]) -> None:
    from transferkit.zoo import catalog

    entries = catalog(settings["pattern"], source=settings["source"], offline=settings["offline"])
    if not entries:
        raise OptionError("No backbone matches. Widen the pattern: transferkit zoo pattern='*resnet*'.")
    rows = [
        (
            entry.name,
            "on this machine" if entry.offline else "from the hub" if entry.pretrained else "none",
            "" if entry.size is None else f"{entry.size}",
            entry.license or "",
        )
        for entry in entries
    ]
    _print_table(("name", "weights", "pixels", "license"), rows)


def _cache(settings: dict[str, Any]) -> None:
    import time

    from transferkit.features import FeatureBank

    bank = FeatureBank(settings["cache"])
    if settings["clear"]:
        freed = bank.clear(None if settings["clear"] is True else str(settings["clear"]))
        print(f"{freed / 2**20:,.1f} MB freed")
        return
    shelves = bank.list_shelves()
    rows = [
        (shelf.name, shelf.backbone, f"{shelf.image_size} px", shelf.pooling, f"{shelf.images:,}",
         f"{shelf.size / 2**20:,.1f} MB", time.strftime("%Y-%m-%d %H:%M", time.localtime(shelf.last_used)))
        for shelf in shelves
    ]  # fmt: skip
    _print_table(("shelf", "backbone", "size", "pooling", "images", "disk", "last used"), rows)
    print(f"{sum(shelf.size for shelf in shelves) / 2**20:,.1f} MB at {bank.folder}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "adapt": _job(_adapt),
    "analyze": _job(_analyze),
    "rank": _job(_rank),
    "predict": _light("predict", _predict, run=..., images=..., out=None, format="csv", device="auto", debug=False),
    "export": _light("export", _export, run=..., out=None, format="onnx", debug=False),
    "zoo": _light("zoo", _zoo, pattern=None, source=None, offline=None, debug=False),
    "cache": _light("cache", _cache, cache=None, clear=False, debug=False),
}


if __name__ == "__main__":
    main()
