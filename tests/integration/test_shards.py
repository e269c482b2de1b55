"""The command line from a folder to a model by way of shards: the same accuracy, the same predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transferkit.cli import main

QUICK = ["model=timm/test_resnet", "pretrained=false", "image_size=32", "device=cpu", "views=1", "progress=false"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def test_from_a_folder_to_a_model_by_way_of_shards(stripes: Path, tmp_path: Path, own_cache: Path, capsys) -> None:
    shards = tmp_path / "my shards"
    said = run(capsys, "shard", f"data.root={stripes}", f"out={shards}", "size=0.02")
    assert f"36 images of 3 classes in 9 shards, 0.3 MB: {shards}" in said
    assert f"transferkit adapt 'data.root={shards}'" in said
    command = [
        sys.executable,
        "-m",
        "transferkit.cli",
        "extract",
        f"data.root={shards}",
        *QUICK,
        f"out={tmp_path / 'x'}",
    ]
    started = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate()[0].decode() for process in started]
    assert [line.partition(" computed")[0] for line in said] == [
        f"rank {rank} of 2: 18 of 36 images, 18" for rank in range(2)
    ]
    found = []
    for name, source in (("folder", stripes), ("shards", shards)):
        cache = [f"cache={tmp_path / 'other'}"] if name == "folder" else []
        run(capsys, "adapt", "strategy=linear_probe", f"data.root={source}", *QUICK, f"out={tmp_path / name}", *cache)
        kept = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
        found.append(kept)
    assert found[1]["evidence"]["images_computed"] == 0
    assert found[0]["evidence"]["images_computed"] == 24
    assert found[0]["metrics"] == found[1]["metrics"]
    pattern = f"{shards}/shard-{{000000..000008}}.tar"
    answers = [run(capsys, "predict", f"run={tmp_path / 'shards'}", f"images={images}").splitlines()
               for images in (shards, pattern, stripes)]  # fmt: skip
    assert answers[0] == answers[1]
    assert sorted(line.partition(",")[2] for line in answers[0]) == sorted(
        line.partition(",")[2] for line in answers[2]
    )


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["shard", "out=x"], "needs data.root=DIR or data.path=FILE"),
        (["shard", "data.root=.", "out=x", "size=big"], "size is a number of megabytes, got 'big'"),
        (["shard", "data.root=nowhere", "out=x"], "There is no folder 'nowhere'"),
        (["extract", "data.root=nowhere-{0..3}.tar"], "4 of the 4 shards in"),
        (["extract", "data=digits", *QUICK], "Extraction is divided by files"),
        (["extract", "data=digits", "tune.trials=3", *QUICK], "extract takes no tune.trials="),
    ],
)
def test_mistakes_are_said_in_a_sentence(words, match, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert match in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in str(path)] == []
