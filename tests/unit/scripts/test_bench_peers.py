"""The comparison with other tools: resuming, arithmetic, tables, on runs whose outcomes are known by construction."""

from __future__ import annotations

import doctest
import json
import os
import re
import stat
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import bench_peers
import numpy as np
import pytest
import torch
from peers import curves, environments, outcomes, page, results, roster, running, tables, tasks
from peers.contestants import protocol
from PIL import Image

from transferkit.core.errors import DataError, OptionError


def point(seconds: float, accuracy: float, done: str = "done") -> dict:
    return {"seconds": seconds, "since_start": seconds + 5, "accuracy": accuracy, "done": done}


def record(task: str, contestant: str, *points: dict, **changed: object) -> dict:
    return {
        "task": task,
        "level": 20,
        "content": "c0",
        "contestant": contestant,
        "seed": 0,
        "size": 96,
        "threads": 2,
        "budget": None,
        "versions": {"torch": "2"},
        "family": task,
        "train": 200,
        "test": 100,
        "classes": 4,
        "when": "2026-11-30T10:00:00+00:00",
        "points": list(points),
        "error": None,
        **changed,
    }


@pytest.fixture
def two_tasks() -> list[dict]:
    """On "near" ours is 10 points ahead in a quarter of the time, on "far" 4 points behind at the same time."""
    return [
        record("near", "adapt", point(5, 0.9)),
        record("near", "fastai_5", point(10, 0.85, "epoch 1"), point(20, 0.8, "epoch 2")),
        record("far", "adapt", point(20, 0.7)),
        record("far", "fastai_5", point(10, 0.5, "epoch 1"), point(20, 0.74, "epoch 2")),
    ]


@pytest.mark.parametrize("module", [curves, outcomes, page, results, roster, running, tables, tasks])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    done = doctest.testmod(module)
    assert done.failed == 0


def test_ours_against_a_peer_counts_losses_like_wins(two_tasks) -> None:
    one = outcomes.compare(outcomes.finals(two_tasks), "adapt", "fastai_5")
    assert one is not None
    assert one.places == 2
    assert one.points == pytest.approx((10 - 4) / 2)
    assert one.points_interval == pytest.approx((-4, 10))
    assert one.losses == {"far, 20 per class": pytest.approx(-4)}
    assert one.speed == pytest.approx(2)  # geometric mean of 4 and 1
    assert one.speed_since_start == pytest.approx((25 / 10) ** 0.5)
    assert (one.slower, one.early) == (0, 1)


def test_seeds_are_averaged_before_tasks() -> None:
    runs = [record("a", "adapt", point(1, 0.5), seed=0), record("a", "adapt", point(3, 0.7), seed=1)]
    ((place, found),) = outcomes.finals(runs).items()
    assert place.label == "a, 20 per class"
    assert found["adapt"] == pytest.approx((0.6, 2, 7))


def test_a_failed_run_is_listed_and_not_compared(two_tasks) -> None:
    two_tasks[3] |= {"error": "exit code -9: Killed | out of memory", "points": []}
    assert list(outcomes.failures(two_tasks)) == [
        ("fastai_5", "far, 20 per class", "exit code -9: Killed | out of memory")
    ]
    one = outcomes.compare(outcomes.finals(two_tasks), "adapt", "fastai_5")
    assert one is not None
    assert one.places == 1
    assert one.points_interval is None
    assert "Killed \\| out of memory" in tables.failure_table(two_tasks)
    assert "| 70.0, 20 s |" not in tables.accuracy_table(outcomes.finals(two_tasks))
    assert "| far, 20 per class | 200 | **70.0**, 20 s | none |" in tables.accuracy_table(outcomes.finals(two_tasks))


def test_contestants_without_a_common_task_are_not_compared(two_tasks) -> None:
    assert outcomes.compare(outcomes.finals([two_tasks[0], two_tasks[3]]), "adapt", "fastai_5") is None


def test_tables_print_every_loss(two_tasks) -> None:
    text = tables.all_tables(two_tasks)
    assert "| near, 20 per class | 200 | **90.0**, 5.0 s | 80.0, 20 s |" in text
    assert "| far, 20 per class | 200 | 70.0, 20 s | **74.0**, 20 s |" in text
    assert "| fastai_5 | 2 | +3.0 | -4.0 to +10.0 | 1 of 2 | 2 | 1 to 4 | 1.6 | 0 of 2 | 1 of 2 |" in text
    assert "| adapt | fastai_5 | far, 20 per class | -4.0 |" in text
    assert "Up to 500 training images" in text
    assert "More than 500" not in text


def test_only_what_was_measured_last_counts(two_tasks) -> None:
    newer = record("near", "adapt", point(2, 0.95), versions={"torch": "3"})
    found = outcomes.finals([*two_tasks, newer])
    assert {place.task: one["adapt"].accuracy for place, one in found.items()} == {"near": 0.95, "far": 0.7}


def test_curves_are_means_over_the_runs_that_all_finished(two_tasks) -> None:
    only_ours = record("third", "adapt", point(1, 1.0))
    found = outcomes.mean_curves([*two_tasks, only_ours], [1, 10, 30])
    assert found["adapt"] == pytest.approx([0.25, (0.9 + 0.25) / 2, 0.8])
    assert found["fastai_5"] == pytest.approx([0.25, (0.85 + 0.5) / 2, (0.8 + 0.74) / 2])


def test_the_figure_is_valid_and_names_every_contestant(two_tasks) -> None:
    drawn = ElementTree.fromstring(curves.draw(two_tasks))
    words = {[*one.itertext()][-1] for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"adapt", "fastai_5", "Mean test accuracy"} <= words
    with pytest.raises(ValueError, match="No run was finished by all contestants"):
        curves.draw([two_tasks[0], two_tasks[3]])


def test_the_page_says_how_it_was_made(two_tasks, tmp_path) -> None:
    known = {"cells": two_tasks, "machine": {"cores": 2, "processor": "AMD EPYC"}}
    page.write_page(known, tmp_path / "peers.md", "packaged/x")
    text = (tmp_path / "peers.md").read_text(encoding="utf-8")
    assert "--tasks near:20 far:20 --seeds 0" in text
    assert "2 cores AMD EPYC, no GPU used; 2026-11-30; 96 px; threads per contestant: 2." in text
    assert (tmp_path / "peers.svg").stat().st_size < 200_000


def test_a_finished_cell_is_kept_and_found_again(tmp_path) -> None:
    first = results.Results(tmp_path / "peers.json")
    one = record("near", "adapt", point(5, 0.9))
    first.keep(one)
    again = results.Results(tmp_path / "peers.json")
    assert again.records == [one]
    assert again.find({**one, "points": "not part of the identity"}) == one
    assert again.find({**one, "versions": {"torch": "3"}}) is None
    assert again.find({**one, "seed": 1}) is None
    again.keep({**one, "error": "now it failed"})
    again.keep({**one, "seed": 1})
    written = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert [(cell["seed"], cell["error"]) for cell in written["cells"]] == [(0, "now it failed"), (1, None)]
    assert written["script"] == "scripts/bench_peers.py"
    assert written["date"]
    assert written["machine"]["cores"] == os.cpu_count()
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]


def test_seconds_of_two_machines_are_not_mixed(tmp_path) -> None:
    results.Results(tmp_path / "peers.json").keep(record("near", "adapt"))
    known = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    known["machine"]["processor"] = "Abacus"
    (tmp_path / "peers.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(DataError, match="was measured on another machine .*Abacus.*Give another --out"):
        results.Results(tmp_path / "peers.json")


def test_a_file_holds_one_image_size(tmp_path) -> None:
    kept = results.Results(tmp_path / "peers.json")
    kept.keep(record("near", "adapt"))
    kept.check_common({"size": 96, "threads": 2, "budget": None})
    with pytest.raises(DataError, match="holds runs with {'size': 96}, these have .*224.* Give another --out."):
        kept.check_common({"size": 224, "threads": 2, "budget": None})


def write_task(root: Path, per_class: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            (root / "toy" / split / label).mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "toy" / split / label / f"{number}.png")
    described = {"name": "toy", "copy_of": None, "content": "0123456789abcdef", "classes": ["a", "b"]}
    (root / "toy" / "task.json").write_text(json.dumps(described), encoding="utf-8")
    return root


def test_a_task_is_drawn_down_to_a_number_of_images_per_class(tmp_path) -> None:
    root = write_task(tmp_path / "tasks")
    whole = tasks.prepare(root, "toy", tmp_path / "work")
    assert (whole.folder, whole.train, whole.label) == (root / "toy", 12, "toy")
    small = tasks.prepare(root, "toy:2", tmp_path / "work")
    assert (small.train, small.test, small.classes, small.family) == (4, 12, 2, "toy")
    assert small.label == "toy, 2 per class"
    again = tasks.prepare(root, "toy:2", tmp_path / "work")
    assert again == small
    with pytest.raises(OptionError, match="make_tasks.py --out .* --only cats"):
        tasks.prepare(root, "cats", tmp_path / "work")
    with pytest.raises(OptionError, match="NAME:IMAGES_PER_CLASS, got 'toy:few'"):
        tasks.split_name("toy:few")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_stopwatch_stands_still_during_evaluation() -> None:
    clock = Clock()
    watch = protocol.Stopwatch(started=90.0, clock=clock)
    with pytest.raises(RuntimeError, match="ready"):
        watch.record(0.5, "too early")
    watch.ready()
    clock.now += 3
    with watch.evaluation():
        clock.now += 50
    watch.record(0.5, "epoch 1")
    assert watch.points == [{"seconds": 3.0, "since_start": 13.0, "accuracy": 0.5, "done": "epoch 1"}]
    assert watch.ready_after == 10
    assert watch.exceeds(3)
    assert not watch.exceeds(3.5)
    assert not watch.exceeds(None)


def test_the_stopwatch_goes_on_after_an_evaluation_that_failed() -> None:
    clock = Clock()
    watch = protocol.Stopwatch(started=100.0, clock=clock)

    def fail() -> None:
        with watch.evaluation():
            clock.now += 7
            raise KeyError("no image")

    with pytest.raises(KeyError, match="no image"):
        fail()
    assert watch.since_start == 0


def test_arguments_become_a_job(tmp_path) -> None:
    root = write_task(tmp_path)
    told = ["--task", str(root / "toy"), "--size", "96", "--weights", "w", "--option", "model=a=b", "--epochs", "5"]
    job = protocol.parse(told)
    assert (job.size, job.epochs, job.budget, job.options) == (96, 5, None, {"model": "a=b"})
    assert job.started == pytest.approx(time.time(), abs=60)
    files, labels = job.files("test")
    assert job.classes == ["a", "b"]
    assert labels == [0] * 6 + [1] * 6
    assert [path.parent.name for path in files] == ["a"] * 6 + ["b"] * 6
    assert job.batch == 16


def test_every_contestant_has_its_file_and_its_environment() -> None:
    for contestant in roster.ROSTER.values():
        source = environments.CONTESTANTS / f"{contestant.module}.py"
        assert "contest(run)" in source.read_text(encoding="utf-8")
        assert contestant.ours == (contestant.name in roster.OURS)
        if not contestant.ours:
            pins = environments.requirements(contestant.venv).read_text(encoding="utf-8").splitlines()
            assert all(re.fullmatch(r"#.*|[A-Za-z0-9_.-]+={2,3}[A-Za-z0-9.+!]+", line) for line in pins)
            assert {"torch", "torchvision", "timm"} <= {line.split("=")[0] for line in pins}
    assert "search" not in [one.name for one in roster.choose(None)]
    with pytest.raises(OptionError, match="fastai_14"):
        roster.choose(["fastai_15"])


def test_contestants_know_nothing_of_the_benchmark() -> None:
    for path in environments.CONTESTANTS.glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (peers\S*|regret\S*|transferkit\S*)", path.read_text("utf-8"), re.M)
        allowed = {"peers.contestants.protocol", "peers.contestants.images"}
        assert set(imported) <= allowed | ({"transferkit"} if path.stem == "transferkit_adapt" else set())


STUB = """#!{python}
import json, os, subprocess, sys, time
if "-c" in sys.argv:
    sys.exit()
if sys.argv[2] == "peers.contestants.protocol":
    print(json.dumps({{"torch": "{version}"}}))
    sys.exit()
with open("{calls}", "a") as calls:
    calls.write(sys.argv[2].rpartition(".")[2] + "\\n")
if "timm_fine_tune" in sys.argv[2]:
    sys.exit("no such optimizer")
if "all_layers" in sys.argv[2]:
    with open("{calls}.worker", "w") as worker:
        worker.write(str(subprocess.Popen(["sleep", "60"]).pid))
    time.sleep(60)
print("a library's greeting")
point = {{"seconds": 1.0, "since_start": 2.0, "accuracy": 0.5, "done": "done"}}
threads = int(os.environ["OMP_NUM_THREADS"])
print(json.dumps({{"points": [point], "ready": 1.0, "notes": {{"threads": threads}}, "error": None, "versions": {{}}}}))
"""


def write_stub(venvs: Path, calls: Path, version: str) -> None:
    """An environment whose Python prints a contestant's answer."""
    path = venvs / "plain" / "bin" / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STUB.format(python=sys.executable, calls=calls, version=version), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_a_run_is_resumed_and_failures_are_results(tmp_path, capsys) -> None:
    root, calls, out = write_task(tmp_path / "tasks"), tmp_path / "calls", tmp_path / "peers.json"
    write_stub(tmp_path / "venvs", calls, "2")
    contestants = roster.choose(["sklearn", "timm", "all_layers"])
    stages = [tasks.prepare(root, word, tmp_path / "work") for word in ("toy", "toy:2")]
    setting = running.Setting(size=32, weights=tmp_path / "w", venvs=tmp_path / "venvs", threads=3, limit=3.0)

    def run(**changed) -> list[str]:
        calls.write_text("", encoding="utf-8")
        running.run_all(results.Results(out), contestants, stages, [0], setting, **{"retry": False, **changed})
        return calls.read_text(encoding="utf-8").split()

    forwards = ["all_layers", "timm_fine_tune", "sklearn_features"]
    assert run() == forwards + forwards[::-1]
    assert "toy, 2 per class, seed 0, sklearn: 50.0 % in 1.0 s" in capsys.readouterr().out
    assert run() == []
    contestants = roster.choose(["sklearn", "timm"])
    assert run(retry=True) == ["timm_fine_tune"] * 2
    errors = {one["contestant"]: one["error"] for one in results.Results(out).records}
    assert errors == {
        "sklearn": None,
        "timm": "exit code 1: no such optimizer",
        "all_layers": "stopped after 3 s, the --limit",
    }
    worker = Path(f"/proc/{(tmp_path / 'calls.worker').read_text(encoding='utf-8')}/stat")
    assert not worker.exists() or worker.read_text(encoding="utf-8").split()[2] == "Z"  # ended with its contestant
    write_stub(tmp_path / "venvs", calls, "3")
    contestants = roster.choose(["sklearn"])
    assert run() == ["sklearn_features"] * 2
    kept = results.Results(out).records
    assert len(kept) == 8
    assert kept[-1]["notes"] == {"threads": 3}
    assert kept[-1]["train"] == 4


def test_a_missing_environment_is_an_error_with_the_remedy(tmp_path, capsys) -> None:
    root = write_task(tmp_path / "tasks")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tf_efficientnet_lite0.safetensors").touch()
    told = ["run", "--root", root, "--contestants", "timm", "--venvs", tmp_path / "venvs", "--work", tmp_path / "work"]
    with pytest.raises(SystemExit):
        bench_peers.main([*map(str, told), "--out", str(tmp_path / "peers.json")])
    assert "python does not exist. Run: python scripts/bench_peers.py setup --venvs" in capsys.readouterr().err


def test_the_weights_file_is_the_packaged_network(tmp_path) -> None:
    from peers.backbone import write_weights
    from peers.contestants.images import describe, load_network

    from transferkit import zoo

    path = write_weights(tmp_path / "w.safetensors")
    about = describe(path)
    assert about["architecture"] == "tf_efficientnet_lite0"
    assert (about["classes"], about["features"], about["size"]) == (1000, 1280, 224)
    assert about["mean"] == pytest.approx([127 / 255] * 3)
    assert about["std"] == pytest.approx([128 / 255] * 3)
    images = torch.rand(2, 3, 64, 64)
    ours, _ = zoo.load("packaged/tf_efficientnet_lite0")
    with torch.no_grad():
        theirs = load_network(path, 0).eval()(images)
        assert torch.equal(theirs, ours.forward_head(ours.forward_features(images), pre_logits=True))
    assert load_network(path, 7).classifier.out_features == 7
