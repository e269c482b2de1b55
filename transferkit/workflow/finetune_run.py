"""One fine-tuning run over the images of a session: pixels, activations, folds, and the folder to resume from."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.distributed import is_first
from transferkit.core.errors import CacheError, RunFolderError
from transferkit.core.paths import mark_folder
from transferkit.core.progress import announce
from transferkit.core.provenance import environment
from transferkit.core.random import draw_seed
from transferkit.core.serialization import to_json
from transferkit.data.augmentation import Augmentation, choose_preset
from transferkit.data.loading import EpochSampler, Pictures, make_loader
from transferkit.data.mixing import Mixing
from transferkit.data.pixels import PixelStore
from transferkit.decision import MIN_VAL_IMAGES, best_probe
from transferkit.features import ActivationTable, FeatureTable, activation_bytes, cache_activations, choose_device
from transferkit.finetune import Recipe
from transferkit.nn import CutError, Tail, TransferModel, cut
from transferkit.records import Decision, Fold, Folds
from transferkit.strategies import STRATEGIES, Plan
from transferkit.workflow.flip_check import check_flip
from transferkit.workflow.measure import read_features, timed
from transferkit.workflow.session import Options, Session

if TYPE_CHECKING:
    from transferkit.finetune import FineTuned, FineTuneTask, Judged, Runner

__all__ = ["FineTuneOptions", "FineTuneRun"]

WORK = "training"
"""Folder inside a run's folder that checkpoints and curves are kept in while it runs, a folder for each strategy."""

FED = "fed.txt"
"""Name of the file that says what a run is fed, in its folder."""

SAME_TO_GO_ON = ("seed", "device", "transferkit", "torch", "torchvision", "pytorch-lightning", "timm")
"""What of the environment must be the same for a run to be taken up."""


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """How gradient training is to go, where a decision asks for it.

    Args:
        recipe: Length, optimizer, regularisation.
        trainer: Options for Lightning's trainer.
        folder: The run's; None keeps no checkpoints.
        resume: Whether a run that was killed in that folder is taken up.
    """

    recipe: Recipe = field(default_factory=Recipe)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    resume: bool = True

    def clear(self) -> None:
        """Remove the checkpoints of a run that is finished; its curves stay."""
        if self.folder is not None:
            for checkpoint in (self.folder / WORK).glob("*/*/last.ckpt*"):
                checkpoint.unlink()
                with suppress(OSError):  # somebody put something beside it
                    checkpoint.parent.rmdir()


class _Cached(NamedTuple):
    """A backbone cut in two, and what its first part made of the images."""

    tail: Tail
    table: ActivationTable


@dataclass(frozen=True)
class FineTuneRun:
    """One run.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        plan: A strategy's, with phases.
        options: How the session was opened.
        head: Of the probe and of the start, as for `fit_closed_form`.
        training: How to train.
    """

    session: Session
    plan: Plan
    options: Options
    head: str
    training: FineTuneOptions

    @cached_property
    def judged(self) -> Judged:
        """What held-back images say of it; `run` goes on from there."""
        from transferkit.finetune import judge_folds

        with timed(self.session.seconds, "fine-tune"):
            return judge_folds(self._task(), self._folds, self._runner)

    @property
    def held_back(self) -> int:
        """Images that it is judged on."""
        return sum(len(fold.held_back) for fold in self._folds)

    def run(self) -> FineTuned:
        """Train, choose, and train again on all images."""
        from transferkit.finetune import fine_tune

        judged = self.judged
        with timed(self.session.seconds, "fine-tune"):
            return fine_tune(judged.task, self._folds, self._runner, refit=not self._has_validation, judged=judged)

    @cached_property
    def _recipe(self) -> Recipe:
        return self.training.recipe.fitted(len(self._rows), batch_size=self.options.batch_size)

    @cached_property
    def _plan(self) -> Plan:
        """The plan; with fewer epochs than phases without the first of these, which only lead up to the last one."""
        epochs, phases = self._recipe.epochs or 1, self.plan.phases
        if epochs >= len(phases):
            return self.plan
        kept, share = phases[-epochs:], sum(phase.share for phase in phases[-epochs:])
        return replace(self.plan, phases=tuple(replace(phase, share=phase.share / share) for phase in kept))

    @cached_property
    def _has_validation(self) -> bool:
        """Whether a validation split is there to choose on: one that is large enough to tell, or must do because no
        training image can be spared."""
        data = self.session.data
        images, fewest = len(data.indices("val")), data.summary.fewest_groups
        return images >= MIN_VAL_IMAGES or (images > 0 and fewest < 2)

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        """Images at hand: those of the training split, then those of a validation split that is chosen on."""
        data = self.session.data
        parts = ("train", "val") if self._has_validation else ("train",)
        return np.concatenate([data.indices(part) for part in parts])

    @cached_property
    def _known(self) -> Folds:
        """Labels of the images at hand, and which of them are held back together."""
        return self.session.data.folds.take(self._rows)

    @property
    def _labels(self) -> npt.NDArray[np.int64]:
        return self._known.labels

    @cached_property
    def _folds(self) -> list[Fold]:
        train = len(self.session.data.indices("train"))
        if self._has_validation:
            return [Fold(np.arange(train), np.arange(train, len(self._rows)))]
        return self._known.split(self._recipe.folds or 1, seed=self.options.seed)

    def _task(self) -> FineTuneTask:
        from transferkit.finetune import FineTuneTask

        session = self.session
        self._go_on_as_before()
        if not self._has_validation and len(small := session.data.indices("val")):
            self._runner.notes.append(
                f"The {len(small)} images of the validation split are too few to choose on ({MIN_VAL_IMAGES} are "
                "needed): epochs and blend are chosen on training images held back in turn, and the split is left for "
                "the report."
            )
        if len(self._plan.phases) < len(self.plan.phases):
            phases = ", ".join(phase.name for phase in self.plan.phases)
            self._runner.notes.append(f"There are fewer epochs than phases: of {phases} only the last are trained.")
        stages = [stage.name for stage in session.backbone.stages]
        stage = best_probe(session.measured.evidence)
        as_probe = Decision(
            strategy="linear_probe", stage=stage, lr=0.0, lr_scale=0.0, norm="frozen", mode="given", reasons=("probe",)
        )
        return FineTuneTask(
            plan=self._plan,
            probe=STRATEGIES["linear_probe"](as_probe, stages),
            backbone=session.backbone,
            table=session.measured.table.take(self._rows),
            start=session.measured.primary.take(self._rows),
            folds=self._known,
            classes=session.data.summary.classes,
            pooling=self.options.pooling,
            feed=self._feed_pictures if self._cached is None else self._feed_activations,
            tail=None if self._cached is None else self._cached.tail,
            recipe=self._recipe,
            head=self.head,
            class_weight=self.options.class_weight,
            selection=None if self._has_validation else session.measured.selection,
            seed=self.options.seed,
        )

    # ---- Pictures ---------------------------------------------------------------------------------------------------

    @cached_property
    def _augmentation(self) -> Augmentation:
        recipe = self._recipe
        preset = choose_preset(recipe.augment, images=len(self._rows), epochs=recipe.epochs)
        preprocessing = self.session.backbone.spec.preprocessing.primary
        return Augmentation(preset=preset, preprocessing=preprocessing, flip=self._may_flip(preset))

    def _may_flip(self, preset: str) -> bool:
        if self._recipe.flip is not None or preset == "none":
            return bool(self._recipe.flip)
        check = check_flip(
            self.session.measured.primary.take(self._rows),
            self._known,
            self._mirrored,
            classes=self.session.data.summary.num_classes,
            folds=self._folds[:1],
            seed=self.options.seed,
        )
        self._runner.notes.append(f"Images {'are' if check.safe else 'are not'} mirrored in training: {check}.")
        return check.safe

    def _mirrored(self, positions: npt.NDArray[np.int64]) -> FeatureTable:
        """Features of the mirror images of these of the images at hand."""
        session, options = self.session, self.options
        return read_features(
            session.backbone,
            session.data,
            bank=options.bank,
            pooling=options.pooling,
            device=options.device,
            batch_size=options.batch_size,
            preprocessing=replace(session.backbone.spec.preprocessing.primary, mirrored=True),
            among=self._rows[positions],
            progress=False,
        ).table

    @cached_property
    def _store(self) -> PixelStore:
        return PixelStore(self.session.data, self._rows, self._augmentation.stored, progress=self.options.progress)

    @cached_property
    def _pictures(self) -> dict[bool, Pictures]:
        """Whether they are for training -> the pictures."""
        recipe, classes, seed = self._recipe, self.session.data.summary.num_classes, self.options.seed
        mixing = Mixing(classes=classes, mixup=recipe.mixup, cutmix=recipe.cutmix)
        return {
            True: Pictures(self._store, self._labels, augmentation=self._augmentation, mixing=mixing, seed=seed),
            False: Pictures(self._store, self._labels, augmentation=self._augmentation.still),
        }

    def _feed_pictures(self, positions: npt.NDArray[np.int64], *, batch_size: int, training: bool) -> Iterable[Any]:
        sampler = EpochSampler(
            len(positions),
            batch_size,
            seed=self.options.seed,
            shuffle=training,
            distributed=training,
            among=positions,
        )
        return make_loader(self._pictures[training], sampler, workers=0 if self._device.type == "cpu" else None)

    # ---- Activations of frozen stages -------------------------------------------------------------------------------

    @cached_property
    def _cached(self) -> _Cached | None:
        """What frozen stages made of the images; None where whole networks run."""
        tail = self._tail()
        if tail is None:
            return None
        try:
            with timed(self.session.seconds, "cache activations"):
                table = self._activations(tail)
        except CacheError as error:
            self._runner.notes.append(f"Nothing was cached: {error}")
            return None
        before = [stage for stage in self.plan.stages if stage in tail.stages_before]
        size = activation_bytes(tail, len(table), stages=before, pooling=self.options.pooling)
        versions = f" and {self._views} augmented versions of each" if self._views else ""
        self._runner.notes.append(
            f"The stages up to {tail.stage!r} stay frozen, so their activations were computed once: "
            f"{len(self._rows):,} images{versions}, {size / 2**20:,.0f} MB."
        )
        return _Cached(tail, table)

    def _tail(self) -> Tail | None:
        """The part that learns, if it can be told apart and that is worth its disk."""
        from transferkit.finetune import FreezePlan

        recipe, backbone = self._recipe, self.session.backbone
        mixed = recipe.mixup > 0 or recipe.cutmix > 0
        if self.plan.adapters is not None or mixed or (self._augmentation.changes and not recipe.views):
            return None
        shape = backbone.spec.preprocessing.shape
        if shape is not None and shape[0] != shape[1]:
            self._runner.notes.append("Nothing was cached: that needs square images.")
            return None
        classes = self.session.data.summary.classes
        model = TransferModel(backbone, stages=self.plan.stages, pooling=self.options.pooling, classes=classes)
        stage = FreezePlan(model, self._plan.phases).cut
        if stage is None:
            return None
        try:
            tail = cut(backbone, stage)
        except CutError as error:
            self._runner.notes.append(f"Nothing was cached: {error}")
            return None
        if math.prod(tail.shape) <= 3 * backbone.spec.preprocessing.size**2:
            return tail
        self._runner.notes.append(
            f"Nothing was cached: behind {stage!r} there is more to store than in the picture, and little is saved."
        )
        return None

    @cached_property
    def _views(self) -> int:
        return min(self._recipe.views, self._recipe.epochs or 1) if self._augmentation.changes else 0

    def _activations(self, tail: Tail) -> ActivationTable:
        """Rows of the images themselves, then those of one augmented version after the other."""
        images = len(self._rows)
        return cache_activations(
            tail,
            lambda row: self._version(row % images, row // images).numpy(),
            np.concatenate([self._version_ids(version) for version in range(1 + self._views)]),
            bank=self.options.bank,
            stages=[stage for stage in self.plan.stages if stage in tail.stages_before],
            pooling=self.options.pooling,
            device=self.options.device,
            workers=None if self.session.data.thread_safe else 1,
            progress=self.options.progress,
        )

    def _version(self, position: int, number: int) -> torch.Tensor:
        picture = self._store[position]
        if not number:
            return self._augmentation.plain(picture)
        return self._augmentation(picture, draw_seed(self.options.seed, "version", number, position))

    def _version_ids(self, number: int) -> npt.NDArray[np.bytes_]:
        """(N,) names of what `_version` gives."""
        ids = self.session.data.content_ids[self._rows]
        if not number:
            return ids
        drawn = f"{to_json(self._augmentation)}|{self.options.seed}|{number}".encode()
        named = [
            hashlib.blake2b(drawn + bytes(content) + str(position).encode(), digest_size=16).hexdigest()
            for position, content in enumerate(ids)
        ]
        return np.array(named, dtype="S32")

    def _feed_activations(self, positions: npt.NDArray[np.int64], *, batch_size: int, training: bool) -> Iterable[Any]:
        from transferkit.finetune import CutBatch, CutFeed

        assert self._cached is not None
        table, images = self._cached.table, len(self._rows)
        return CutFeed(
            lambda version, chosen: CutBatch(*table.batch(version * images + chosen)),
            positions,
            torch.from_numpy(self._labels[positions]),
            batch_size=batch_size,
            views=self._views,
            seed=self.options.seed,
            training=training,
        )

    # ---- The run ----------------------------------------------------------------------------------------------------

    @cached_property
    def _device(self) -> torch.device:
        return choose_device(self.options.device)

    @cached_property
    def _runner(self) -> Runner:
        from transferkit.finetune import Runner

        return Runner(
            device=self._device,
            folder=self._folder(),
            options=self.training.trainer,
            progress=self.options.progress,
        )

    def _folder(self) -> Path | None:
        """Where checkpoints go: emptied first unless what lies there is this very run, killed before its end."""
        if self.training.folder is None:
            return None
        folder = self.training.folder / WORK / self.plan.strategy
        if is_first():
            try:
                self._prepare(folder)
            except OSError as error:
                if isinstance(error, RunFolderError):
                    raise
                raise RunFolderError(
                    f"The folder {folder} cannot be written: {error.strerror or error}. Choose another with out=DIR."
                ) from error
        return folder

    def _prepare(self, folder: Path) -> None:
        identity = folder / "identity.json"
        for ours in (folder.parents[1], folder.parent):  # the run's, then the one that all its fits are in
            mark_folder(ours)
        folder.mkdir(parents=True, exist_ok=True)
        others = [path for path in folder.iterdir() if path != identity]
        if others and not identity.is_file():
            raise RunFolderError(
                f"{folder} is needed for checkpoints, but holds files of somebody else's, such as {others[0].name}. "
                "Choose another place with out=DIR."
            )
        same = identity.is_file() and identity.read_text(encoding="utf-8") == self._identity
        if same and self.training.resume:
            return
        if others and not same:
            announce("what lies in the run's folder is another run: starting afresh", enabled=self.options.progress)
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        identity.write_text(self._identity, encoding="utf-8")

    def _go_on_as_before(self) -> None:
        """A run that is taken up is fed what it was fed before, activations or pictures, or starts afresh: the one
        differs from the other by rounding."""
        folder = self._runner.folder
        if folder is None or not is_first():
            return
        fed, said = folder / FED, "pictures" if self._cached is None else str(self._cached.table.dtype)
        if fed.is_file() and fed.read_text(encoding="utf-8") != said:
            announce("activations are kept otherwise than before: starting afresh", enabled=self.options.progress)
            for checkpoint in folder.glob("*/last.ckpt*"):
                checkpoint.unlink()
        fed.write_text(said, encoding="utf-8")

    @cached_property
    def _identity(self) -> str:
        """What a run is: two with the same end with the same weights."""
        session, recipe = self.session, self._recipe
        held_back = b"".join(fold.held_back.tobytes() for fold in self._folds)
        versions = environment(seed=self.options.seed, device=self._device.type)
        plain = {
            "plan": to_json(self._plan),
            "recipe": to_json(recipe),
            "weights": session.backbone.spec.weights_id,
            "data": hashlib.blake2b(session.data.content_ids[self._rows].tobytes(), digest_size=16).hexdigest(),
            "labels": hashlib.blake2b(self._labels.tobytes(), digest_size=16).hexdigest(),
            "held_back": hashlib.blake2b(held_back, digest_size=16).hexdigest(),
            "preprocessing": to_json(session.backbone.spec.preprocessing),
            "pooling": self.options.pooling,
            "class_weight": self.options.class_weight,
            "head": self.head,
            "trainer": dict(self.training.trainer),
            **{name: versions[name] for name in SAME_TO_GO_ON},
        }
        return json.dumps(plain, indent=1, sort_keys=True, default=lambda value: type(value).__name__)
