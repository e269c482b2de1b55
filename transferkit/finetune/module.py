"""The one LightningModule: a transfer model, its freeze plan, its loss, its optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, OptionError
from transferkit.core.frameworks import lightning
from transferkit.core.random import draw_seed
from transferkit.core.renaming import renamed
from transferkit.finetune.adapters import add_adapters, is_adapter, merge_adapters
from transferkit.finetune.averaging import WeightAverage, swa_start
from transferkit.finetune.callbacks import FreezePlanCallback, phase_starts
from transferkit.finetune.freeze import FreezePlan
from transferkit.finetune.losses import L2SP, TASKS
from transferkit.finetune.plans import plan_for
from transferkit.finetune.recipe import make_optimizer
from transferkit.finetune.schedule import PhasedSchedule
from transferkit.finetune.sharding import Shards, fill_state
from transferkit.finetune.targets import TargetScale
from transferkit.finetune.trainer_options import check_sharding
from transferkit.measure import fit_temperature
from transferkit.nn import Backbone, StandardisedLinear, Tail, TransferModel, in_halves
from transferkit.nn.norm import AccumulatedBatchNorm, begin_step
from transferkit.options import Recipe
from transferkit.records import JOINED, TOP, Preprocessing
from transferkit.strategies import Plan

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["CutBatch", "TransferModule", "count_images"]


class CutBatch(NamedTuple):
    """Images whose frozen stages were computed before.

    Args:
        activation: (n, ...) float, at the cut.
        pooled: Stage name -> (n, C) of stages up to the cut that the head reads.
    """

    activation: torch.Tensor
    pooled: dict[str, torch.Tensor]

    def part(self, rows: slice) -> CutBatch:
        """Some of the images."""
        return CutBatch(self.activation[rows], {name: vectors[rows] for name, vectors in self.pooled.items()})


class TransferModule(pl.LightningModule):
    """A transfer model in training, for any trainer of Lightning's.

    Batches are (images, targets): images (n, 3, S, S) uint8, or float that is normalised already, or a `CutBatch`.
    Logs "train_loss", "val_loss" (of calibrated logits, where there is one label per image) and, named by the task's
    measure, "val_accuracy", "val_mean_average_precision" or "val_r2".

    Args:
        network: A backbone, which gets a new head, or a transfer model, whose head is where training starts. It is
            trained itself, not a copy.
        strategy: Name of a strategy with phases ("few_layers", "lp_ft", ...), or the plan of one.
        classes: K names, or their number; needed for a backbone.
        stage: What a new head reads: a stage's name or index, "joined" for all.
        unfreeze: With the name of a strategy: stages to train, by their names, or k for the last k; None leaves
            them to the strategy.
        lr: Learning rate of the backbone's last stage; None takes the recipe's, or if that has none either its share
            (a tenth) of the rate it was trained at.
        norm: "frozen": running statistics stay; "keep": those of stages that learn go on being measured.
        pooling: Of what a new head reads.
        recipe: How training goes. Its epochs and batch size are for the trainer and the loaders to keep.
        task: "single_label", "multi_label" or "regression".
        targets: All training targets, as the task wants them: (N,) class numbers, (N, K) of 0 and 1, (N,) or (N, R)
            numbers. They are checked, and numbers are learnt in units of their spread and told in their own. None takes
            what comes as it is.
        weights: (K,) weight of each class (of a label's positives), or "balanced" or "auto", by the targets; None for
            none.
        moments: (D,) means and (D,) standard deviations of what the head reads, over training images; None leaves the
            features as they are.
        tail: The part of the backbone behind the frozen stages, if batches are `CutBatch`.
        seed: Seeds what each step draws (dropout); None leaves torch's generator alone.

    Attributes:
        outputs: (M, K) of the held-back images after the last epoch, on the CPU.
        expected_losses: Held-back loss of each epoch, for a schedule that reads it in a fit that holds nothing back.

    Raises:
        OptionError: If the strategy has nothing to train, or does not fit the network; in a trainer, if that shares
            weights out otherwise than Lightning's ModelParallelStrategy with whole layers.

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
        super().__init__()
        self.recipe = Recipe() if recipe is None else recipe
        is_new = isinstance(network, Backbone)
        backbone = network if isinstance(network, Backbone) else network.backbone
        read = stage if isinstance(network, Backbone) else _address(network)
        self.plan = (
            strategy
            if isinstance(strategy, Plan)
            else plan_for(
                strategy, backbone, stage=read, unfreeze=unfreeze, lr=lr, norm=norm, recipe=self.recipe, new_head=is_new
            )
        )
        if not self.plan.phases:
            raise OptionError(
                f"{self.plan.strategy} learns nothing by gradient; transferkit.adapt solves for its head."
            )
        _adapt(backbone, self.plan, seed or 0)
        if isinstance(network, Backbone):
            network = _with_new_head(network, self.plan, classes, pooling)
        self.model = network
        self.model.classifier = _standardised(network, moments, self.recipe.dropout)
        self.task_name, self.task = task, TASKS[task]
        self.seed = seed
        self.tail = tail
        self._take_targets(None if targets is None else np.asarray(targets), weights)
        # The pull to the start takes the place of weight decay.
        decay = 0.0 if self.recipe.l2_sp else self.recipe.weight_decay
        self.freeze_plan = FreezePlan(self, self.plan.phases, norm=self.plan.norm, weight_decay=decay)
        self.pull = self._make_pull()
        self.average = self._make_average()
        self._note_accumulated()
        self.outputs: torch.Tensor | None = None
        self.expected_losses: Sequence[float | None] = ()
        self._held_back: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._swapped = ExitStack()
        self._own_dtype: torch.dtype | None = None
        self._shards: Shards | None = None
        self.train()

    def _take_targets(self, targets: npt.NDArray[Any] | None, weights: Sequence[float] | str | None) -> None:
        """Check the training targets; note what classes weigh, and the scale of numbers."""
        outputs = len(self.model.classes)
        if targets is not None:
            self.task.check(targets, self.model.classes)
        if isinstance(weights, str):
            if targets is None:
                raise OptionError(f"weights={weights!r} are computed from the training targets: give targets as well.")
            told = self.task.weigh(targets, outputs, weights)
            weights = None if told is None else told.tolist()
        found = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        if found is not None and found.shape != (outputs,):
            raise OptionError(
                f"There are {outputs} outputs, so {outputs} weights are needed; got {tuple(found.shape)}."
            )
        self.class_weights: torch.Tensor | None
        self.register_buffer("class_weights", found, persistent=False)
        self.scale = TargetScale.fit(targets) if self.task_name == "regression" and targets is not None else None

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

    # ---- What Lightning asks for -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer's strategy, and note the precision, which the trainer may change next."""
        check_sharding(self.trainer.strategy)
        self._take_preprocessing()
        self._take_own_dtype()
        self._own_dtype = self.dtype  # type: ignore[assignment, unused-ignore]

    def _take_preprocessing(self) -> None:
        """Keep with the model how a `TransferDataModule` prepares its images, the range of deep ones included."""
        found = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", None)
        if isinstance(found, Preprocessing):
            spec = self.model.backbone.spec
            kept = replace(
                spec.preprocessing, value_range=found.value_range, prepared=found.prepared, shape=found.shape
            )
            self.model.backbone.spec = replace(spec, preprocessing=kept)

    def configure_model(self) -> None:
        """Share the weights out among the processes, if that is what the trainer's strategy is about."""
        # Lightning comes here without a trainer, too, when it loads a checkpoint. In prediction processes may have
        # different numbers of batches, and would wait for each other's weights.
        if self._trainer is None or self._trainer.state.fn == "predict":
            return
        self._check_together()
        if isinstance(self._trainer.strategy, pl.strategies.ModelParallelStrategy):
            self._shard()

    def _shard(self) -> None:
        assert self.device_mesh is not None
        if (split := self.device_mesh["tensor_parallel"].size()) > 1:
            raise OptionError(
                f"Layers are not split among processes here, got tensor_parallel_size={split}. Use "
                "ModelParallelStrategy(data_parallel_size=<number of processes>, tensor_parallel_size=1)."
            )
        phase = self.freeze_plan.phase
        self.freeze_plan.release()  # its hooks would be copied along
        self._shards = Shards(self.model, self._run, mesh=self.device_mesh["data_parallel"])
        if phase is not None:
            self.freeze_plan.start(phase, static=True)

    def _check_together(self) -> None:
        if self._shards is not None:
            raise OptionError(
                "A fit broke off while weights were shared out, and they still are: make the module anew."
            )

    def teardown(self, stage: str) -> None:
        """Weights that were shared out come together; a trainer in half or double precision leaves the network in that:
        back to its own."""
        if self._shards is not None:
            self._gather(self._shards)
        self._take_own_dtype()

    def _gather(self, shards: Shards) -> None:
        """Make the model whole again, and with it what is kept besides."""
        kept: dict[str, Any] = {}
        self.on_save_checkpoint(kept)
        shards.gather()
        self._shards = None
        self._note_accumulated()
        self.on_load_checkpoint(kept)
        self.trainer.strategy.optimizers = []  # of the shards
        self.cpu()

    def _take_own_dtype(self) -> None:
        # One that was never changed may mix several, and keeps them.
        if self._own_dtype is not None and self.dtype != self._own_dtype:
            self.to(self._own_dtype)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The freeze plan comes along, whatever trainer it is."""
        return [FreezePlanCallback(self.freeze_plan)]

    def configure_optimizers(self) -> Any:
        """One optimizer over all that is ever trained, one scheduler through all phases."""
        groups = self.freeze_plan.groups()
        recipe = self.recipe
        mixed = isinstance(self.trainer.precision_plugin, pl.plugins.MixedPrecision)
        optimizer = make_optimizer(recipe, groups, mixed=mixed)
        if self._shards is not None:
            fill_state(optimizer)
        steps, starts = self._steps()
        scheduler = PhasedSchedule(
            optimizer,
            recipe.schedule,
            lrs=[group["lrs"][: len(starts)] for group in groups],
            starts=starts,
            steps=steps,
            warmup=recipe.warmup,
            minimum=recipe.minimum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps(self) -> tuple[int, list[int]]:
        """Optimizer steps of the whole fit, and the first step of each phase."""
        trainer = self.trainer
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
        if steps == math.inf:
            raise OptionError("Without an end there is no schedule: give the trainer max_epochs or max_steps.")
        if steps < 0:  # Lightning counts epochs, but nobody knows how long one is
            raise OptionError(
                "A stream does not tell how long an epoch is, and the schedule must know: give the trainer max_steps, "
                "or limit_train_batches."
            )
        # Without epochs there is one phase: the freeze plan's callback sees to that. A trial run comes to one only.
        if epochs is None or epochs < 1 or getattr(trainer, "fast_dev_run", False):
            return int(steps), [0]
        per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
        starts = [start * per_epoch for start in phase_starts(self.freeze_plan.phases, epochs)]
        # Where steps end the run, phases may be left that it never comes to.
        return max(int(steps), starts[-1] + 1), starts

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Learning rates are a function of the step alone."""
        scheduler.step()

    def train(self, mode: bool = True) -> TransferModule:
        """Training mode, but for what is frozen."""
        super().train(mode)
        self.freeze_plan.set_modes()
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """What the step draws depends on where it is only; batches that it adds up are normalised together."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            begin_step(self._accumulated, batches=self.trainer.accumulate_grad_batches)
        if self.seed is not None:
            torch.manual_seed(draw_seed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def forward(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, K) outputs."""
        return self._run(images) if self._shards is None else self._shards(images)

    def _run(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        logits: torch.Tensor = self.model.classifier(self.features(images))
        return logits

    def features(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, D), what the head reads."""
        if not isinstance(images, CutBatch):
            return self.model.features(self._normalise(images).contiguous(memory_format=torch.channels_last))
        assert self.tail is not None
        behind = [name for name in self.model.stages if name not in images.pooled]
        pooled = {
            **images.pooled,
            **self.tail.pooled_stages(images.activation, pooling=self.model.pooling, names=behind),
        }
        return torch.cat([pooled[name] for name in self.model.stages], dim=1)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        normalised = self.model.normalise(images)
        if images.is_floating_point():
            return normalised
        # A trainer in half or double precision brings numbers to it, but cannot bring bytes.
        return normalised.to(next(self.model.parameters()).dtype)

    def _targets(self, batch: Any) -> torch.Tensor:
        """The targets of a batch, checked, in units of their spread over the training images if they are numbers."""
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], torch.Tensor):
            raise DataError(f"Expected batches (images, targets) with tensors as targets, got {type(batch).__name__}.")
        targets = batch[1]
        # To read values on another device is to wait for it: one epoch shows all of them.
        values = targets.device.type == "cpu" or self.current_epoch == 0
        self.task.check_batch(targets, len(self.model.classes), values=values)
        return self._scaled(targets)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss, with all that is added to it."""
        targets, images = self._targets(batch), batch[0]
        smoothing = 0.0 if self.task_name == "regression" else self.recipe.label_smoothing
        loss = self.task.loss(self(images), targets, smoothing=smoothing, weights=self.class_weights)
        if self.pull is not None:
            loss = loss + self.pull(dict(self.named_parameters()))
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets), sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """An average takes in the weights after each step ("ema"), or at the end of each late epoch ("swa")."""
        if self.average is None:
            return
        last = self.trainer.is_last_batch
        if self.average.kind == "ema":
            due = last or (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        else:
            due = last and self.current_epoch >= swa_start(self.trainer.max_epochs or 1)
        if due:
            self.average.update(self)

    def on_validation_epoch_start(self) -> None:
        """What is judged is the average of the weights, where one is kept."""
        if self._shards is not None:
            self._shards.share_statistics()
        self._swapped.enter_context(self.averaged())

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self._swapped.enter_context(self.averaged())

    def on_predict_epoch_start(self) -> None:
        """As for validation."""
        self._swapped.enter_context(self.averaged())

    def averaged(self) -> AbstractContextManager[None]:
        """The average of the weights in the model for a while; without one, the weights as they are."""
        return nullcontext() if self.average is None or not self.average.count else self.average.swapped(self)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Keep the outputs: measures are of all images together."""
        self._keep(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As for validation."""
        self._keep(batch)

    def _keep(self, batch: Any) -> None:
        targets, images = self._targets(batch), batch[0]
        if self._shards is None:
            outputs = in_halves(lambda part: self(_part(images, part)), len(targets))
        else:  # all processes must run the same passes
            outputs = self(images)
        self._held_back.append((outputs.float(), targets))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """(n, K) probabilities; for a regression the outputs."""
        images = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, CutBatch) else batch
        outputs: torch.Tensor = self(images)
        if self.task_name == "regression":
            if self.scale is None:
                return outputs
            mean, std = _moments(self.scale, outputs)
            return outputs * std + mean
        return outputs.sigmoid() if self.task_name == "multi_label" else outputs.softmax(dim=1)

    def _scaled(self, targets: torch.Tensor) -> torch.Tensor:
        """Numbers in units of their spread over the training images; other targets as they are."""
        if self.scale is None:
            return targets
        columns = targets.reshape(len(targets), -1).float()
        mean, std = _moments(self.scale, columns)
        return (columns - mean) / std

    def on_validation_epoch_end(self) -> None:
        """Loss and measure on the held-back images."""
        self._swapped.close()
        self.outputs = self._log_held_back("val")

    def on_test_epoch_end(self) -> None:
        """The same on the test images."""
        self._swapped.close()
        self._log_held_back("test")

    def on_predict_epoch_end(self) -> None:
        """The raw weights, back."""
        self._swapped.close()

    def _log_held_back(self, split: str) -> torch.Tensor:
        outputs, targets = (torch.cat(parts) for parts in zip(*self._held_back, strict=True))
        self._held_back.clear()
        # Networks grow overconfident long before they grow worse; what is returned is calibrated, so that is judged.
        temperature = _temperature(outputs, targets) if self.task_name == "single_label" else 1.0
        loss = self.task.loss(outputs / temperature, targets, weights=self.class_weights)
        score = self.task.score(outputs.cpu().numpy(), targets.cpu().numpy())
        name = self.task.metric.lower().replace(" ", "_")
        self.log(f"{split}_loss", loss, sync_dist=True, prog_bar=True, batch_size=len(targets))
        self.log(f"{split}_{name}", float(score), sync_dist=True, prog_bar=True, batch_size=len(targets))
        return outputs.cpu()

    # ---- Averages of the weights, and what a checkpoint must hold of them --------------------------------------------

    def on_train_epoch_end(self) -> None:
        """Schedule "plateau" hears of the held-back loss."""
        held_back: Any = self.trainer.callback_metrics.get("val_loss")
        if held_back is None and self.current_epoch < len(self.expected_losses):
            held_back = self.expected_losses[self.current_epoch]
        scheduler = self.lr_schedulers()
        if held_back is not None and isinstance(scheduler, PhasedSchedule):
            scheduler.observe(float(held_back))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Averages, and where the pull goes to."""
        for name in ("average", "pull"):
            kept = getattr(self, name)
            if kept is not None:
                checkpoint[f"transferkit_{name}"] = kept.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The same, back."""
        for name in ("average", "pull"):
            kept = getattr(self, name)
            if kept is not None:
                kept.load_state_dict(checkpoint[f"transferkit_{name}"])

    # ---- The end -----------------------------------------------------------------------------------------------------

    def break_off(self) -> None:
        """Out of whatever a failed pass was in: the plan off, the raw weights back in their own precision, half a
        judgement forgotten."""
        self._swapped.close()
        self._held_back.clear()
        self.freeze_plan.release()
        self.zero_grad(set_to_none=True)
        self._take_own_dtype()
        self.train()

    def finish(self) -> TransferModel:
        """The trained model in evaluation mode, the plan taken off, its classifier a plain linear layer again; where an
        average of the weights is kept, that.

        Raises:
            OptionError: If a fit broke off while weights were shared out.
        """
        self._check_together()
        self.break_off()
        if self.average is not None and isinstance(self.model.classifier, StandardisedLinear):
            self.average.write(self)
        merge_adapters(self.model.backbone.trunk)
        if isinstance(self.model.classifier, StandardisedLinear):
            self.model.classifier = self.model.classifier.folded()
            if self.scale is not None:
                _in_units(self.model.linear, self.scale)
            self.average = self.scale = None  # both are in the weights now
        return self.model.eval()


def _moments(scale: TargetScale, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) means and (R,) standard deviations, where and as precise as another tensor."""
    return like.new_tensor(scale.mean), like.new_tensor(scale.std)


@torch.no_grad()
def _in_units(linear: torch.nn.Linear, scale: TargetScale) -> None:
    """Let a classifier say numbers in the units of the targets."""
    mean, std = _moments(scale, linear.weight)
    linear.weight.mul_(std.unsqueeze(1))
    linear.bias.mul_(std).add_(mean)


def count_images(images: torch.Tensor | CutBatch) -> int:
    """How many images a batch holds."""
    return len(images.activation if isinstance(images, CutBatch) else images)


def _part(images: torch.Tensor | CutBatch, rows: slice) -> torch.Tensor | CutBatch:
    return images.part(rows) if isinstance(images, CutBatch) else images[rows]


def _address(model: TransferModel) -> str:
    """What a model's head reads, as strategies are told it."""
    return model.stages[0] if len(model.stages) == 1 else JOINED


def _adapt(backbone: Backbone, plan: Plan, seed: int) -> None:
    """Add the adapters that a plan asks for, unless they are there already."""
    if plan.adapters is None or any(is_adapter(name) for name, _ in backbone.trunk.named_parameters()):
        return
    backbone.anatomy  # noqa: B018 - of the network as it is, before anything is added
    add_adapters(backbone.trunk, plan.adapters, size=backbone.spec.preprocessing.size, seed=seed)


def _with_new_head(backbone: Backbone, plan: Plan, classes: Sequence[str] | int | None, pooling: str) -> TransferModel:
    """A head that says nothing yet: all classes are equally likely."""
    if classes is None:
        raise OptionError("A new head needs its classes: classes=data.classes, or their number.")
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    model = TransferModel(backbone, stages=plan.stages, pooling=pooling, classes=names)
    torch.nn.init.zeros_(model.linear.weight)
    torch.nn.init.zeros_(model.linear.bias)
    return model


def _standardised(
    model: TransferModel, moments: tuple[torch.Tensor, torch.Tensor] | None, dropout: float
) -> StandardisedLinear:
    linear = model.linear
    if moments is None:
        moments = torch.zeros(linear.in_features), torch.ones(linear.in_features)
    return StandardisedLinear(linear, *moments, dropout=dropout)


def _temperature(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """What the logits are best divided by; 1 where that cannot be told."""
    logits = outputs.double().cpu().numpy()
    return fit_temperature(logits, targets.cpu().numpy()) if np.isfinite(logits).all() else 1.0
