"""A Lightning callback that watches training: monitor, capsule of the first step that is not finite, diagnosis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transferkit.core.frameworks import lightning
from transferkit.core.paths import expand
from transferkit.doctor.capsule import CAPSULE, StepKeeper
from transferkit.doctor.loggers import log_histograms, log_scalars
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.monitor_reading import read_monitor, read_training, record_monitor
from transferkit.doctor.run_curves import RunCurves
from transferkit.doctor.step_measures import group_parameters
from transferkit.finetune.module import TransferModule
from transferkit.finetune.sharding import is_sharded
from transferkit.finetune.watching import FitWatch
from transferkit.records import MonitorRecord, Symptom

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["COMPARED", "DoctorCallback", "TrainingWatch", "gradient_norm"]

FEWEST, CLOSEST = 8, 10
"""A short fit is monitored more often, until it has so many monitored steps or every tenth step is one."""

COMPARED = 4
"""Monitored steps between two comparisons of features, each of which costs about a tenth of a step."""

TRAIN_LOSS = "train_loss"
"""What is read instead of the loss where the module calls `loss.backward()` itself, which nothing can observe."""

STEPS = "steps.csv"
"""Name of the file with the monitored steps; of a second optimizer "steps-1.csv"."""


class TrainingWatch(FitWatch):
    """Watches a fit of any LightningModule: a `TrainingMonitor` for each optimizer, and a capsule.

    In every step it checks that loss and gradient are finite, for which a GPU is waited for once per step.

    Args:
        every: Steps between two that are monitored, >= 1; fewer in a short fit, so that 8 are, but at least 10.
        folder: For `steps.csv` and `nan_capsule.pt`; None keeps neither.
        images: Number of images whose features are compared with those at the start; 0 compares none.

    Attributes:
        monitors: One per optimizer, during the fit and after it.
        capsule: Path of the capsule; None if every step was finite, or there is no folder.
        not_finite: What was first not finite, as a sentence; "" if all was.
    """

    def __init__(self, *, every: int = 20, folder: str | Path | None = None, images: int = 16) -> None:
        self.every, self.images = every, images
        self.folder = None if folder is None else expand(folder)
        self.monitors = list[TrainingMonitor]()
        self.capsule: Path | None = None
        self.not_finite = ""
        self._keeper: StepKeeper | None = None
        self._state: Mapping[str, Any] = {}
        self._loss: torch.Tensor | None = None
        self._batch_index, self._compared, self._sharded = 0, 0, False
        self._stages: Mapping[str, str] = {}
        self._interrupted = ""

    @property
    def state_key(self) -> str:
        """Key in Lightning's checkpoints."""
        return "transferkit_watch"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        monitors = [one.state_dict() for one in self.monitors] or self._state.get("monitors", [])
        return {
            "monitors": monitors,
            "capsule": None if self.capsule is None else str(self.capsule),
            "not_finite": self.not_finite,
            "compared": self._compared,
            "stages": dict(self._stages),
            "every": self.monitors[0].every if self.monitors else self.every,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict`, now or when training starts."""
        self._state = state_dict
        self.capsule = None if state_dict["capsule"] is None else Path(state_dict["capsule"])
        self.not_finite, self._compared = state_dict["not_finite"], state_dict["compared"]
        self._stages = dict(state_dict["stages"])

    def record(self) -> MonitorRecord | None:
        """Of the first optimizer's monitor."""
        if not self.monitors:
            found = self._state.get("monitors")
            return (
                record_monitor(_restored(found[0], self._state["every"]), self._stages, capsule=self._path)
                if found
                else None
            )
        return record_monitor(self.monitors[0], self._stages, capsule=self._path)

    @property
    def _path(self) -> str:
        return "" if self.capsule is None else str(self.capsule)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint is loaded after this."""
        if stage == "fit":
            self.monitors, self._keeper, self._state = [], None, {}
            self.capsule, self.not_finite, self._loss, self._compared = None, "", None, 0
            self._interrupted = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hang the monitors on the optimizers."""
        self._sharded = any(map(is_sharded, pl_module.parameters()))
        if self._sharded:
            return
        if self.folder is not None and not self.not_finite:
            rank = trainer.global_rank
            name = CAPSULE if rank == 0 else f"{Path(CAPSULE).stem}-rank{rank}.pt"
            self._keeper = StepKeeper(pl_module, self.folder / name)
        if trainer.is_global_zero:
            steps = trainer.estimated_stepping_batches
            often = self.every if math.isinf(steps) else min(self.every, max(CLOSEST, int(steps) // FEWEST))
            self._hang_monitors(pl_module, [getattr(one, "optimizer", one) for one in trainer.optimizers], often)

    def _hang_monitors(
        self, module: pl.LightningModule, optimizers: Sequence[torch.optim.Optimizer], every: int
    ) -> None:
        groups, stages, self._stages = _parts(module)
        names = {id(one): name for name, one in module.named_parameters()}
        for number, optimizer in enumerate(optimizers):
            if len(optimizers) > 1:
                ids = [id(one) for group in optimizer.param_groups for one in group["params"]]
                groups = group_parameters(module, among={names[one] for one in ids if one in names})
            monitor = TrainingMonitor(
                module,
                optimizer,
                every=every,
                groups=groups,
                stages=stages,
                images=0 if number else self.images,
            )
            self.monitors.append(monitor)
        for monitor, state in zip(self.monitors, self._state.get("monitors", []), strict=False):
            monitor.load_state_dict(state)
        self._state = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch and the random generators."""
        self._batch_index, self._loss = batch_idx, None
        if self._keeper is not None and not self.not_finite:
            self._keeper.begin(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Note the loss."""
        loss = loss.detach() * (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
        if (scaler := _scaler(trainer)) is not None:
            loss = loss / scaler.get_scale()
        self._loss = loss if self._loss is None else self._loss + loss
        self._observe(loss)

    def _observe(self, loss: torch.Tensor) -> None:
        for monitor in self.monitors:
            monitor.observe(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check loss and gradient while the weights are those from before the step."""
        if self._sharded:
            return
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        # A scaled gradient may well overflow: the scaler then skips the step.
        norm = gradient_norm(gradients) if gradients and _scaler(trainer) is None else None
        if norm is not None and len(self.monitors) == 1 and self.monitors[0].is_due:
            self.monitors[0].observe_gradient(float(norm))
        self._check(trainer, pl_module, norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss of a micro-batch that no step follows."""
        if self._loss is not None:
            self._check(trainer, pl_module, None)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule, norm: torch.Tensor | None) -> None:
        loss, self._loss = self._loss, None
        if self.not_finite or self._sharded:
            return
        values = [float("nan") if one is None else float(one) for one in (loss, norm)]
        bad_loss = loss is not None and not math.isfinite(values[0])
        bad_gradient = norm is not None and not math.isfinite(values[1])
        if not (bad_loss or bad_gradient):
            return
        what = (
            f"loss is {values[0]}" if bad_loss else f"loss is {values[0]:.4g}, but the norm of its gradient {values[1]}"
        )
        self.not_finite = f"In step {trainer.global_step} (epoch {trainer.current_epoch + 1}) the {what}."
        if self._keeper is not None:
            self._write(trainer, module, values[0], None if bad_loss else values[1])

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, loss: float, gradient: float | None) -> None:
        assert self._keeper is not None
        facts = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "epochs": trainer.max_epochs or 1,
            "batch_index": self._batch_index,
            "rank": trainer.global_rank,
            "precision": str(trainer.precision),
            "accumulated": trainer.accumulate_grad_batches,
            "processes": trainer.world_size,
            "module": f"{type(module).__module__}.{type(module).__qualname__}",
        }
        network = None
        if isinstance(module, TransferModule):
            from transferkit.doctor.rebuilding import describe_module

            network = describe_module(module)
        optimizers = [getattr(one, "optimizer", one) for one in trainer.optimizers]
        self._keeper.write(loss=loss, gradient=gradient, optimizers=optimizers, facts=facts, network=network)
        self.capsule = self._keeper.path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare features, unless few steps were taken since; a run may be resumed from here."""
        for monitor in self.monitors:
            monitor.forget_gradients()  # a checkpoint has none
        if self.monitors:
            first, last = self.monitors[0], trainer.current_epoch + 1 == trainer.max_epochs
            if last or first.steps_taken - self._compared >= COMPARED * first.every:
                first.compare_features()
                self._compared = first.steps_taken

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, and remove all hooks."""
        self._finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Check the step that was cut short, and write what was seen until then."""
        if self.monitors or self._keeper is not None:
            if self._loss is not None:
                # Anomaly detection stops in the backward pass, before the optimizer's step is reached.
                lost = "returned nan values" in str(exception)
                self._check(trainer, pl_module, torch.tensor(math.nan) if lost else None)
            step = self.monitors[0].steps_taken if self.monitors else trainer.global_step
            self._interrupted = f"Training was interrupted in step {step} ({type(exception).__name__})."
        self._finish()

    def _finish(self) -> None:
        if self.folder is not None and any(one.steps for one in self.monitors):
            self.folder.mkdir(parents=True, exist_ok=True)
            for number, monitor in enumerate(self.monitors):
                monitor.write_csv(self.folder / (f"{Path(STEPS).stem}-{number}.csv" if number else STEPS))
        for monitor in self.monitors:
            monitor.close()
        self._keeper = None


class DoctorCallback(TrainingWatch):
    """Watches training in your own Lightning trainer, and says at the end how it went.

    Every `every`-th step it measures update / weight ratios, gradients, activations, dead units and the drift of
    running statistics and features by part of the network, and logs them to the trainer's loggers (histograms to
    TensorBoard).
    The first step whose loss or gradient is not finite is kept in `nan_capsule.pt`, to be run again with
    `transferkit.doctor.replay`. Training itself does not change by a bit. Of several processes each checks its own
    steps, and the first one monitors; weights divided among processes are not monitored.

    Args:
        every: Steps between two that are monitored, >= 1; fewer in a short fit, so that 8 are, but at least 10.
        folder: For `steps.csv` and `nan_capsule.pt`; None is the trainer's log folder.
        images: Images of the first batch whose features are compared with those at the start; 0 compares none.
        held_back_loss, held_back_accuracy: Names under which your module logs them.
        classes: K of a classifier, for the loss of guessing; None where that does not apply.
        held_back_images: Number of held-back images, for the standard error of their accuracy.
        verbose: Print the diagnosis at the end.

    Attributes:
        symptoms: What curves and monitor say is wrong, alarms first; after the fit.
        report: The same in words: one paragraph if all is well, else a line per symptom.

    Example:
        >>> from transferkit.doctor import DoctorCallback
        >>> trainer = pl.Trainer(max_epochs=10, callbacks=[DoctorCallback(classes=10)])  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        every: int = 20,
        folder: str | Path | None = None,
        images: int = 16,
        held_back_loss: str = "val_loss",
        held_back_accuracy: str = "val_accuracy",
        classes: int | None = None,
        held_back_images: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(every=every, folder=folder, images=images)
        self.held_back_loss, self.held_back_accuracy = held_back_loss, held_back_accuracy
        self.classes, self.held_back_images, self.verbose = classes, held_back_images, verbose
        self.symptoms: tuple[Symptom, ...] = ()
        self.report = ""
        self._curves = RunCurves()
        self._held_back_measured = False
        self._unknown = ""
        self._logged = dict[int, int]()
        self._asked = self.folder

    @property
    def state_key(self) -> str:
        """Key in Lightning's checkpoints."""
        return "DoctorCallback"

    def state_dict(self) -> dict[str, Any]:
        """The monitor's, and the curves so far."""
        return {**super().state_dict(), "curves": self._curves.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(state_dict)
        self._curves.load_state_dict(state_dict["curves"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder, the same in all processes; forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._curves, self._logged = RunCurves(), {}
            self._held_back_measured, self._unknown = False, ""
            self.symptoms, self.report = (), ""
            # A trial run leaves no files, unless they are asked for.
            ours = (
                None
                if getattr(trainer, "fast_dev_run", False)
                else Path(trainer.log_dir or trainer.default_root_dir) / "doctor"
            )
            self.folder = self._asked or ours

    def _observe(self, loss: torch.Tensor) -> None:
        super()._observe(loss)
        self._curves.observe(loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step, if it was monitored."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._curves.end_batch()
        for number, monitor in enumerate(self.monitors):
            last = monitor.steps[-1] if monitor.steps else None
            if last is not None and last.step > self._logged.get(number, -1):
                self._logged[number] = last.step
                log_scalars(trainer, last, number=number)
                log_histograms(trainer, last, number=number)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch's losses."""
        super().on_train_epoch_end(trainer, pl_module)
        found = trainer.callback_metrics if self._held_back_measured else {}
        names = (self.held_back_loss, self.held_back_accuracy)
        loss, accuracy = (float(found[name]) if name in found else None for name in names)
        if self._held_back_measured and loss is None:
            logged = ", ".join(sorted(name for name in found if not name.startswith("train"))) or "nothing"
            self._unknown = f"No {self.held_back_loss!r} was logged (but {logged}): name yours with held_back_loss=."
        logged_loss = trainer.callback_metrics.get(TRAIN_LOSS)
        self._curves.end_epoch(loss, accuracy, train_loss=None if logged_loss is None else float(logged_loss))
        self._held_back_measured = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that metrics of the held-back images are those of this epoch."""
        self._held_back_measured = not trainer.sanity_checking

    def _finish(self) -> None:
        super()._finish()
        record = self.record()
        if record is None or not (record.steps or self.not_finite):
            return
        whole = self._curves.curves(classes=self.classes, held_back_images=self.held_back_images)
        missing = [*record.missing, self._unknown, self._interrupted]
        if not self._curves.observed and not self._curves.epochs:
            missing.append(f"The loss was not seen: call manual_backward, or log {TRAIN_LOSS!r}.")
        several = len(self.monitors) > 1  # adversaries, perhaps, whose losses need not fall
        if several:
            missing.append("Losses of several optimizers are not read as one curve.")
        others = [read_monitor(record_monitor(one, {})) for one in self.monitors[1:]]
        found, lines = read_training(None if several else whole, record, not_finite=self.not_finite, others=others)
        self.symptoms = found
        self.report = "\n".join([*lines, *(one for one in missing if one)])
        if self.verbose:
            print(self.report)


def _parts(module: nn.Module) -> tuple[dict[str, list[str]], dict[str, str] | None, dict[str, str]]:
    """Groups of parameters, the modules whose outputs are compared, and the stage of each layer.

    Of a transfer module these are the stages of its backbone and the head, else what `group_parameters` finds; None
    leaves the choice to the monitor.
    """
    if not isinstance(module, TransferModule):
        groups = group_parameters(module)
        stages, last = dict[str, str](), ""
        for name, one in module.named_modules():
            last = max((part for part in groups if f"{name}.".startswith(f"{part}.")), key=len, default=last)
            if next(one.children(), None) is None:  # a nonlinearity without a group of its own belongs to the last one
                stages[name] = last
        return groups, None, {layer: part for layer, part in stages.items() if part}
    backbone, trunk = module.model.backbone, "model.backbone.trunk."
    groups = {}
    for name, stage in module.freeze_plan.trained_stages.items():
        groups.setdefault(stage, []).append(name)
    read = {tap.stage: f"{trunk}{tap.path}".rstrip(".") for tap in backbone.taps}
    inside = {
        name: backbone.stage_of(name.removeprefix(trunk))
        for name, _ in module.named_modules()
        if name.startswith(trunk)
    }
    inside |= {name: "head" for name, _ in module.named_modules() if f"{name}.".startswith("model.classifier.")}
    return groups, {**read, "head": "model.classifier"}, inside


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of all of them together, a scalar on their device."""
    dense = [one.detach().coalesce().values() if one.is_sparse else one.detach() for one in gradients]
    return torch.linalg.vector_norm(torch.stack([part.float() for part in torch._foreach_norm(dense)]))


def _scaler(trainer: pl.Trainer) -> Any:
    """What scales the loss in half precision; None otherwise."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _restored(state: Mapping[str, Any], every: int) -> TrainingMonitor:
    """A monitor that only tells what was recorded."""
    empty = nn.Linear(1, 1)
    monitor = TrainingMonitor(empty, torch.optim.SGD(empty.parameters(), lr=0.0), every=every)
    monitor.close()
    monitor.load_state_dict(state)
    return monitor
