"""Sweeps whose runs start elsewhere: in other processes, on a Ray cluster, as Slurm jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
from importlib.util import find_spec
from shutil import which

import pytest
from hydra.core.hydra_config import HydraConfig

from transferkit.cli import jobs, main
from transferkit.cli.composition import compose_settings, group_choices
from transferkit.cli.jobs import Job
from transferkit.cli.launchers import LAUNCHERS
from transferkit.core.errors import DataError, MissingDependencyError, OptionError

WORDS = [
    "data.root=images",
    "model=timm/test_resnet",
    "pretrained=false",
    "image_size=32",
    "progress=false",
    "out=sweep",
]


def is_there(launcher):
    try:
        return all(find_spec(package) for package in LAUNCHERS[launcher].packages)
    except ModuleNotFoundError:
        return False


needs = {
    name: pytest.mark.skipif(not is_there(name), reason=f"launcher={name} is not installed: {LAUNCHERS[name].install}")
    for name in LAUNCHERS
}
ELSEWHERE = [
    pytest.param("local", marks=needs["local"]),
    pytest.param("ray", marks=[needs["ray"], pytest.mark.slow]),
    pytest.param("here"),
]


@pytest.fixture
def at(tmp_path, monkeypatch):
    folder = tmp_path / "working folder"
    (folder / "images").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def workers_are_gone():
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    if find_spec("ray"):
        import ray

        ray.shutdown()


def odd(settings):
    """Stands for a verb: what becomes of a run depends on its seed."""
    seed = settings.seed
    if seed == 2:
        raise DataError("There are no images today.")
    if seed == 3:
        raise ZeroDivisionError("oops")
    if seed in (4, 6):
        os._exit(9)
    (jobs.output_folder() / "seen.json").write_text(json.dumps([os.getpid(), HydraConfig.get().job.num]))
    return seed / 10


def sweep(launcher, seeds):
    words = [f"launcher={launcher}"] if launcher != "here" else []
    Job("adapt", lambda settings: odd(settings), lambda *_: "", lambda *_: None)(
        ["--multirun", *words, f"seed={seeds}", *WORDS, "data=folder"]
    )


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_scores_and_failures_come_back_from_wherever_a_run_was(launcher, at, capfd):
    with pytest.raises(SystemExit) as stopped:
        sweep(launcher, "0,1,2,3,5")
    assert stopped.value.code == 2
    said = capfd.readouterr()
    table = re.findall(r"^(sweep/\d)\t(seed=\d)\t([\d.]+ %)$", said.out, flags=re.M)
    assert table == [
        ("sweep/0", "seed=0", "0.0 %"), ("sweep/1", "seed=1", "10.0 %"), ("sweep/4", "seed=5", "50.0 %")
    ]  # fmt: skip
    assert "Best held back: sweep/4. Its test accuracy: transferkit evaluate run=sweep/4" in said.out
    assert (
        "Error: 2 runs of this sweep failed; 3 finished:\n- seed=2: There are no images today.\n- seed=3: "
        "ZeroDivisionError: oops (this is a bug; its traceback is in sweep/3/log.txt)\n"
    ) in said.err
    assert "ZeroDivisionError" in (at / "sweep" / "3" / "log.txt").read_text(encoding="utf-8")
    assert not (at / "sweep" / "2").exists()
    assert not (at / "sweep" / ".outcomes").exists()
    processes = {json.loads((at / "sweep" / str(one) / "seen.json").read_text())[0] for one in (0, 1, 4)}
    assert (os.getpid() in processes) == (launcher == "here")


@needs["local"]
def test_runs_whose_process_is_gone_are_reported(at, capfd):
    with pytest.raises(SystemExit) as stopped:
        sweep("local", "4,6")
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    assert "2 runs of this sweep failed; 0 finished:\n- seed=4: its process ended before it was finished" in said


@pytest.mark.slow
@needs["local"]
def test_a_sweep_in_two_processes_trains_as_one_after_another_does(at, stripes, capfd):
    (at / "images").rmdir()
    (at / "images").symlink_to(stripes)
    words = [*WORDS, "strategy=linear_probe", "head=ridge", "views=1"]
    tables = []
    for more in (["launcher=local"], []):
        main(["adapt", "--multirun", *more, "seed=0,1", *words, "overwrite=true"])
        tables.append(re.findall(r"^sweep/\d\tseed=\d\t[\d.]+ %$", capfd.readouterr().out, flags=re.M))
        kept = json.loads((at / "sweep" / "0" / "result.json").read_text(encoding="utf-8"))
        assert "launcher" not in kept["command"]
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_not_installed_is_refused_with_its_command(launcher, monkeypatch):
    monkeypatch.setattr("transferkit.cli.launchers.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"launcher={launcher} needs more packages: pip install"):
        compose_settings([f"launcher={launcher}"])


def test_there_is_a_file_for_every_launcher():
    assert set(group_choices("launcher")) == set(LAUNCHERS)
    with pytest.raises(OptionError, match="Unknown launcher 'slurmm'. Closest known: slurm"):
        compose_settings(["launcher=slurmm"])


@pytest.mark.parametrize(
    ("launcher", "target"),
    [
        pytest.param("local", "hydra_joblib_launcher.joblib_launcher.JoblibLauncher", marks=needs["local"]),
        pytest.param("ray", "hydra_ray_launcher.ray_launcher.RayLauncher", marks=needs["ray"]),
        pytest.param("slurm", "hydra_submitit_launcher.submitit_launcher.SlurmLauncher", marks=needs["slurm"]),
    ],
)
def test_a_launcher_is_hydras(launcher, target):
    assert compose_settings([f"launcher={launcher}"]).hydra.launcher._target_ == f"hydra_plugins.{target}"


@needs["slurm"]
def test_slurm_takes_its_settings():
    more = shlex.split("hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1")
    settings = compose_settings(["launcher=slurm", *more]).hydra.launcher
    assert (settings.partition, settings.gpus_per_node, settings.timeout_min) == ("gpu", 1, 240)


@needs["local"]
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--multirun", "launcher=local", "seed=0,1", "trainer=ddp"], "trainer.devices wants several for one run"),
        pytest.param(
            ["--multirun", "launcher=slurm", "seed=0,1"],
            "there is no sbatch on this machine",
            marks=pytest.mark.skipif(which("sbatch") is not None, reason="this is a Slurm cluster"),
        ),
        (["launcher=local"], "Add --multirun, or leave it out"),
        (["--multirun", "launcher=local", "hydra.launcher.n_jobs=1", "seed=0,x"], "seed must be a whole number"),
    ],
)
def test_what_no_launcher_can_do_is_refused_before_any_folder(at, capsys, words, said):
    (at / "images" / "a").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["adapt", *words, *WORDS])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (at / "sweep").exists()
