"""Stages of a search, and a study that several processes work on."""

import math
import multiprocessing
import os
import signal
import time

import optuna
import pytest

from tests.postgresql import USER
from transferkit.core.errors import DataError, MissingDependencyError, OptionError
from transferkit.tuning import storage as storages
from transferkit.tuning import study as studies
from transferkit.tuning.space import Choices, Range
from transferkit.tuning.stages import FINALISTS, PRUNERS, SAMPLERS, SearchStage, plan_stages, stage_of
from transferkit.tuning.study import DETAILS, ERROR, SLOT, Score, Search, join_study, with_advice, work

SPACE = {
    "lr": Range(low=1e-6, high=1.0, log=True),
    "decay": Range(low=1e-6, high=1.0, log=True),
    "schedule": Choices(values=("cosine", "constant")),
}


def distance(point, stage, report):
    """Best at a rate of 1e-3; the decay matters a tenth as much."""
    value = -abs(math.log10(point["lr"]) + 3) - 0.1 * abs(math.log10(point["decay"]) + 4)
    return Score(value=value, details={"share": stage.share})


def run(sampler, trials, *, objective=distance, seed=0, storage=None, pruner="none", **options):
    search = Search(space=SPACE, stages=plan_stages(sampler, trials), seed=seed, pruner=pruner)
    study = join_study(search, storage=storage, name="test")
    work(study, search, objective, **options)
    return study


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_as_many_trials_as_asked_for(sampler):
    study = run(sampler, 20)
    assert states(study) == ["COMPLETE"] * 20
    assert [trial.user_attrs[SLOT] for trial in study.trials] == list(range(20))
    assert all(set(trial.params) == set(SPACE) for trial in study.trials)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_tries_the_same_points(sampler):
    one, other, third = run(sampler, 12), run(sampler, 12), run(sampler, 12, seed=1)
    assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]
    if sampler != "grid":
        assert [trial.params for trial in one.trials] != [trial.params for trial in third.trials]


def test_the_narrow_stage_is_around_the_best_of_the_wide_one():
    study = run("coarse_to_fine", 40)
    stages = plan_stages("coarse_to_fine", 40)
    wide, best, narrow = ([one for one in study.trials if stage_of(stages, one.user_attrs[SLOT])[0].name == name]
                          for name in ("wide", "checked", "narrow"))  # fmt: skip
    assert [one.params for one in best] == [one.params for one in sorted(wide, key=lambda one: -one.value)[:FINALISTS]]
    spread = [math.log10(one.params["lr"]) for one in narrow]
    middle = [math.log10(one.params["lr"]) for one in best]
    assert max(spread) - min(spread) <= max(0.3 * 6, max(middle) - min(middle)) + 1e-6
    assert sum(one.value for one in narrow) / len(narrow) > sum(one.value for one in wide) / len(wide)


@pytest.mark.parametrize("sampler", ["coarse_to_fine", "one_epoch"])
def test_the_finalists_are_the_best_points_before_each_once_and_in_full(sampler):
    study = run(sampler, 30)
    before, last = study.trials[:-FINALISTS], study.trials[-FINALISTS:]
    longest = max(one.user_attrs[DETAILS]["share"] for one in before)
    trained = [one for one in before if one.user_attrs[DETAILS]["share"] == longest]
    best = [one.params for one in sorted(trained, key=lambda one: -one.value)[:FINALISTS]]
    assert [one.params for one in last] == best
    assert [one.user_attrs[DETAILS]["share"] for one in last] == [1.0] * FINALISTS
    assert longest < 1


def test_a_point_that_only_short_trainings_like_is_not_narrowed_in_on():
    """Low rates look best after few epochs, and are not in the long run."""

    def late(point, stage, report):
        rate = math.log10(point["lr"])
        return Score(value=-abs(rate + 6 - 4 * (stage.share > 0.2)), details={"share": stage.share})

    advice = {"lr": 1e-2, "decay": 1e-4, "schedule": "cosine"}
    stages = plan_stages("coarse_to_fine", 40)
    search = Search(space=SPACE, stages=stages, starts=[advice])
    study = join_study(search, storage=None, name="test")
    work(study, search, late)
    of_stage = {one.number: stage_of(stages, one.user_attrs[SLOT])[0].name for one in study.trials}
    assert advice in [one.params for one in study.trials if of_stage[one.number] == "checked"]
    assert study.trials[-FINALISTS].params["lr"] == pytest.approx(1e-2, rel=9)
    assert study.trials[-FINALISTS].value >= late(advice, stages[-1], None).value


def test_the_advice_is_compared_in_full_whatever_short_trainings_make_of_it():
    advice = {"lr": 1e-6, "decay": 1.0, "schedule": "constant"}
    stages = plan_stages("coarse_to_fine", 20)
    search = Search(space=SPACE, stages=stages, starts=[advice])
    study = join_study(search, storage=None, name="test")
    work(study, search, distance)
    last = [one.params for one in study.trials[-FINALISTS:]]
    before = sorted(study.trials[:-FINALISTS], key=lambda one: (-one.user_attrs[DETAILS]["share"], -one.value))
    others = [one.params for one in before if one.params != advice]
    assert last == [*others[: FINALISTS - 1], advice]
    assert study.trials[0].params == advice


def test_an_advice_among_the_best_takes_nobody_elses_place():
    best = [{"lr": rate} for rate in (1e-3, 1e-2, 1e-1)]
    assert with_advice(best, [{"lr": 1e-2}]) == best == with_advice(best, [])
    assert with_advice(best, [{"lr": 1.0}, {"lr": 2.0}]) == [*best[:2], {"lr": 1.0}]
    assert with_advice([], [{"lr": 1.0}]) == [{"lr": 1.0}]


SHARES = [
    (None, (0.1, 0.3, 0.3)),
    (5000, (0.1, 0.3, 0.3)),
    (300, (0.2, 0.6, 0.6)),
    (150, (0.4, 1, 1)),
    (0, (0.5, 1, 1)),
]


@pytest.mark.parametrize(("steps", "shares"), SHARES)
def test_short_trainings_have_steps_enough_to_say_something(steps, shares):
    *short, full = plan_stages("coarse_to_fine", 20, steps=steps)
    assert [stage.share for stage in short] == pytest.approx(shares)
    assert full.share == 1
    assert [stage.is_last for stage in (*short, full)] == [False, False, False, True]
    assert [stage.is_decider for stage in (*short, full)] == [False, False, False, True]


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe", "one_epoch"])
def test_other_samplers_do_not_depend_on_the_steps(sampler):
    assert plan_stages(sampler, 20, steps=100) == plan_stages(sampler, 20)


def test_tpe_finds_better_points_than_a_grid():
    assert run("tpe", 40).best_value > run("grid", 40).best_value


def test_a_study_is_continued_and_another_search_is_refused(storage):
    seen = []

    def interrupted(point, stage, report):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(point)
        return distance(point, stage, report)

    with pytest.raises(KeyboardInterrupt):
        run("random", 9, objective=interrupted, storage=storage)
    study = run("random", 9, storage=storage)
    assert states(study).count("COMPLETE") == 9
    done = [one.params for one in study.trials if one.state.name == "COMPLETE"]
    assert done[:4] == seen
    assert {tuple(one.values()) for one in done} == {tuple(one.params.values()) for one in run("random", 9).trials}
    with pytest.raises(OptionError, match="holds a study 'test' with another space, sampler or number of trials"):
        run("random", 10, storage=storage)


def test_a_trial_that_cannot_run_is_noted_and_the_others_go_on():
    def odd(point, stage, report):
        if point["schedule"] == "constant":
            raise DataError("There is no such schedule today.")
        return distance(point, stage, report)

    study = run("random", 12, objective=odd)
    assert {*states(study)} == {"COMPLETE", "FAIL"}
    failed = [one for one in study.trials if one.state.name == "FAIL"]
    assert {one.params["schedule"] for one in failed} == {"constant"}
    assert {one.user_attrs[ERROR] for one in failed} == {"There is no such schedule today."}


def test_a_bug_in_a_trial_is_not_hidden():
    def broken(point, stage, report):
        raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError, match="oops"):
        run("random", 3, objective=broken)


def test_trials_for_which_there_is_no_time_are_left_out():
    study = run("one_epoch", 20, allows=lambda stage: stage.name == "finalists")
    assert states(study) == ["FAIL"] * 17 + ["COMPLETE"] * 3


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_trials_that_are_behind_are_ended_early(pruner):
    steps = []

    def long(point, stage, report):
        value = distance(point, stage, report).value
        for step in range(1, 28):
            steps.append(step)
            report(step, value)
        return Score(value=value, details={})

    study = run("random", 30, objective=long, pruner=pruner)
    complete = [one.value for one in study.trials if one.state.name == "COMPLETE"]
    assert "PRUNED" in states(study)
    assert len(steps) < 30 * 27 / 1.5
    assert max(complete) == run("random", 30).best_value


def test_the_wilcoxon_pruner_compares_folds():
    counts = []

    def by_fold(point, stage, report):
        value = distance(point, stage, report).value
        for fold in range(8):
            report(fold, value + 0.01 * fold)
        counts.append(fold)
        return Score(value=value + 0.035, details={})

    study = run("random", 12, objective=by_fold, pruner="wilcoxon")
    assert 0 < states(study).count("PRUNED") == 12 - len(counts)


def test_searches_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="needs at least 8 trials"):
        plan_stages("coarse_to_fine", 7)
    with pytest.raises(OptionError, match="trials must be >= 1"):
        plan_stages("random", 0)
    with pytest.raises(OptionError, match=r"Unknown sampler 'tpee'. Closest known: tpe"):
        plan_stages("tpee", 10)
    with pytest.raises(OptionError, match=r"The storage 'nosql://x' cannot be opened .* Examples: sqlite:///study.db"):
        join_study(Search(space=SPACE, stages=plan_stages("random", 2)), storage="nosql://x", name="x")


def join(storage):
    return join_study(Search(space=SPACE, stages=plan_stages("random", 2)), storage=storage, name="x")


def test_a_server_that_says_no_is_told_at_once_without_the_password(server):
    begun = time.monotonic()
    for place, said in [
        (server.url("postgres", password="wrong secret"), 'password authentication failed for user "tester"'),
        (server.url("nowhere"), 'database "nowhere" does not exist'),
        (server.url("postgres").replace(str(server.port), "1"), "Connection refused"),
    ]:
        with pytest.raises(OptionError, match=r"cannot be opened \(.*Check the address, user, password") as refused:
            join(place)
        assert said in str(refused.value)
        assert f"{USER}:***@" in str(refused.value)
        assert "secret" not in str(refused.value)
    assert time.monotonic() - begun < 5


def test_without_its_driver_postgresql_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(storages, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'transferkit\[postgres\]'"):
        join("postgresql://host/database")


def test_a_server_that_begins_anew_between_trials_ends_no_search(server):
    def restart(point, stage, report):
        server.stop()
        server.start()
        return distance(point, stage, report)

    study = run("random", 3, objective=restart, storage=server.make_database("restarted"))
    assert states(study) == ["COMPLETE"] * 3


def test_a_server_that_is_gone_is_one_error_and_the_search_goes_on_when_it_is_back(server):
    storage = server.make_database("gone")

    def stop(point, stage, report):
        server.stop()
        return distance(point, stage, report)

    try:
        with (
            pytest.raises(OptionError, match=r"no longer answers \(.*\). Once it does"),
            storages.told_if_gone(storage),
        ):
            run("random", 2, objective=stop, storage=storage)
    finally:
        server.start()
    study = join_study(Search(space=SPACE, stages=plan_stages("random", 2)), storage=storage, name="test")
    assert states(study) == ["RUNNING", "WAITING"]  # the first is queued again when a minute has passed


def test_each_pruner_can_be_made():
    assert set(studies.MAKE_PRUNER) == set(PRUNERS)


def test_the_epochs_of_a_stage_are_a_share_of_all_and_at_least_one():
    assert SearchStage(name="x", trials=1, share=1e-9, source="random").epochs(14) == 1
    assert SearchStage(name="x", trials=1, share=0.3, source="random").epochs(14) == 4
    assert SearchStage(name="x", trials=1, share=1.0, source="random").epochs(14) == 14


def slowly(point, stage, report):
    time.sleep(0.05)
    return distance(point, stage, report)


def help_along(storage, trials, hang):
    storages.ALIVE_EVERY, storages.GIVEN_UP_AFTER = 1, 10

    def forever(point, stage, report):
        print("hanging", flush=True)
        time.sleep(60)

    run("random", trials, objective=forever if hang else slowly, storage=storage, waiting_seconds=0.1)


def test_of_four_processes_one_is_killed_and_no_trial_is_lost_or_doubled(storage):
    trials = 24
    search = Search(space=SPACE, stages=plan_stages("random", trials))
    study = join_study(search, storage=storage, name="test")
    context = multiprocessing.get_context("spawn")
    victim = context.Process(target=help_along, args=(storage, trials, True))
    victim.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(
        one.state == optuna.trial.TrialState.RUNNING for one in study.get_trials(deepcopy=False)
    ):
        time.sleep(0.05)
    time.sleep(1)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    others = [context.Process(target=help_along, args=(storage, trials, False)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    complete = [one for one in study.trials if one.state.name == "COMPLETE"]
    assert sorted(one.user_attrs[SLOT] for one in complete) == list(range(trials))
    failed = [one for one in study.trials if one.state.name == "FAIL" and SLOT in one.user_attrs]
    assert [one.user_attrs[SLOT] for one in failed] == [0]  # the one that was killed
    expected = run("random", trials)
    assert {one.user_attrs[SLOT]: one.params for one in complete} == {
        one.user_attrs[SLOT]: one.params for one in expected.trials
    }


def begin_together(storage, trials, gate, noted):
    def note(point, stage, report):
        with noted.open("a") as file:
            file.write(f"{point['lr']}\n")
        return distance(point, stage, report)

    gate.wait()
    run("random", trials, objective=note, storage=storage, waiting_seconds=0.05)


def test_processes_that_begin_at_once_never_take_the_same_trial(storage, tmp_path):
    trials, noted = 60, tmp_path / "noted.txt"
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    arguments = (storage, trials, gate, noted)
    processes = [context.Process(target=begin_together, args=arguments) for _ in range(4)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    assert [one.exitcode for one in processes] == [0] * 4
    expected = [str(one.params["lr"]) for one in run("random", trials).trials]
    assert sorted(noted.read_text().split()) == sorted(expected)
