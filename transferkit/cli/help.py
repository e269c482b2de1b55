"""What `transferkit --help` and `transferkit VERB --help` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from transferkit.cli.composition import GROUPS, group_choices
from transferkit.cli.dry_run import DryRunOptions
from transferkit.options import AdaptOptions, DataOptions, Recipe, ReviewOptions, describe_options
from transferkit.scarce.zero_shot_options import DescriptionOptions
from transferkit.tuning.search_options import SearchOptions

__all__ = ["DESCRIPTIONS", "HELP", "REVIEWS", "SECTIONS", "USAGE", "Section"]

WIDTH = 118
"""Of a terminal that shows every line whole."""

KEYS = 27
"""Width of the column of keys."""

ELSEWHERE = ("strategy", "launcher", "tune")
"""Groups that are explained with the settings, and with --multirun."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that are explained together.

    Args:
        title: What they are about.
        rows: (setting, default as typed, sentence).
    """

    title: str
    rows: tuple[tuple[str, str, str], ...]


def _rows(kind: type, names: Iterable[str] | None = None, *, group: str = "") -> list[tuple[str, str, str]]:
    defaults = {one.name: one.default for one in fields(kind)}
    return [
        (f"{group}{name}", _typed(defaults[name]), _as_typed(text))
        for name, text in describe_options(kind, names=names)
    ]


def _typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _as_typed(text: str) -> str:
    """A sentence in the words of the command line."""
    return text.replace("None", "null").replace("False:", "false:")


SECTIONS = (
    Section(
        title="Backbone",
        rows=(
            (
                "model",
                "packaged/tf_efficientnet_lite0",
                "timm/..., torchvision/..., packaged/...; see transferkit zoo.",
            ),
            *_rows(AdaptOptions, ("checkpoint", "pretrained", "image_size", "geometry", "views", "pooling")),
        ),
    ),
    Section(
        title="Data",
        rows=(
            (
                "data.root",
                "null",
                "A folder of images, DIR/<class>/* or DIR/{train,val,test}/<class>/*, or of shards, or a pattern of "
                "these; beside data.path: where a manifest's relative paths start.",
            ),
            ("data.path", "null", "A manifest: CSV, TSV or Parquet with the columns path, label [, split, group]."),
            ("data.columns.label", "null", "What a manifest calls it, or [a,b]; also .path, .split, .group."),
            *_rows(AdaptOptions, ("labels", "unlabelled", "teacher")),
            *_rows(DataOptions, ("task", "val", "test", "strict", "max_pixels"), group="data."),
        ),
    ),
    Section(
        title="What is decided",
        rows=tuple(
            _rows(
                AdaptOptions,
                (
                    "strategy",
                    "stage",
                    "unfreeze",
                    "mode",
                    "budget",
                    "norm",
                    "head",
                    "ensemble",
                    "class_weight",
                    "similarity",
                    "source",
                ),
            )
        ),
    ),
    Section(title="How networks are fine-tuned", rows=tuple(_rows(Recipe, group="train."))),
    Section(
        title="Lightning's trainer",
        rows=(
            ("trainer.precision", "null", "bf16-mixed, 16-mixed, ...; null: 32-true."),
            ("trainer.devices", "null", "How many processes train together."),
            ("trainer.strategy", "null", "ddp, or fsdp to share weights among processes."),
            (
                "trainer.accelerator",
                "null",
                "cpu, gpu, ...; also trainer.num_nodes, .benchmark; any other is +trainer.NAME=VALUE.",
            ),
        ),
    ),
    Section(
        title="Where and with what",
        rows=(
            ("out", "runs/DATE_TIME", "Folder for model, result and report."),
            *_rows(
                AdaptOptions,
                (
                    "overwrite",
                    "resume",
                    "evaluate",
                    "cache",
                    "cache_limit",
                    "device",
                    "engine",
                    "batch_size",
                    "seed",
                    "progress",
                ),
            ),
            ("debug", "false", "Tracebacks instead of one-paragraph errors."),
            *_rows(DryRunOptions),
        ),
    ),
)
"""All settings of adapt, in the order of --help and docs/options.md."""

DESCRIPTIONS = Section(title="Only zeroshot", rows=tuple(_rows(DescriptionOptions)))

REVIEWS = Section(title="Only doctor labels and doctor images", rows=tuple(_rows(ReviewOptions)))


def _section(section: Section) -> str:
    return "\n".join(
        [f"{section.title}:", *(_entry(f"{key}={default}", text) for key, default, text in section.rows), ""]
    )


def _entry(key: str, text: str) -> str:
    """Key and sentence side by side; a key that is too long stands on a line of its own."""
    indent = " " * (KEYS + 4)
    first = f"  {key:<{KEYS}}  "
    wrapped = textwrap.fill(text, width=WIDTH, initial_indent=indent, subsequent_indent=indent)
    return first + wrapped[len(indent) :] if len(first) == len(indent) else f"  {key}\n{wrapped}"


def _groups() -> str:
    lines = [_entry(f"{group}=NAME", ", ".join(group_choices(group))) for group in GROUPS if group not in ELSEWHERE]
    return "\n".join(["Prepared settings, a file each in conf/:", *lines, ""])


USAGE = """\
transferkit: a classifier for your images from a pretrained backbone. It measures before it decides.

  transferkit                                     adapt the packaged backbone to scikit-learn's digits, offline
  transferkit adapt data.root=DIR                 your own images: DIR/<class>/* or DIR/{train,val,test}/<class>/*
  transferkit analyze data.root=DIR               only measure and advise
  transferkit rank models='packaged/*' data.root=DIR   which backbone, before any training
  transferkit doctor labels data.root=DIR         which labels are probably wrong
  transferkit doctor images data.root=DIR         copies of images, leaks across splits, outliers
  transferkit doctor data.root=DIR                what is wrong with the set-up that adapt would train
  transferkit tune data.root=DIR                  search the hyperparameters of fine-tuning
  transferkit fewshot data.root=DIR shots=1       what a few labelled images per class are worth
  transferkit fewshot add run=DIR class=NAME images=PATH out=DIR   one more class, without training
  transferkit zeroshot data.root=DIR attributes=FILE   classes without images, from a table of attributes
  transferkit shard data.root=DIR out=SHARDS      pack images into tar files, for very many of them
  transferkit extract data.root=SHARDS            one process's part of a frozen pass that many share
  transferkit predict run=DIR images=PATH         classify images with a finished run
  transferkit evaluate run=DIR                    score a finished run on test images, if that was not done yet
  transferkit shift run=DIR images=PATH           do new images differ from those of training, and what does it cost
  transferkit combine runs=[DIR,DIR] out=DIR      several finished runs that answer together, if that is better
  transferkit export run=DIR                      a finished run as ONNX
  transferkit zoo [pattern=resnet*]               which backbones there are
  transferkit cache [clear=true]                  what the feature bank holds

`transferkit VERB --help` says more.
"""

ADAPT = """\
transferkit adapt [key=value ...]: measure, decide, train, verify; leaves model, result and report in one folder.

  transferkit adapt                                                    scikit-learn's digits, offline
  transferkit adapt data.root=DIR image_size=96 out=runs/x
  transferkit adapt data.path=images.csv                               columns path, label [, split, group]
  transferkit adapt model=timm/resnet50.a1_in1k data.root=DIR
  transferkit adapt model=torchvision/resnet18 checkpoint=my.pth data.root=DIR
  transferkit adapt strategy=few_layers unfreeze=2 train.epochs=10 data.root=DIR
  transferkit adapt experiment=digits_150                              a prepared run, offline
  transferkit adapt --multirun seed=0,1,2 [launcher=local|ray|slurm]   a run per value, compared by held-back accuracy
  transferkit adapt --cfg job                                          show the settings; dry_run=true: the cost
"""

TUNE = """\
transferkit tune [key=value ...]: search the hyperparameters of fine-tuning by held-back accuracy. Takes the keys of
adapt, which all trials share, and those below. The test images are not looked at.

  transferkit tune data.root=DIR image_size=96 strategy=lp_ft out=runs/search
  transferkit tune data.root=DIR tune.sampler=tpe tune.pruner=median tune.trials=100 tune.seconds=3600
  transferkit tune data.root=DIR tune.style=panda                      one training, changed as its curves ask for
  transferkit tune data.root=DIR out=runs/search tune.retest=true      do the best settings found there still hold?
  transferkit tune data.root=DIR tune.workers=4                        processes on this machine
  transferkit tune data.root=DIR tune.storage=postgresql://HOST/DB     the same command on several machines
  transferkit tune data.root=DIR 'tune.space={train:{lr:{low:1.0e-5,high:0.1,log:true},schedule:[cosine,linear]}}'

dry_run=true shows the cost. The same command again goes on where it stopped. It leaves tuning.html, tuning.json
and experiment/best.yaml, which transferkit adapt --config-dir=OUT experiment=best trains with.
"""

TUNE_SECTION = Section(
    title="The search",
    rows=(
        *_rows(SearchOptions, group="tune."),
        ("tune", "NAME", f"A prepared search, a file in conf/tune: {', '.join(group_choices('tune'))}."),
    ),
)

HELP = {
    "adapt": "\n".join([ADAPT, *map(_section, SECTIONS), _groups()]),
    "analyze": """\
transferkit analyze [key=value ...]: one frozen pass over your images; prints how well each stage tells the classes
apart and what to do, and leaves evidence.json in the run's folder. Takes the same keys as adapt, such as engine=NAME.

  transferkit analyze data.root=DIR image_size=96
  transferkit analyze data.root=DIR engine=onnxruntime     what computes the features; auto takes the fastest
  transferkit analyze data.root=DIR dry_run=true           what would be done and its cost; nothing is done
""",
    "rank": """\
transferkit rank [key=value ...]: which backbone suits your images, from features only. One frozen pass each over
the training images; prints ranks with their intervals, costs and measures; leaves ranking.json and ranking.html.

  transferkit rank models='packaged/*' data.root=DIR image_size=96
  transferkit rank models=[packaged/tf_efficientnet_lite0,timm/resnet18.a1_in1k] data.root=DIR

  models=[NAME,...]     as for adapt's model; a name with * stands for what it matches and is on this machine
  image_size=N          for all of them; without it each runs at its checkpoint's own
  geometry=..., views=...   as for adapt; auto is one view here, each checkpoint's own crop
  data=..., data.root=DIR, data.path=FILE, pretrained, pooling, class_weight, cache=DIR, cache_limit=GB,
  device=auto, engine=auto, batch_size=N, seed=0, progress=false, out=DIR, dry_run=true   as for adapt

What is computed stays in the feature bank: the same command again, or adapt with the winner, reads it there.
""",
    "doctor": f"""\
transferkit doctor [labels|images|replay] [key=value ...]: what is wrong. Takes the same keys as adapt.

  transferkit doctor data.root=DIR image_size=96 strategy=lp_ft
  transferkit doctor labels data.root=DIR image_size=96 out=review
  transferkit adapt data.root=DIR image_size=96 labels=review/labels.csv
  transferkit doctor images data.root=DIR image_size=96 out=review
  transferkit doctor replay runs/x/training/lp_ft/watched/fold-0/nan_capsule.pt
  transferkit doctor labels data.root=DIR dry_run=true      what would be done and its cost; nothing is done

  doctor          examines what adapt would train with the same words: the network with its new head, an augmented
                  batch, loss and optimizer; whether each class is in each split; whether images reach a finished
                  model as they did in training. Nothing is written. Exits with 0 if all is well, with 1 after an
                  alarm, with 2 after a mistake in the command.
  doctor labels   lists training and validation images that look more like another class to a classifier that has not
                  seen them, worst first, at the cost of analyze. Leaves labels.html, the pictures, and labels.csv in
                  out=DIR.
  doctor images   finds copies, also mirrored, cropped and brightened ones, leaks across splits, copies with two labels
                  and outliers. Leaves images.html, the pictures, and images.csv in out=DIR.
  doctor replay   runs the step again whose loss or gradient was not finite first, and names the layer where it began.

{_section(REVIEWS)}
labels.csv, images.csv: write the right class into the column corrected, or drop to leave the image out; empty is as
before. Save it as CSV (UTF-8), and give it to adapt, analyze, rank or doctor as labels=FILE. Rows may be added and
removed.
""",
    "tune": "\n".join([TUNE, _section(TUNE_SECTION)]),
    "fewshot": """\
transferkit fewshot [key=value ...]: what a few labelled images per class are worth. Many small tasks are drawn from
your training images; nothing is trained.

  transferkit fewshot data.root=DIR image_size=96 shots=5
  transferkit fewshot data.root=DIR image_size=96 prior=[OTHER,ANOTHER] transductive=true imbalance=2
  transferkit fewshot add run=runs/x class=okapi images=okapi.jpg out=runs/y

  model=NAME      as for adapt; data.root=DIR, data.path=FILE (with data.root where its paths start)
  ways=5, shots=1, queries=15, episodes=600, seed=0
                  classes in a task, labelled images of each, images of each to be told apart, tasks
  method=auto     last_layer, nearest_mean, discriminant, ridge, logistic, fine_tuned_head, soft_means: a name, a
                  list [ridge,logistic], or all
  prior=DIR       other labelled images, one or a list: their spread within classes teaches which differences do not
                  matter; unlabelled: the spread of these images instead
  imbalance=2     class shares of the queries are drawn from a Dirichlet; 1 is less even
  transductive=true   methods may see the queries of a task together
  views=auto      crop+squash+zoom+wide averaged; 1: the checkpoint's own crop
  image_size=N, batch_size=N, pooling, checkpoint, pretrained, test=SHARE, cache=DIR, device=auto, engine=auto,
  progress=false  as for adapt
  out=FILE        .json or .html
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON

transferkit fewshot add: one more class for a finished run; its classifier gets one more row, the others stay.

  run=DIR         the folder that adapt wrote; class=NAME of the new class; images=PATH as for predict
  out=DIR         where the larger run is saved; overwrite=true replaces a run there
  old=DIR         images of the other classes, a folder each, where the run's own training images are gone
  seed=0, cache=DIR, device=auto, progress=false, dry_run=true
""",
    "zeroshot": f"""\
transferkit zeroshot [key=value ...]: a classifier that also knows classes without images, from a table with a row of
attributes for each class, or from prompts for a text-image model. One frozen pass, then a linear layer in closed form;
leaves a run as adapt does.

  transferkit zeroshot data.root=DIR attributes=animals.csv image_size=96 out=runs/z
  transferkit evaluate run=runs/z data.root=NEW_CLASSES     images of the classes without training images
  transferkit zeroshot data.root=DIR attributes=animals.csv dry_run=true      the cost; nothing is done
  transferkit zeroshot data.root=DIR model=open_clip/ViT-B-32 checkpoint=clip.safetensors 'prompts=a photo of a {{}}'

{_section(DESCRIPTIONS)}
  model, image_size, checkpoint, pretrained, geometry, views, pooling, data=..., data.root=DIR, data.path=FILE, labels,
  cache=DIR, cache_limit=GB, device=auto, engine=auto, batch_size=N, seed=0, progress=false, out=DIR, overwrite=false,
  evaluate=auto, dry_run=true   as for adapt

animals.csv: class,striped,hooves,... in the first line, then zebra,1,1,... for each class. Classes with images are
turned unseen in folds to measure how good it is on classes without, and what has to be taken off the scores of
classes with images so that they are not preferred.
""",
    "evaluate": """\
transferkit evaluate run=DIR [key=value ...]: score a finished run on test images and add that to its report.

  transferkit evaluate run=sweep/3
  transferkit evaluate run=runs/x data.root=other_photos/

  run=DIR         the folder that adapt wrote
  data.root=DIR   other images than the run's own, with or without splits; data.path=FILE: a manifest
  split=test      or val
  device=auto, cache=DIR
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON
""",
    "predict": """\
transferkit predict run=DIR images=PATH [key=value ...]: classify images with a finished run.

  transferkit predict run=runs/x images=photo.jpg
  transferkit predict run=runs/x images=folder/ out=answers.csv
  transferkit predict run=runs/x images='photos/**/*.jpg'

  run=DIR         the folder that adapt wrote
  images=PATH     an image, a folder of images, a pattern, or a list: images=[a.jpg,b.jpg]
                  what cannot be read is listed with the reason, and the others are answered
  out=FILE        .csv or .json; without it the answers are printed
  format=csv      or json, for printing
  coverage=0.9    a column set: the classes among which the true one is for 90 % of images like the training images
  max_pixels=N    larger images are not decoded
  device=auto
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON
""",
    "combine": """\
transferkit combine runs=[DIR,DIR,...] out=DIR: finished runs on the same images, of other backbones, sizes, seeds or
strategies, averaged with weights from the images that each held back. If that is not better than the best single run on
images that the weights were not chosen on, the best run alone is kept, and it says so.

  transferkit combine runs=[runs/lite0,runs/lite2] out=runs/both
  transferkit combine runs=[runs/probe,runs/tuned] method=wise val=MORE_IMAGES out=runs/one
  transferkit predict run=runs/both images=new_photos/ coverage=0.9

  method=average  soup, wise: weights instead of answers are averaged, so that one network comes out; for runs of one
                  backbone whose heads read the same stages
  val=DATA        labelled images that no run was trained on, which soup and wise are chosen on; the runs' own
                  validation split if left out
  overwrite=false replace a run or an ensemble in out
  seed=0          of the parts that the weights are judged on
  dry_run=true    what would come out, and nothing is written; json: as JSON
""",
    "shift": """\
transferkit shift run=DIR images=PATH [key=value ...]: new, unlabelled images against a run's training images.

  transferkit shift run=runs/x images=new_photos/
  transferkit shift run=runs/x images=new_photos/ remedy=auto out=runs/x_new
  transferkit shift run=runs/x images=new_photos/ format=json

  run=DIR         the folder that adapt wrote; its training images are opened again
  images=PATH     as for predict
  remedy=none     auto: what is likely to help most is used, if anything is; or the name of a remedy, which is used only
                  if it is likely to help: class_proportions, norm_statistics, entropy, feature_alignment,
                  importance_weights, subspace_alignment
  out=DIR         the run with the remedy, if one is used; shift.json and shift.html
  overwrite=false replace what is there
  format=text     or json, for printing
  alpha=0.05      chance of calling equal sets shifted
  reject=0.01     share of images like those of training to call unfamiliar
  data=PATH       the training images, if the run does not find them
  max_pixels=N, cache=DIR, device=auto, seed=0, progress=true
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON
""",
    "export": """\
transferkit export run=DIR [key=value ...]: a finished run for other programs.

  transferkit export run=runs/x out=model.onnx

  run=DIR         the folder that adapt wrote
  out=FILE        default: DIR/model.onnx
  format=onnx     takes (N, 3, S, S) uint8 pixels, gives (N, K) probabilities; where predictions are averaged over
                  several geometries (N, G, 3, S, S): the metadata's "geometries" say which; mirror images and the
                  mean are made inside
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON
""",
    "shard": """\
transferkit shard data.root=DIR out=SHARDS [key=value ...]: pack images into shards, tar files that webdataset
reads too. Bytes are copied as they are; class, split, group and name lie beside each image; index.json says where
it is.

  transferkit shard data.root=photos out=shards
  transferkit shard data.path=images.csv out=shards size=1000
  transferkit adapt data.root=shards

  data.root=DIR   a folder of images; data.path=FILE: a manifest, data.columns.label=NAME and so on as for adapt
  out=SHARDS      a new or an empty folder; it appears when all is written
  size=256        megabytes of a shard
  progress=true
""",
    "extract": """\
transferkit extract [key=value ...]: one process's part of the frozen pass. Takes the keys of analyze, which then
computes nothing again. Which process it is of how many, RANK and WORLD_SIZE say in the environment.

  torchrun --nproc-per-node=4 -m transferkit.cli extract data.root=shards views=1
  RANK=3 WORLD_SIZE=8 transferkit extract data.root=shards views=1 cache=/shared/bank
  transferkit analyze data.root=shards views=1 cache=/shared/bank

Each process computes a range of the images and waits for no other. One that was killed is started again as it was and
goes on with what is missing. With views=auto the first view is extracted, and analyze runs the others.
""",
    "zoo": """\
transferkit zoo [key=value ...]: which backbones there are.

  transferkit zoo pattern='*efficientnet*' source=timm
  transferkit zoo offline=true                what can be loaded without any network

  pattern=GLOB    matched on the name
  source=NAME     packaged, timm, torchvision
  offline=true    only those whose weights are on this machine
  dry_run=true    what would be done and its cost, and nothing is done; json: as JSON
""",
    "cache": """\
transferkit cache [key=value ...]: what is kept of earlier runs, and clearing it.

  transferkit cache
  transferkit cache clear=true                all of it
  transferkit cache clear=NAME                one shelf of the feature bank
  transferkit cache clear=audit               what the audit remembers of image files

  cache=DIR       another bank than the usual one
  dry_run=true    what clear= would delete, and how much that frees; json: as JSON
""",
}
