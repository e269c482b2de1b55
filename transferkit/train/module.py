"""The one LightningModule: a transfer model, its freeze plan, its loss, its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from transferkit.errors import OptionError
from transferkit.frameworks import lightning
from transferkit.nn import StandardisedLinear, Tail, TransferModel
from transferkit.repro import draw_seed
from transferkit.strategies import Plan
from transferkit.train.averaging import WeightAverage, swa_start
from transferkit.train.callbacks import FreezePlanCallback, phase_starts
from transferkit.train.freeze import FreezePlan
from transferkit.train.losses import L2SP, TASKS
from transferkit.train.recipe import Recipe
from transferkit.train.schedule import PhasedSchedule

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["CutBatch", "TransferModule"]

MOMENTUM = 0.9


class CutBatch(NamedTuple):
    """Images whose frozen stages were computed before.

    Args:
        activation: (n, ...) float, at the cut.
        pooled: Stage name -> (n, C) of stages up to the cut that the head reads.
    """

    activation: torch.Tensor
    pooled: dict[str, torch.Tensor]


class TransferModule(pl.LightningModule):
    """A transfer model in training, for any trainer of Lightning's.

    Batches are (images, targets): images (n, 3, S, S) uint8, or float that is normalised already, or a `CutBatch`.
    Logs "train_loss", "val_loss" and, named by the task's measure, "val_accuracy", "val_mean_average_precision" or
    "val_r2".

    Args:
        model: What learns. Its classifier is standardised while it is trained; `finish` gives the plain model back.
        plan: A strategy's, with phases.
        recipe: How training goes.
        task: "single_label", "multi_label" or "regression".
        weights: (K,) weight of each class, or None.
        tail: The part of the backbone behind the frozen stages, if batches are `CutBatch`.
        seed: Seeds what each step draws (dropout); None leaves torch's generator alone.

    Attributes:
        outputs: (M, K) of the held-back images after the last epoch, on the CPU.

    Raises:
        OptionError: If the plan has no phases, or does not fit the model.

    Example:
        >>> import transferkit as tk  # doctest: +SKIP
        >>> backbone = tk.load_backbone("packaged/tf_efficientnet_lite0", image_size=96)  # doctest: +SKIP
        >>> data = tk.TransferDataModule("photos", preprocessing=backbone.spec.preprocessing)  # doctest: +SKIP
        >>> module = tk.TransferModule.build(backbone, data.classes, strategy="few_layers")  # doctest: +SKIP
        >>> pl.Trainer(max_epochs=12).fit(module, data)  # doctest: +SKIP
        >>> model = module.finish()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: TransferModel,
        plan: Plan,
        *,
        recipe: Recipe | None = None,
        task: str = "single_label",
        weights: Sequence[float] | None = None,
        tail: Tail | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if not plan.phases:
            raise OptionError(f"{plan.strategy} has nothing to train by gradients here; transferkit.adapt solves it.")
        self.model = model
        self.plan = plan
        self.recipe = Recipe() if recipe is None else recipe
        self.task_name, self.task = task, TASKS[task]
        self.seed = seed
        self.tail = tail
        self.class_weights: torch.Tensor | None
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)
        if not isinstance(model.classifier, StandardisedLinear):
            raise OptionError("The classifier must be a StandardisedLinear while it is trained; see standardised().")
        # The pull to the start takes the place of weight decay.
        decay = 0.0 if self.recipe.l2_sp else self.recipe.weight_decay
        self.freeze_plan = FreezePlan(self, plan.phases, norm=plan.norm, weight_decay=decay)
        self.pull = self._make_pull()
        self.average = self._make_average()
        self.outputs: torch.Tensor | None = None
        self._held_back: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._swapped = ExitStack()
        self.train()

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

    def configure_callbacks(self) -> list[pl.Callback]:
        """The freeze plan comes along, whatever trainer it is."""
        return [FreezePlanCallback(self.freeze_plan)]

    def configure_optimizers(self) -> Any:
        """One optimizer over all that is ever trained, one scheduler through all phases."""
        groups = self.freeze_plan.groups()
        recipe = self.recipe
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups)
        epochs = self.trainer.max_epochs or 1
        steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(1, steps // epochs)
        scheduler = PhasedSchedule(
            optimizer,
            recipe.schedule,
            lrs=[group["lrs"] for group in groups],
            starts=[start * per_epoch for start in phase_starts(self.freeze_plan.phases, epochs)],
            steps=steps,
            warmup=recipe.warmup,
            minimum=recipe.minimum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Learning rates are told from the step alone."""
        scheduler.step()

    def train(self, mode: bool = True) -> TransferModule:
        """Training mode, but for what is frozen."""
        super().train(mode)
        self.freeze_plan.set_modes()
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """What the step draws depends on where it is only."""
        if self.seed is not None:
            torch.manual_seed(draw_seed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def forward(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, K) outputs."""
        logits: torch.Tensor = self.model.classifier(self.features(images))
        return logits

    def features(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, D), what the head reads."""
        if not isinstance(images, CutBatch):
            return self.model.features(self.model.normalise(images).contiguous(memory_format=torch.channels_last))
        assert self.tail is not None
        behind = [name for name in self.model.stages if name not in images.pooled]
        pooled = {
            **images.pooled,
            **self.tail.pooled_stages(images.activation, pooling=self.model.pooling, names=behind),
        }
        return torch.cat([pooled[name] for name in self.model.stages], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss, with all that is added to it."""
        images, targets = batch
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
        images, targets = batch
        self._held_back.append((self(images).float(), targets))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """(n, K) probabilities; for a regression the outputs."""
        images = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, CutBatch) else batch
        outputs: torch.Tensor = self(images)
        if self.task_name == "regression":
            return outputs
        return outputs.sigmoid() if self.task_name == "multi_label" else outputs.softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Loss and measure on the held-back images."""
        self._swapped.close()
        self.outputs = self._log_held_back("val")

    def on_test_epoch_end(self) -> None:
        """The same on the test images."""
        self._log_held_back("test")

    def _log_held_back(self, split: str) -> torch.Tensor:
        outputs, targets = (torch.cat(parts) for parts in zip(*self._held_back, strict=True))
        self._held_back.clear()
        loss = self.task.loss(outputs, targets)
        score = self.task.score(outputs.cpu().numpy(), targets.cpu().numpy())
        name = self.task.metric.lower().replace(" ", "_")
        self.log(f"{split}_loss", loss, sync_dist=True, prog_bar=True, batch_size=len(targets))
        self.log(f"{split}_{name}", float(score), sync_dist=True, prog_bar=True, batch_size=len(targets))
        return outputs.cpu()

    # ---- Averages of the weights, and what a checkpoint must hold of them --------------------------------------------

    def on_train_epoch_end(self) -> None:
        """Schedule "plateau" hears of the held-back loss."""
        held_back = self.trainer.callback_metrics.get("val_loss")
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

    def finish(self) -> TransferModel:
        """The trained model, its classifier a plain linear layer again, in evaluation mode, the plan taken off."""
        self.freeze_plan.release()
        if isinstance(self.model.classifier, StandardisedLinear):
            self.model.classifier = self.model.classifier.folded()
        return self.model.eval()
