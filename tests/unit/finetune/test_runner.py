"""One fit: interrupted and taken up it ends as if it had not been; where memory runs out it goes on in parts."""

from __future__ import annotations

import json
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.unit.finetune.training_toys import CLASSES, SIDE, head_then, make_backbone, phase, plan_of
from transferkit.api import adapt
from transferkit.core.batches import batches
from transferkit.core.errors import OptionError, RunFolderError
from transferkit.finetune import CutBatch, TransferModule, trainer_options
from transferkit.finetune import checkpoint as checkpoint_module
from transferkit.finetune import runner as runner_module
from transferkit.finetune.checkpoint import CHECKPOINT, RunCheckpoint
from transferkit.finetune.runner import Runner
from transferkit.finetune.trainer_options import SET_BY_RECIPE, count_processes
from transferkit.options import Recipe

N, HELD_BACK = 20, 10

IMAGES = torch.randn(N + HELD_BACK, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LABELS = IMAGES.mean((2, 3)).argmax(1)

TWO_PHASES = plan_of(*head_then(top=0.02, middle=0.01), norm="keep")
ALL_AT_ONCE = plan_of(phase("all", top=0.02, middle=0.02, stem=0.02), norm="frozen")
ACCUMULATING = "switching to gradient accumulation over 2 micro-batches for a batch of"
"""Nothing in it depends on what else is in a batch."""

PLAIN = Recipe(epochs=6, batch_size=8, optimizer="adamw", patience=6)


class Feed:
    """Noise in batches; the order is told from the epoch."""

    def __init__(self, batch_size: int, *, training: bool = True) -> None:
        self.batch_size, self.training, self.epoch = batch_size, training, 0
        self.sampler, self.batch_sampler = self, None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self._rows():
            yield IMAGES[rows], LABELS[rows]

    def _rows(self) -> list[Any]:
        if self.training:
            return batches(N, self.batch_size, seed=0, epoch=self.epoch)
        return [N + rows for rows in batches(HELD_BACK, self.batch_size, seed=0, epoch=0, shuffle=False)]


def make_module(recipe: Recipe = PLAIN, plan: Any = TWO_PHASES) -> TransferModule:
    return TransferModule(make_backbone(), plan, classes=CLASSES, recipe=recipe)


def fit(
    folder: Path | None,
    recipe: Recipe = PLAIN,
    plan: Any = TWO_PHASES,
    *,
    stop_after: int | None = None,
    judged: bool = True,
    runner: Runner | None = None,
) -> tuple[TransferModule, RunCheckpoint]:
    module = make_module(recipe, plan)
    runner = Runner(device=torch.device("cpu"), folder=folder, progress=False) if runner is None else runner
    held_back = Feed(HELD_BACK, training=False) if judged else None
    return module, runner.fit(module, Feed, held_back, name="fit", stop_after=stop_after or recipe.epochs or 1)


def assert_alike(one: tuple[TransferModule, RunCheckpoint], other: tuple[TransferModule, RunCheckpoint]) -> None:
    """Bit for bit."""
    weights, same = one[0].state_dict(), other[0].state_dict()
    assert [name for name in weights if not torch.equal(weights[name], same[name])] == []
    first, second = one[1], other[1]
    assert [replace(epoch, seconds=0) for epoch in first.epochs] == [
        replace(epoch, seconds=0) for epoch in second.epochs
    ]
    assert first.best_epoch == second.best_epoch
    assert all(torch.equal(first.best_state[name], second.best_state[name]) for name in weights)
    assert list(first.snapshots) == list(second.snapshots)
    for epoch, state in first.snapshots.items():
        assert all(torch.equal(state[name], second.snapshots[epoch][name]) for name in weights)
    assert [outputs.tolist() for outputs in first.outputs] == [outputs.tolist() for outputs in second.outputs]


class Killed(Exception):
    """What stops a fit in the middle."""


@pytest.fixture
def before_batch(monkeypatch) -> Callable[[Callable[[int], None]], None]:
    """Have something happen before every batch, which are counted."""
    own = TransferModule.on_train_batch_start

    def put(act: Callable[[int], None]) -> None:
        count = iter(range(10**6))

        def hook(self: TransferModule, batch: Any, batch_idx: int) -> None:
            act(next(count))
            own(self, batch, batch_idx)

        monkeypatch.setattr(TransferModule, "on_train_batch_start", hook)

    return put


@pytest.fixture
def kill_at(before_batch) -> Callable[[int], None]:
    def put(moment: int) -> None:
        def act(count: int) -> None:
            if count == moment:
                raise Killed

        before_batch(act)

    return put


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "SAVE_EVERY", 0.0)


# ---- Taken up --------------------------------------------------------------------------------------------------------

RECIPES = {
    "plain": {},
    "ema": {"average": "ema", "dropout": 0.3},
    "swa": {"average": "swa", "optimizer": "sgd"},
    "plateau": {"schedule": "plateau", "epochs": 9, "lr": 0.1, "l2_sp": 0.1},
    "snapshots": {"snapshots": 3},
    "early stopping": {"patience": 1, "epochs": 12, "schedule": "constant"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_fit_that_is_killed_again_and_again_ends_as_the_one_that_was_not(name, tmp_path, kill_at):
    recipe = replace(PLAIN, **RECIPES[name])
    whole = fit(tmp_path / "whole", recipe)
    moments = random.Random(name)
    for _ in range(3):
        kill_at(moments.randrange(3, 9))
        with suppress(Killed):  # early stopping may be first
            fit(tmp_path / "killed", recipe)
    kill_at(-1)
    assert_alike(whole, fit(tmp_path / "killed", recipe))
    assert (tmp_path / "killed" / "curves").is_dir()


def test_a_fit_on_all_images_stops_where_it_was_told_to_however_often_it_is_killed(tmp_path, kill_at):
    whole = fit(tmp_path / "whole", stop_after=4, judged=False)
    kill_at(8)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", stop_after=4, judged=False)
    kill_at(-1)
    assert_alike(whole, fit(tmp_path / "killed", stop_after=4, judged=False))
    assert len(whole[1].epochs) == 4


@pytest.mark.parametrize(
    ("recipe", "stop_after", "judged"),
    [
        (PLAIN, 6, True),
        (PLAIN, 2, False),
        (replace(PLAIN, epochs=12, patience=1, schedule="constant", average="ema"), 12, True),
    ],
    ids=["all epochs", "told to", "early"],
)
def test_a_fit_that_is_finished_is_not_run_again(recipe, stop_after, judged, tmp_path, before_batch):
    def fail(count: int) -> None:
        raise AssertionError("it trains")

    whole = fit(tmp_path, recipe, stop_after=stop_after, judged=judged)
    before_batch(fail)
    again = fit(tmp_path, recipe, stop_after=stop_after, judged=judged)
    assert_alike(whole, again)
    if recipe.average == "ema":
        assert len(whole[1].epochs) < 12
        assert again[0].average.count == whole[0].average.count > 0


def test_a_fit_stops_early_once_only(tmp_path):
    """Restored after its last epoch, early stopping must not let another one pass."""
    recipe = replace(PLAIN, epochs=12, patience=1, schedule="constant")
    _, memory = fit(tmp_path, recipe)
    assert [len(fit(tmp_path, recipe)[1].epochs) for _ in range(2)] == [len(memory.epochs)] * 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_fit_in_half_precision_is_taken_up_as_well(precision, tmp_path, kill_at):
    def runner(name: str) -> Runner:
        options = {"precision": precision}
        return Runner(device=torch.device("cpu"), folder=tmp_path / name, options=options, progress=False)

    whole = fit(None, runner=runner("whole"))
    kill_at(8)
    with pytest.raises(Killed):
        fit(None, runner=runner("killed"))
    kill_at(-1)
    assert_alike(whole, fit(None, runner=runner("killed")))
    assert_alike(whole, fit(None, runner=runner("killed")))  # only read


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_a_checkpoint_that_cannot_be_read_starts_the_fit_afresh_and_says_so(damage, tmp_path, kill_at):
    whole = fit(tmp_path / "whole")
    kill_at(8)
    with pytest.raises(Killed):
        fit(tmp_path / "killed")
    kill_at(-1)
    checkpoint = tmp_path / "killed" / "fit" / CHECKPOINT
    content = checkpoint.read_bytes()
    if damage == "other":
        torch.save({"weights": torch.zeros(3)}, checkpoint)
    else:
        checkpoint.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint"}[damage])
    runner = Runner(device=torch.device("cpu"), folder=tmp_path / "killed", progress=False)
    assert_alike(whole, fit(None, runner=runner))
    (note,) = runner.notes
    assert note.startswith("The checkpoint of fit cannot be read")
    assert note.endswith("this fit starts over.")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    whole, own = fit(tmp_path / "whole"), pl.Trainer.save_checkpoint

    def save_half(self: pl.Trainer, path: Path, *rest: Any, **options: Any) -> None:
        own(self, path, *rest, **options)
        if self.current_epoch == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise Killed

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save_half)
    with pytest.raises(Killed):
        fit(tmp_path / "killed")
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", own)
    runner = Runner(device=torch.device("cpu"), folder=tmp_path / "killed", progress=False)
    assert_alike(whole, fit(None, runner=runner))
    assert runner.notes == []
    assert (tmp_path / "killed" / "curves" / "fit-after-3").is_dir()


def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch):
    def save(self: pl.Trainer, path: Path, *rest: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    with pytest.raises(RunFolderError, match="No space left on device. Free some space; the same command"):
        fit(tmp_path)


def test_checkpoints_are_written_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "SAVE_EVERY", 3600.0)
    saved, own = [], pl.Trainer.save_checkpoint

    def save(self: pl.Trainer, path: Path, *rest: Any, **options: Any) -> None:
        saved.append(self.current_epoch)
        own(self, path, *rest, **options)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    fit(tmp_path)
    assert saved == [5]
    assert [path.name for path in (tmp_path / "fit").glob("*.ckpt*")] == [CHECKPOINT]


# ---- Stopped by hand -------------------------------------------------------------------------------------------------


def test_ctrl_c_is_a_keyboard_interrupt_and_the_next_one_is_heard(tmp_path, before_batch):
    def interrupt(count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    before_batch(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "fit" / CHECKPOINT).is_file()


def test_being_told_to_end_does_not_look_like_success(tmp_path, before_batch):
    def end(count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before_batch(end)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path)
    assert left.value.code == 143


# ---- RunCheckpoint ----


@pytest.fixture
def room_for(monkeypatch) -> Callable[..., list[int]]:
    """A device that holds so many images; where it runs out is told."""
    own = TransferModule.features

    def put(limit: int, *, training: bool = True, phase: int = 0) -> list[int]:
        refused: list[int] = []

        def features(self: TransferModule, images: torch.Tensor) -> torch.Tensor:
            if len(images) > limit and self.training is training and (self.freeze_plan.phase or 0) >= phase:
                refused.append(len(images))
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return own(self, images)

        monkeypatch.setattr(TransferModule, "features", features)
        return refused

    return put


EVEN = Recipe(epochs=4, batch_size=10, optimizer="sgd", patience=4, average="ema")
"""Two steps of ten images an epoch: halves of them are as large as each other."""


@pytest.fixture
def no_dropout(monkeypatch):
    """What it draws depends on the batch."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda values, *rest, **options: values)


@pytest.mark.usefixtures("no_dropout")
def test_where_memory_runs_out_batches_are_added_up_from_parts_with_the_same_outcome(tmp_path, room_for):
    whole, memory = fit(None, EVEN, ALL_AT_ONCE)
    refused = room_for(5)
    runner = Runner(device=torch.device("cpu"), folder=tmp_path, progress=False)
    halved, memory_of_halved = fit(None, EVEN, ALL_AT_ONCE, runner=runner)
    assert refused == [10]
    assert runner.notes == [f"Memory ran out at 10 images per batch: {ACCUMULATING} 10."]
    assert halved.average.count == whole.average.count == 2 * 4
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    for one, other in zip(memory.epochs, memory_of_halved.epochs, strict=True):
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-3)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.lr == other.lr


def test_what_did_not_fit_in_one_fit_is_not_tried_in_the_next(room_for):
    refused = room_for(5)
    runner = Runner(device=torch.device("cpu"), progress=False)
    for _ in range(2):
        fit(None, EVEN, ALL_AT_ONCE, runner=runner)
    assert refused == [10]
    assert len(runner.notes) == 1


def test_memory_that_runs_out_in_a_later_phase_starts_again_in_parts_and_is_taken_up_in_parts(
    tmp_path, room_for, kill_at
):
    recipe = replace(PLAIN, average="ema")
    refused = room_for(4, phase=1)
    whole = fit(tmp_path / "whole", recipe)
    assert refused == [8]
    kill_at(3 * 3 + 5 * 4)  # three epochs of three batches, then four of five
    with pytest.raises(Killed):
        fit(tmp_path / "killed", recipe)
    kill_at(-1)
    runner = Runner(device=torch.device("cpu"), folder=tmp_path / "killed", progress=False)
    assert_alike(whole, fit(None, recipe, runner=runner))
    assert refused == [8, 8]  # the fit that was taken up did not try again
    assert runner.notes == [f"Memory ran out at 8 images per batch: {ACCUMULATING} 8."]
    finished = Runner(device=torch.device("cpu"), folder=tmp_path / "killed", progress=False)
    fit(None, recipe, runner=finished)
    assert finished.notes == runner.notes


def test_memory_for_a_single_image_says_how_each_halving_went_and_none_at_all_what_to_do(tmp_path, room_for):
    room_for(1)
    runner = Runner(device=torch.device("cpu"), folder=tmp_path, progress=False)
    fit(None, replace(EVEN, batch_size=4, epochs=1), ALL_AT_ONCE, runner=runner)
    assert [note[:40] for note in runner.notes] == [
        "Memory ran out at 4 images per batch: sw",
        "Memory ran out at 2 images per batch: sw",
    ]
    room_for(0)
    with pytest.raises(OptionError, match="Memory runs out on cpu with a single image. Choose a smaller image_size"):
        fit(None, EVEN, ALL_AT_ONCE)


def test_one_of_several_processes_cannot_halve_alone(room_for, monkeypatch):
    room_for(5)
    monkeypatch.setattr(runner_module, "rank_and_world_size", lambda: (0, 2))
    with pytest.raises(
        OptionError, match="Memory runs out at 5 images per batch in one of 2 processes, while the others"
    ):
        fit(None, EVEN, ALL_AT_ONCE)


@pytest.mark.parametrize("room", [1, 3, 9])
def test_held_back_images_that_do_not_fit_at_once_are_judged_in_halves(room, room_for):
    whole = fit(None, replace(EVEN, average="ema"), ALL_AT_ONCE)
    refused = room_for(room, training=False)
    runner = Runner(device=torch.device("cpu"), progress=False)
    _, memory = fit(None, EVEN, ALL_AT_ONCE, runner=runner)
    assert refused
    assert runner.notes == []
    for one, other in zip(whole[1].outputs, memory.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert [epoch.val_accuracy for epoch in whole[1].epochs] == [epoch.val_accuracy for epoch in memory.epochs]


def test_after_a_pass_that_failed_the_raw_weights_are_back_and_the_plan_is_off(monkeypatch):
    """Judging fails inside of the swap of the weights for their average."""

    def fail(self: TransferModule, batch: Any, batch_idx: int) -> None:
        raise Killed

    raw, _ = fit(None, EVEN, ALL_AT_ONCE, stop_after=1, judged=False)
    monkeypatch.setattr(TransferModule, "validation_step", fail)
    module, runner = make_module(EVEN, ALL_AT_ONCE), Runner(device=torch.device("cpu"), progress=False)
    with pytest.raises(Killed):
        runner.fit(module, Feed, Feed(HELD_BACK, training=False), name="fit", stop_after=4)
    weights = raw.state_dict()
    assert not all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    module.break_off()
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())


def test_part_of_a_cut_batch_is_that_part_of_all_it_holds():
    batch = CutBatch(torch.arange(12.0).view(6, 2), {"stem": torch.arange(6.0).view(6, 1)})
    part = batch.part(slice(2, 4))
    assert part.activation.tolist() == [[4, 5], [6, 7]]
    assert part.pooled["stem"].tolist() == [[2], [3]]


def test_any_other_error_is_not_mistaken_for_memory(before_batch):
    def fail(count: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    before_batch(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(None)


# ---- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SET_BY_RECIPE)
def test_what_the_recipe_sets_is_not_for_the_trainers_options(name):
    with pytest.raises(OptionError, match=f"trainer.{name}: these are set by the recipe"):
        count_processes(torch.device("cpu"), {name: 1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonsense": 1}, "there is an unexpected keyword argument 'nonsense'"),
        ({"precision": "foo"}, "Precision 'foo' is invalid"),
        ({"strategy": "nonsense"}, "invalid strategy name"),
        ({"devices": 0}, "devices"),
    ],
)
def test_what_the_trainer_does_not_take_is_known_before_any_work(options, said):
    with pytest.raises(OptionError, match=f"Lightning's Trainer does not accept these options: .*{said}"):
        count_processes(torch.device("cpu"), options)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
def test_options_arrive_at_the_trainer(strategy, monkeypatch):
    came: dict[str, Any] = {}

    class Trainer:
        def __init__(self, **options: Any) -> None:
            came.update(options)
            raise Killed

    monkeypatch.setattr(pl, "Trainer", Trainer)
    options = {"strategy": strategy, "devices": 2, "precision": "bf16-mixed", "benchmark": True}
    with pytest.raises(Killed):
        fit(None, runner=Runner(device=torch.device("cpu"), options=options, progress=False))
    assert {name: came[name] for name in options} == options
    assert came["max_epochs"] == PLAIN.epochs


SHARDING = {name: name for name in ("fsdp_cpu_offload", "deepspeed_stage_2")} | {
    "made by hand": pl.strategies.FSDPStrategy(cpu_offload=True)
}


@pytest.mark.parametrize("strategy", SHARDING.values(), ids=SHARDING)
def test_a_strategy_that_shards_another_way_is_refused_before_anything_is_done(strategy, tmp_path):
    options = {"strategy": strategy, "devices": 2}
    with pytest.raises(OptionError, match=r"clipping, averaging and saving. Use trainer.strategy=fsdp"):
        adapt("timm/test_resnet", tmp_path / "nowhere", trainer=options)
    with pytest.raises(OptionError, match="Strategy shards weights in a way that hides them"):
        fit(None, runner=Runner(device=torch.device("cpu"), options=options, progress=False))


def test_each_fit_gets_a_sharding_strategy_of_its_own(tmp_path):
    shared = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    with pytest.raises(OptionError, match="its own strategy object: pass trainer.strategy=fsdp instead"):
        adapt("timm/test_resnet", tmp_path / "nowhere", trainer={"strategy": shared, "devices": 2})


def test_what_the_recipe_sets_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(OptionError, match="trainer.max_epochs: these are set by the recipe"):
        adapt("timm/test_resnet", tmp_path / "nowhere", trainer={"max_epochs": 3})


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_for_training_alone_are_refused(strategy):
    options = {"strategy": strategy, "devices": 2, "accelerator": "cpu"}
    with pytest.raises(OptionError, match="cannot return their results. Use trainer.strategy=ddp"):
        fit(None, runner=Runner(device=torch.device("cpu"), options=options, progress=False))


def test_a_batch_must_be_enough_for_all_processes():
    options = {"strategy": "ddp", "devices": 4, "accelerator": "cpu"}
    with pytest.raises(OptionError, match="A batch of 3 cannot be divided among 4 processes"):
        fit(None, replace(PLAIN, batch_size=3), runner=Runner(device=torch.device("cpu"), options=options))


def test_what_torchrun_started_must_be_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(runner_module, "launch_options", lambda: {"devices": 2, "num_nodes": 1, "strategy": "auto"})
    runner = Runner(device=torch.device("cpu"), options={"devices": 1}, progress=False)
    with pytest.raises(OptionError, match="2 processes were started, but trainer.devices and .* request 1"):
        fit(None, runner=runner)


def test_curves_of_a_fit_are_kept_as_a_table(tmp_path):
    _, memory = fit(tmp_path)
    header, *rows = (tmp_path / "curves" / "fit" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "val_loss" in header.split(",")
    assert len(rows) >= len(memory.epochs)
    assert json.dumps([epoch.number for epoch in memory.epochs]) == "[0, 1, 2, 3, 4, 5]"


def test_the_same_warning_is_shown_once_however_many_fits_bring_it(tmp_path):
    shown = []
    fall, rise = f"rates fall in {tmp_path}", f"rates rise in {tmp_path}"  # that no other test warns of
    for text in (fall, fall, rise, fall):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: shown.append(str(message))
            with trainer_options.quietly():
                warnings.warn(text, stacklevel=1)
    assert shown == [fall, rise]
