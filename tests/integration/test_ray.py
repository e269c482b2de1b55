"""`tune` on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import transferkit as tk
from tests.unit.tuning.test_study import SPACE, distance
from transferkit.tuning import storage as storages
from transferkit.tuning.ray_workers import run_on_ray
from transferkit.tuning.stages import plan_stages
from transferkit.tuning.study import SLOT, Search, join_study, work

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'transferkit[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:ray")]

RATES = {"train": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "dropout": [0.0, 0.5]}}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        ray.init(address=made.address, logging_level="warning")
        yield made
        ray.shutdown()
        made.shutdown()


def test_two_workers_find_what_one_process_finds(cluster, stripes, tmp_path):
    options = {
        "pretrained": False, "image_size": 32, "views": 1, "strategy": "few_layers", "progress": False, "space": RATES,
        "train": {"epochs": 2, "folds": 1, "augment": "none", "batch_size": 8}, "trials": 8, "sampler": "random",
    }  # fmt: skip
    alone = tk.tune("timm/test_resnet", stripes, **options)
    found = tk.tune("timm/test_resnet", stripes, **options, launcher="ray", workers=2, out=tmp_path)
    assert [trial.state for trial in found.trials] == ["complete"] * 8
    assert [trial.values for trial in found.trials] == [trial.values for trial in alone.trials]
    assert [trial.accuracy for trial in found.trials] == [trial.accuracy for trial in alone.trials]


def worker(storage, trials, noted, threads):
    storages.ALIVE_EVERY, storages.GIVEN_UP_AFTER = 1, 10
    died = noted / "died"

    def objective(point, stage, report):
        (noted / f"{ray.get_runtime_context().get_node_id()} {os.getpid()}").touch()
        time.sleep(0.3)
        if not died.exists():
            died.touch()
            os._exit(1)
        return distance(point, stage, report)

    search = Search(space=SPACE, stages=plan_stages("random", trials))
    work(join_study(search, storage=storage, name="test"), search, objective, waiting_seconds=0.2)


def test_a_worker_that_dies_is_started_again_and_its_trial_is_retried(cluster, tmp_path):
    from functools import partial

    storage, noted, trials = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "noted", 12
    noted.mkdir()
    run_on_ray(partial(worker, storage, trials, noted), workers=2, storage=storage, takes_gpus=True)
    study = join_study(Search(space=SPACE, stages=plan_stages("random", trials)), storage=storage, name="test")
    complete = [one.user_attrs[SLOT] for one in study.trials if one.state.name == "COMPLETE"]
    failed = [one for one in study.trials if one.state.name == "FAIL" and SLOT in one.user_attrs]
    assert sorted(complete) == list(range(trials))
    assert len(failed) == 1
    processes = [path.name.split() for path in noted.glob("* *")]
    assert len({node for node, _ in processes}) == 2
    assert len(processes) == 3


def test_a_workers_own_complaint_is_told_as_it_is(cluster, tmp_path):
    from transferkit.core.errors import DataError

    def complain(threads):
        raise DataError("There are no images on this machine.")

    with pytest.raises(DataError, match="^There are no images on this machine.$"):
        run_on_ray(complain, workers=2, storage=f"sqlite:///{tmp_path / 'study.db'}", takes_gpus=False)
