"""The LightningModule that fine-tunes a transfer model: its freeze plan, training loss, optimizer and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.core.random import draw_seed
from transferkit.core.renaming import renamed
from transferkit.finetune.adapters import merge_adapters
from transferkit.finetune.averaging import WeightAverage, swa_start
from transferkit.finetune.callbacks import FreezePlanCallback
from transferkit.finetune.evaluation import EvaluatedModule
from transferkit.finetune.freeze import FreezePlan
from transferkit.finetune.growing import check_grows, shrink
from transferkit.finetune.losses import L2SP
from transferkit.finetune.network import add_plan_adapters, add_zero_head, fold_scale, head_stage, standardise_head
from transferkit.finetune.plans import plan_for
from transferkit.finetune.recipe import make_optimizer
from transferkit.finetune.schedule import PhasedSchedule
from transferkit.finetune.sharding import Shards, fill_state
from transferkit.finetune.steps import phase_steps
from transferkit.finetune.trainer_options import check_sharding
from transferkit.finetune.unlabelled import FurtherLoss, captured_inputs
from transferkit.nn import Backbone, StandardisedLinear, Tail, TransferModel
from transferkit.nn.norm import AccumulatedBatchNorm, begin_step
from transferkit.nn.stages import evaluating
from transferkit.options import Recipe
from transferkit.records import TOP, Preprocessing
from transferkit.strategies import Plan

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["TransferModule"]


class TransferModule(EvaluatedModule):
    """A LightningModule that trains a transfer model under a freeze plan, for any Lightning trainer.

    Batches are (images, targets): images (n, 3, S, S) uint8, or float that is normalised already, or a `CutBatch`.
    Logs "train_loss", "val_loss" (of calibrated logits, where there is one label per image) and the score of the task,
    "val_accuracy", "val_mean_average_precision" or "val_r2"; "test_..." likewise. Scores are metrics of torchmetrics,
    of all images of a pass together; with several processes the values are means weighted by their numbers of images.

    Args:
        network: A backbone, which gets a new head, or a transfer model, whose own head is trained further. It is
            trained in place, not copied.
        strategy: Name of a strategy that trains by gradient ("few_layers", "lp_ft", ...), or its plan.
        classes: K names, or their number; needed for a backbone.
        stage: The stage that a new head reads, by name or index; "joined" for all.
        unfreeze: With the name of a strategy: stages to train, by their names, or k for the last k; None leaves
            them to the strategy.
        lr: Learning rate of the backbone's last stage. None takes the recipe's; if that has none either, the recipe's
            `lr_scale` (a tenth) times the rate that the backbone was trained at.
        norm: "frozen" keeps running statistics as they are; "keep" goes on updating those of trained stages.
        pooling: Pooling of the features that a new head reads.
        recipe: Optimizer, schedule, regularisation. Its epochs and batch size are for the trainer and the loaders to
            keep.
        task: "single_label", "multi_label" or "regression".
        targets: All training targets, by task: (N,) class numbers, (N, K) of 0 and 1, (N,) or (N, R) numbers. They
            are checked, and those of a regression are standardised in training and predicted in their own units. None
            leaves the targets of batches as they are.
        weights: (K,) weight of each class (of a label's positives), or "balanced" or "auto", computed from the targets;
            None for none.
        moments: (D,) means and (D,) standard deviations of the features that the head reads, over training images; None
            leaves the features as they are.
        tail: The part of the backbone behind the frozen stages, if batches are `CutBatch`.
        seed: Seed of the random numbers of each step (dropout); None leaves torch's generator alone.

    Attributes:
        outputs: (M, K) outputs for the held-back images after the last epoch, on the CPU.
        further: Loss of unlabelled images that is added in each step, or None. Strategies that need one ("fixmatch",
            "dann") train like "lp_ft" until it is set, as `adapt` does.
        expected_losses: Held-back loss of each epoch, for schedule "plateau" in a fit without held-back images.

    Raises:
        OptionError: If the strategy trains nothing by gradient, or does not fit the network; in a trainer, if that
            shards the weights in another way than Lightning's ModelParallelStrategy with whole layers.
        DataError: If the targets do not fit the task.

    Example:
        >>> import transferkit as tk  # doctest: +SKIP
        >>> backbone = tk.load_backbone("packaged/tf_efficientnet_lite0", image_size=96)  # doctest: +SKIP
        >>> data = tk.TransferDataModule("photos", preprocessing=backbone.spec.preprocessing)  # doctest: +SKIP
        >>> module = tk.TransferModule(backbone, "few_layers", classes=data.classes)  # doctest: +SKIP
        >>> pl.Trainer(max_epochs=12).fit(module, data)  # doctest: +SKIP
        >>> model = module.finish()  # doctest: +SKIP
    """

    @renamed
    def __init__(
        self,
        network: Backbone | TransferModel,
        strategy: str | Plan = "few_layers",
        *,
        classes: Sequence[str] | int | None = None,
        stage: str | int = TOP,
        unfreeze: int | str | Sequence[str] | None = None,
        lr: float | None = None,
        norm: str = "frozen",
        pooling: str = "avg+max",
        recipe: Recipe | None = None,
        task: str = "single_label",
        targets: npt.ArrayLike | None = None,
        weights: Sequence[float] | str | None = None,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
        tail: Tail | None = None,
        seed: int | None = 0,
    ) -> None:
        recipe = Recipe() if recipe is None else recipe
        if tail is not None and recipe.start_size < 1:
            raise OptionError(
                "Cached activations have one size: leave out start_size, or pass images instead of a tail."
            )
        is_new = isinstance(network, Backbone)
        backbone = network if isinstance(network, Backbone) else network.backbone
        read = stage if isinstance(network, Backbone) else head_stage(network)
        if isinstance(strategy, str):
            strategy = plan_for(
                strategy, backbone, stage=read, unfreeze=unfreeze, lr=lr, norm=norm, recipe=recipe, new_head=is_new
            )
        if not strategy.phases:
            raise OptionError(
                f"{strategy.strategy} trains nothing by gradient; transferkit.adapt fits its head in closed form."
            )
        add_plan_adapters(backbone, strategy, seed=seed or 0)
        if isinstance(network, Backbone):
            network = add_zero_head(network, strategy, classes=classes, pooling=pooling)
        network.task = task
        standardise_head(network, moments, dropout=recipe.dropout)
        super().__init__(network, task=task, targets=targets, weights=weights, tail=tail)
        self.recipe, self.plan, self.seed = recipe, strategy, seed
        # The pull to the start takes the place of weight decay.
        decay = 0.0 if recipe.l2_sp else recipe.weight_decay
        self.freeze_plan = FreezePlan(self, strategy.phases, norm=strategy.norm, weight_decay=decay)
        self.pull = self._make_pull()
        self.average = self._make_average()
        self._note_accumulated()
        self.further: FurtherLoss | None = None
        self.expected_losses: Sequence[float | None] = ()
        self._own_dtype: torch.dtype | None = None
        if recipe.start_size < 1:
            self._check_grows()
        self.train()

    def _check_grows(self) -> None:
        shape = self.model.preprocessing.shape or (self.model.preprocessing.size,) * 2
        parameter = next(self.model.parameters())
        images = torch.zeros(2, 3, *shape, device=parameter.device, dtype=parameter.dtype)
        with evaluating(self.model):
            check_grows(self, images, self.recipe.start_size)

    def _note_accumulated(self) -> None:
        self._accumulated = [layer for layer in self.model.modules() if isinstance(layer, AccumulatedBatchNorm)]

    def _make_pull(self) -> L2SP | None:
        if not self.recipe.l2_sp:
            return None
        trained = [name for name, is_trained in self.freeze_plan.is_trained.items() if is_trained]
        head = [name for name in trained if not name.startswith("model.backbone.")]
        named = dict(self.named_parameters())
        start = {name: named[name] for name in trained if name not in head}
        return L2SP(start, head=head, alpha=self.recipe.l2_sp, beta=self.recipe.l2_sp)

    def _make_average(self) -> WeightAverage | None:
        if self.recipe.average == "none":
            return None
        trained = [name for name, is_trained in self.freeze_plan.is_trained.items() if is_trained]
        statistics = [f"model.backbone.trunk.{name}" for name in self.freeze_plan.updated_statistics]
        return WeightAverage([*trained, *statistics], kind=self.recipe.average)

    def setup(self, stage: str) -> None:
        """Check the trainer's strategy, and keep the precision of the network, which the trainer may change next."""
        check_sharding(self.trainer.strategy)
        self._copy_preprocessing()
        self._restore_dtype()
        self._own_dtype = self.dtype  # type: ignore[assignment, unused-ignore]

    def _copy_preprocessing(self) -> None:
        """Copy to the model how a `TransferDataModule` prepares its images, the range of deep ones included."""
        found = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", None)
        if isinstance(found, Preprocessing):
            spec = self.model.backbone.spec
            kept = replace(
                spec.preprocessing, value_range=found.value_range, prepared=found.prepared, shape=found.shape
            )
            self.model.backbone.spec = replace(spec, preprocessing=kept)

    def configure_model(self) -> None:
        """Shard the weights among the processes, if the trainer's strategy does so."""
        # Lightning calls this without a trainer as well, to load a checkpoint. In prediction, processes may have
        # different numbers of batches, and would wait for each other's weights.
        if self._trainer is None or self._trainer.state.fn == "predict":
            return
        self._check_not_sharded()
        if isinstance(self._trainer.strategy, pl.strategies.ModelParallelStrategy):
            self._shard()

    def _shard(self) -> None:
        assert self.device_mesh is not None
        if (split := self.device_mesh["tensor_parallel"].size()) > 1:
            raise OptionError(
                f"Tensor parallelism is not supported: expected tensor_parallel_size=1, got {split}. Use "
                "ModelParallelStrategy(data_parallel_size=<number of processes>, tensor_parallel_size=1)."
            )
        phase = self.freeze_plan.phase
        self.freeze_plan.release()  # its hooks would be copied
        self._shards = Shards(self.model, self._run, mesh=self.device_mesh["data_parallel"])
        if phase is not None:
            self.freeze_plan.start(phase, static=True)

    def _check_not_sharded(self) -> None:
        if self._shards is not None:
            raise OptionError(
                "The weights are still sharded, because a fit of this module failed. Make a new TransferModule."
            )

    def teardown(self, stage: str) -> None:
        """Gather sharded weights, and give the network its own precision back, if the trainer's was another."""
        if self._shards is not None:
            self._gather(self._shards)
        self._restore_dtype()

    def _gather(self, shards: Shards) -> None:
        """Make the model whole again, with the average of its weights and the start of the pull."""
        kept: dict[str, Any] = {}
        self.on_save_checkpoint(kept)
        shards.gather()
        self._shards = None
        self._note_accumulated()
        self.on_load_checkpoint(kept)
        self.trainer.strategy.optimizers = []  # of the shards
        self.cpu()

    def _restore_dtype(self) -> None:
        # A network whose precision was not changed may mix several, and keeps them.
        if self._own_dtype is not None and self.dtype != self._own_dtype:
            self.to(self._own_dtype)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callback that keeps the freeze plan, in any trainer."""
        return [FreezePlanCallback(self.freeze_plan)]

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameters that any phase trains, and one scheduler for all phases."""
        groups = self.freeze_plan.groups()
        recipe = self.recipe
        mixed = isinstance(self.trainer.precision_plugin, pl.plugins.MixedPrecision)
        optimizer = make_optimizer(recipe, groups, mixed=mixed)
        if self._shards is not None:
            fill_state(optimizer)
        steps, starts, restarts = phase_steps(self.trainer, self.freeze_plan.phases, cycles=recipe.snapshots)
        scheduler = PhasedSchedule(
            optimizer,
            recipe.schedule,
            lrs=[group["lrs"][: len(starts)] for group in groups],
            starts=starts,
            steps=steps,
            warmup=recipe.warmup,
            minimum=recipe.minimum,
            restarts=restarts,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move the schedule on by a step, of which alone the learning rates are a function."""
        scheduler.step()

    def train(self, mode: bool = True) -> TransferModule:
        """Switch to training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.freeze_plan.set_modes()
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step; normalise accumulated batches together."""
        accumulated = self.trainer.accumulate_grad_batches
        self.begin_batch(self.current_epoch, batch_idx, rank=self.global_rank, accumulated=accumulated)

    def begin_batch(self, epoch: int, batch_idx: int, *, rank: int = 0, accumulated: int = 1) -> None:
        """Seed torch's generator, a pure function of epoch, batch and process; begin a step of so many micro-batches
        with the first of them."""
        if batch_idx % accumulated == 0:
            begin_step(self._accumulated, batches=accumulated)
        if self.seed is not None:
            torch.manual_seed(draw_seed(self.seed, "step", epoch, batch_idx, rank))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of a batch, the pull to the start included."""
        # A range test runs steps without a trainer, of which only growing images need the number of epochs.
        epochs = self.trainer.max_epochs or 1 if self.recipe.start_size < 1 else 1
        with captured_inputs(self.model.classifier) as read:
            loss = self.batch_loss(batch, epoch=self.current_epoch, epochs=epochs)
        if self.further is not None and self._trainer is not None:
            loss = loss + self.further.loss(self, read[0], batch_idx)
        self.log_mean("train_loss", loss, images=len(batch[1]))
        return loss

    def batch_loss(self, batch: Any, *, epoch: int, epochs: int) -> torch.Tensor:
        """The same, without a trainer.

        Args:
            batch: (images, targets).
            epoch: Number of the epoch, from 0; the size of the images depends on it, if that grows.
            epochs: Number of all epochs.
        """
        targets, images = self.targets_of(batch), batch[0]
        smoothing = 0.0 if self.task_name == "regression" else self.recipe.label_smoothing
        if self.recipe.start_size < 1:
            images = shrink(images, self.recipe.start_size, epoch, epochs)
        loss = self.task.loss(self(images), targets, smoothing=smoothing, weights=self.class_weights)
        if self.pull is not None:
            loss = loss + self.pull(dict(self.named_parameters()))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average of the weights: after each step ("ema"), or at the end of each late epoch ("swa")."""
        if self.further is not None:
            self.further.end_step()
        if self.average is None:
            return
        last = self.trainer.is_last_batch
        if self.average.kind == "ema":
            due = last or (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        else:
            due = last and self.current_epoch >= swa_start(self.trainer.max_epochs or 1)
        if due:
            self.average.update(self)

    def on_train_epoch_end(self) -> None:
        """Pass the held-back loss to the schedule, for "plateau"."""
        held_back: Any = self.trainer.callback_metrics.get("val_loss")
        if held_back is None and self.current_epoch < len(self.expected_losses):
            held_back = self.expected_losses[self.current_epoch]
        scheduler = self.lr_schedulers()
        if held_back is not None and isinstance(scheduler, PhasedSchedule):
            scheduler.observe(float(held_back))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the average of the weights and the start of the pull."""
        for name in ("average", "pull", "further"):
            kept = getattr(self, name)
            if kept is not None:
                checkpoint[f"transferkit_{name}"] = kept.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the average of the weights and the start of the pull."""
        for name in ("average", "pull", "further"):
            kept = getattr(self, name)
            if kept is not None:
                kept.load_state_dict(checkpoint[f"transferkit_{name}"])

    def break_off(self) -> None:
        """Undo what a failed pass left: release the freeze plan, take back the raw weights in their own precision, and
        drop the outputs accumulated so far."""
        self._swapped.close()
        self._forget_held_back()
        self.freeze_plan.release()
        self.zero_grad(set_to_none=True)
        self._restore_dtype()
        self.train()

    def finish(self) -> TransferModel:
        """The trained model in evaluation mode, without the freeze plan, its classifier a plain linear layer; with the
        average of the weights, where one is kept.

        Raises:
            OptionError: If the weights are still sharded, because a fit failed.
        """
        self._check_not_sharded()
        self.break_off()
        if self.average is not None and isinstance(self.model.classifier, StandardisedLinear):
            self.average.write(self)
        merge_adapters(self.model.backbone.trunk)
        if isinstance(self.model.classifier, StandardisedLinear):
            self.model.classifier = self.model.classifier.folded()
            if self.scale is not None:
                fold_scale(self.model.linear, self.scale)
            self.average = self.scale = None  # both are in the weights now
        return self.model.eval()
