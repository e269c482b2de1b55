"""Several labels per image, and numbers: the closed-form head against scikit-learn on the same features.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_targets.py run --root tasks     # resumes: benchmarks/targets.json is rewritten after each row
    python scripts/bench_targets.py score                # the table

Four tasks are made of images of scripts/make_tasks.py, each with its own training and test images:

- letters: seven labels of capital letters: a hole, a curve, a diagonal, mirror symmetry, point symmetry, bold, italic.
  The fonts of test are not those of train.
- stamps: photographs and drawings of many subjects; labels are the words in the names of their folders.
- counting: the number of discs, one to eight.
- orientation: the angle of a bar as the cosine and sine of twice the angle, two numbers.

Ours is what `adapt` fits and chooses by itself (ridge on all stages joined or on selected features, calibrated for
labels). Theirs is, on the features of all stages joined, standardised: OneVsRestClassifier(LogisticRegressionCV) for
labels, RidgeCV for numbers. Scores are on test images: mean average precision, or R2; the difference has a 95 %
interval over resampled test images. Nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.core.provenance import environment
from transferkit.measure import label_loss, resample_score
from transferkit.options import AdaptOptions
from transferkit.workflow.decide import decide_session
from transferkit.workflow.fit import fit_decision
from transferkit.workflow.score import score_splits
from transferkit.workflow.session import Session, open_session

FOUND = Path(__file__).parents[1] / "benchmarks" / "targets.json"
MODEL, SIZE = "packaged/tf_efficientnet_lite0", 96
LEAST_IMAGES = 12
"""Training images that a word of a stamp's folder must have to be a label."""

PENALTIES = np.logspace(-1, 5, 13)
COSTS = np.logspace(-5, 0, 6)

LETTERS = {
    "hole": "ABDOPQR",
    "curve": "BCDGJOPQRSU",
    "diagonal": "AKMNQRVWXYZ",
    "mirror symmetric": "AHIMOTUVWXY",
    "point symmetric": "HINOSXZ",
}

Row = tuple[Path, str, Any]
"""File, split, and its labels (a set) or numbers (a tuple)."""


def letters(root: Path) -> Iterator[Row]:
    """Capital letters."""
    for file in sorted((root / "glyphs").glob("*/*/*.png")):
        found = {name for name, those in LETTERS.items() if file.parent.name in those}
        found |= {"bold"} if re.search("Bold|Demi|Black|Heavy", file.name) else set()
        found |= {"italic"} if re.search("Italic|Oblique|Ital", file.name) else set()
        yield file, file.parent.parent.name, found


def stamps(root: Path) -> Iterator[Row]:
    """Photographs and drawings by the words of their folders."""
    files = sorted((root / "stamps_style").glob("*/*/*.png"))
    words = {file: {file.parent.name, *file.stem.split("-")[:-1]} for file in files}
    counts = Counter(word for file in files if file.parent.parent.name == "train" for word in words[file])
    kept = {word for word, count in counts.items() if count >= LEAST_IMAGES}
    for file in files:
        yield file, file.parent.parent.name, words[file] & kept


def counting(root: Path) -> Iterator[Row]:
    """The number of discs."""
    for file in sorted((root / "counting").glob("*/*/*.png")):
        yield file, file.parent.parent.name, (int(file.parent.name[1:]),)


def orientation(root: Path) -> Iterator[Row]:
    """A bar's angle; half a turn changes nothing."""
    for file in sorted((root / "orientation").glob("*/*/*.png")):
        twice = 2 * np.radians(int(file.parent.name[3:]))
        yield file, file.parent.parent.name, (round(float(np.cos(twice)), 6), round(float(np.sin(twice)), 6))


TASKS: dict[str, tuple[Callable[[Path], Iterator[Row]], tuple[str, ...]]] = {
    "letters": (letters, ()),
    "stamps": (stamps, ()),
    "counting": (counting, ("discs",)),
    "orientation": (orientation, ("cosine", "sine")),
}


def write_manifest(name: str, root: Path, file: Path) -> dict[str, Any]:
    """A table of the task's images; returns the options that open it."""
    make, numbers = TASKS[name]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "split", *(numbers or ["label"])])
        for image, split, found in make(root):
            writer.writerow([image.absolute(), split, *(found if numbers else [";".join(sorted(found))])])
    return {"columns": {"label": list(numbers)}} if numbers else {"task": "multi_label"}


def run_task(name: str, root: Path, cache: Path | None) -> dict[str, Any]:
    """Both ways on one task."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / f"{name}.csv"
        opening = write_manifest(name, root, manifest)
        options = AdaptOptions(image_size=SIZE, views=1, geometry="crop", progress=False, cache=cache, **opening)
        session = open_session(MODEL, manifest, options, trains=False)
        began = time.perf_counter()
        decided = decide_session(session, options)
        fitted = fit_decision(decided.session, decided.decision, options)
        ours_seconds = time.perf_counter() - began
        answers = score_splits(session, fitted, ["test"])["test"]
        held_back = fitted.held_back
        began = time.perf_counter()
        theirs = fit_sklearn(session)
        seconds = time.perf_counter() - began
    targets, folds = answers.targets, session.data.folds.take(session.data.indices("test"))
    assert targets is not None
    one, other = (resample_score(targets, found, folds) for found in (answers.probabilities, theirs))
    gap = one.draws - other.draws
    low, high = np.quantile(gap, (0.025, 0.975))
    row = {
        "task": name,
        "kind": targets.task,
        "train": len(session.data.indices("train")),
        "test": len(targets),
        "targets": len(targets.names),
        "measure": targets.measure,
        "stage": decided.decision.stage,
        "held_back": None if held_back.accuracy is None else round(held_back.accuracy, 4),
        "held_back_low": None if held_back.interval is None else round(held_back.interval[0], 4),
        "held_back_high": None if held_back.interval is None else round(held_back.interval[1], 4),
        "ours": round(one.score, 4),
        "low": round(one.interval[0], 4),
        "high": round(one.interval[1], 4),
        "sklearn": round(other.score, 4),
        "gain": round(one.score - other.score, 4),
        "gain_low": round(float(low), 4),
        "gain_high": round(float(high), 4),
        "seconds": round(ours_seconds, 1),
        "sklearn_seconds": round(seconds, 1),
    }
    if targets.is_labels:
        row |= {
            "log_loss": round(_loss(answers.probabilities, targets.values), 4),
            "sklearn_log_loss": round(_loss(theirs, targets.values), 4),
        }
    else:
        for key, found in (("mae", answers.probabilities), ("sklearn_mae", theirs)):
            row[key] = round(float(np.abs(found - targets.values).mean()), 4)
    return row


def _loss(chances: np.ndarray, truth: np.ndarray) -> float:
    clipped = np.clip(chances.astype(np.float64), 1e-7, 1 - 1e-7)
    return label_loss(np.log(clipped) - np.log1p(-clipped), truth)


def fit_sklearn(session: Session) -> np.ndarray:
    """(M, T) probabilities or numbers of the test images."""
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = session.data.indices("train"), session.data.indices("test")
    tables = session.measured.features(train), session.run_features(test)
    fitted, held = (table.load(list(table.blocks)) for table in tables)
    targets = session.data.targets
    assert targets is not None
    if not targets.is_labels:
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES))
        return np.asarray(model.fit(fitted, targets.values[train]).predict(held)).reshape(len(test), -1)
    logistic = LogisticRegressionCV(Cs=COSTS, cv=3, scoring="average_precision", max_iter=300)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(logistic))
    return np.asarray(model.fit(fitted, targets.values[train].astype(int)).predict_proba(held))


def read_rows() -> list[dict[str, Any]]:
    """Rows that are there."""
    return json.loads(FOUND.read_text(encoding="utf-8"))["rows"] if FOUND.is_file() else []


def add_row(row: dict[str, Any]) -> None:
    """Write the file with one more row."""
    head = {
        "script": "scripts/bench_targets.py",
        "date": time.strftime("%Y-%m-%d"),
        "model": MODEL,
        "image_size": SIZE,
        "machine": environment(seed=0, device="cpu"),
    }
    lines = ",\n".join(json.dumps(one) for one in [*read_rows(), row])
    FOUND.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
    print(json.dumps(row), flush=True)


def score() -> None:
    """The table of docs/targets.md."""
    print("| task | images | predicted | held back | test | scikit-learn | gain, 95 % interval |")
    print("|-|-|-|-|-|-|-|")
    for row in read_rows():
        what = f"{row['targets']} {'labels' if row['kind'] == 'multi_label' else 'numbers'}, {row['measure']}"
        held_back = f"{row['held_back']:.3f} ({row['held_back_low']:.3f} to {row['held_back_high']:.3f})"
        print(
            f"| {row['task']} | {row['train']} + {row['test']} | {what} | {held_back} | {row['ours']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f}) | {row['sklearn']:.3f} | {row['gain']:+.3f} "
            f"({row['gain_low']:+.3f} to {row['gain_high']:+.3f}) |"
        )


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "score"))
    parser.add_argument("--root", type=Path, default=Path("tasks"), help="folder that scripts/make_tasks.py made")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--cache", type=Path, default=None, help="folder of the feature bank")
    given = parser.parse_args()
    if given.what == "run":
        for name in given.tasks:
            if not any(row["task"] == name for row in read_rows()):
                add_row(run_task(name, given.root, given.cache))
    score()


if __name__ == "__main__":
    main()
