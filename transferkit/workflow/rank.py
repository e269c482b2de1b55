"""Backbones ranked on some images: one frozen pass over the training images each, nothing trained."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit import zoo
from transferkit.core.errors import (
    BackboneError,
    DataError,
    MissingDependencyError,
    OptionError,
    TransferkitError,
    list_problems,
)
from transferkit.core.progress import announce
from transferkit.core.random import seed_everything
from transferkit.core.score_text import format_score
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.features import Engines, FeatureBank, FeatureTable
from transferkit.measure import (
    MEASURES,
    RESAMPLES,
    RankIntervals,
    ResampledScore,
    bootstrap_ranks,
    rank_resampled,
    resample_score,
)
from transferkit.nn import Backbone, count_operations
from transferkit.options import PassOptions
from transferkit.records import (
    JOINED,
    TOP,
    BackboneSpec,
    Folds,
    LeftOut,
    MeasureScore,
    ProbeScore,
    RankedModel,
    Ranking,
)
from transferkit.workflow.measure import probe_stages, read_features
from transferkit.workflow.session import fit_to_images, open_backbone, open_bank, open_images, prepared_side
from transferkit.workflow.views import AskedViews, ask_views, fixed_views, refuse_for_tensors

__all__ = ["MEASURED_IMAGES", "name_models", "rank_backbones"]

MEASURED_IMAGES = 2000
"""Images for the measures of transferability, whose cost grows up to cubically; ranks are computed on all images."""

MEASURE_SECONDS = 30.0
"""Once the measures of one model have taken this long, its remaining ones are left out, with a note."""

PUBLISHED = "published accuracy"
PARAMETERS = "parameters"
GLOB = "*?["


def rank_backbones(
    models: Sequence[str | nn.Module] | str, data: Any, options: PassOptions, *, command: str
) -> Ranking:
    """Backbones by the held-back accuracy of a closed-form probe on all their stages joined, best first.

    Args:
        models: Names or modules; a name with * in it stands for all models of the zoo that it matches and whose weights
            are on this machine.
        data: Opened and audited once for all.
        options: How; `preprocessing` is for the modules among the models, `geometry` and `views` "auto" are each
            checkpoint's own crop.
        command: What to quote as the way to run this again.

    Raises:
        OptionError: No model is named, or a pattern matches none.
        BackboneError: Not one of the models could be ranked.
    """
    start = time.perf_counter()
    asked = ask_views(options.geometry, options.views)
    named = name_models(models, pretrained=options.pretrained)
    opened = open_images(data, options)
    if opened.normalised:
        refuse_for_tensors(asked)
    if not opened.folds.take(opened.indices("train")).measurable:
        raise DataError(
            "Backbones are ranked by held-back accuracy, but no training image can be held back: every class has one "
            "image or one group. Add images of another group to each class."
        )
    rows, left_out = _measure_all(named, opened, options, open_bank(options))
    prior = PUBLISHED if all(row.spec.published_accuracy is not None for row in rows) else PARAMETERS
    images = len(opened.indices("train"))
    ranked = _order(rows, prior, opened.folds.take(opened.indices("train")), options.seed)
    return Ranking(
        models=ranked,
        reasons=tuple(_explain(ranked, prior, images, asked)),
        data=opened.summary,
        prior=prior,
        left_out=tuple(left_out),
        images=images,
        measured_images=min(images, MEASURED_IMAGES),
        resamples=RESAMPLES,
        pooling=options.pooling,
        seed=options.seed,
        seconds=time.perf_counter() - start,
        command=command,
    )


def name_models(models: Sequence[str | nn.Module] | str, *, pretrained: bool) -> dict[str, str | nn.Module]:
    """Name -> what to load, patterns written out, doubles dropped.

    Raises:
        OptionError: If there is nothing to rank.
    """
    given = [models] if isinstance(models, (str, nn.Module)) else list(models)
    named: dict[str, str | nn.Module] = {}
    for model in given:
        if isinstance(model, nn.Module):
            name = f"module/{type(model).__name__}"
            same = sum(known == name or known.startswith(f"{name} (") for known in named)
            named[f"{name} ({same + 1})" if same else name] = model
        elif any(sign in model for sign in GLOB):
            named |= {name: name for name in _expand(model, pretrained=pretrained)}
        else:
            named[model] = model
    if not named:
        raise OptionError("No model is named. Name two or more: models=[packaged/tf_efficientnet_lite0,timm/resnet18].")
    return named


def _expand(pattern: str, *, pretrained: bool) -> Iterator[str]:
    """The models that can be had without any network: a pattern must not start a hundred downloads."""
    matching = zoo.catalog(pattern)
    usable = [entry.name for entry in matching if entry.offline or not pretrained]
    if not usable and matching:
        raise OptionError(
            f"{pattern!r} matches {len(matching)} models of the zoo, but the weights of none are on this machine. "
            f"Name those that may be fetched one by one, such as {matching[0].name!r}."
        )
    if not usable:
        raise OptionError(f"{pattern!r} matches no model of the zoo. See transferkit zoo pattern='*resnet*'.")
    yield from usable


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Measurements of one model before it is compared.

    Args:
        name, spec, scores, images_per_second, gigaflops, seconds: As in `RankedModel`.
        probes: Of all stages, and the joined one.
        right: (N,) bool, whether the joined probe classifies each training image correctly while it is held back.
        resampled: Of labels or numbers, the score of the joined probe with resampled images; None for classes.
    """

    name: str
    spec: BackboneSpec
    probes: tuple[ProbeScore, ...]
    right: npt.NDArray[Any]
    resampled: ResampledScore | None
    scores: tuple[MeasureScore, ...]
    images_per_second: float | None
    gigaflops: float | None
    seconds: dict[str, float]

    def probe(self, *, joined: bool) -> ProbeScore:
        """The probe on all stages joined, or the best of a single stage."""
        ridge = [probe for probe in self.probes if probe.method == "ridge" and (probe.stage == JOINED) == joined]
        return max(ridge, key=lambda probe: (probe.interval[0], -(probe.squared_error or 0.0)))


def _measure_all(
    named: dict[str, str | nn.Module], data: Data, options: PassOptions, bank: FeatureBank
) -> tuple[list[_Measured], list[LeftOut]]:
    """Measurements of every model that loads, one after the other; why the others do not.

    Raises:
        BackboneError: If none can.
    """
    rows, left_out = [], []
    for number, (name, model) in enumerate(named.items(), start=1):
        announce(f"model {number} of {len(named)}: {name}", enabled=options.progress)
        try:
            rows.append(_measure(name, model, data, options, bank))
        except (BackboneError, MissingDependencyError) as error:
            left_out.append(LeftOut(name=name, reason=str(error)))
        gc.collect()  # a network refers to itself through its hooks; two large ones may not fit at once
    if not rows:
        raise BackboneError(
            list_problems("None of the models can be ranked:", [f"{one.name}: {one.reason}" for one in left_out])
        )
    return rows, left_out


def _measure(name: str, model: str | nn.Module, data: Data, options: PassOptions, bank: FeatureBank) -> _Measured:
    seconds: dict[str, float] = {}
    seed_everything(options.seed)
    with timed(seconds, "load backbone"):
        # A named model knows how its images are prepared.
        own = dataclasses.replace(options, preprocessing=None) if isinstance(model, str) else options
        backbone = open_backbone(model, dataclasses.replace(own, image_size=prepared_side(data, options)))
        fit_to_images(backbone, data)
    backbone = backbone.with_preprocessing(
        fixed_views(ask_views(options.geometry, options.views), backbone.spec.preprocessing, data)
    )
    train = data.indices("train")
    folds = data.folds.take(train)
    with timed(seconds, "frozen pass"):
        # Over the training images alone: no other image has a say in the ranking.
        done = read_features(
            backbone,
            data,
            bank=bank,
            pooling=options.pooling,
            device=options.device,
            batch_size=options.batch_size,
            engines=Engines(options.engine, folder=bank.folder),
            among=train,
            progress=options.progress,
        )
    with timed(seconds, "probe"):
        probes, paths = probe_stages(
            done.table,
            folds,
            classes=data.summary.num_classes,
            class_weight=options.class_weight,
            seed=options.seed,
        )
    with timed(seconds, "measures"):
        scores = tuple(_score(backbone, done.table, folds, options.seed))
    joined = paths[JOINED]
    return _Measured(
        name=name,
        spec=backbone.spec,
        probes=probes,
        right=joined.right[joined.best],
        resampled=None
        if folds.targets is None or joined.predicted is None
        else resample_score(
            folds.targets, joined.predicted[joined.best], folds, counting=joined.counting, resamples=RESAMPLES
        ),
        scores=scores,
        images_per_second=done.computed / seconds["frozen pass"] if done.computed else None,
        gigaflops=_gigaflops(backbone),
        seconds=seconds,
    )


def _gigaflops(backbone: Backbone) -> float | None:
    try:
        return count_operations(backbone) / 1e9
    except (RuntimeError, NotImplementedError):  # an operation of its own that the counter cannot take apart
        return None


def _score(backbone: Backbone, table: FeatureTable, folds: Folds, seed: int) -> Iterator[MeasureScore]:
    """Every registered measure at the top stage, on the same sample of images for every backbone."""
    images = min(len(folds), MEASURED_IMAGES)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(folds))[:images])
    features, sampled = table.take(chosen).load([TOP]), folds.take(chosen)
    spent = 0.0
    for name, measure in MEASURES.items():
        start, value, reason = time.perf_counter(), None, ""
        if folds.targets is not None:
            reason = "It needs one class per image."
        elif spent > MEASURE_SECONDS:
            reason = f"Left out: the measures before it took {spent:.0f} s."
        elif measure.needs == "source_probabilities":
            reason = _lacks_classifier(backbone)
        if not reason:
            wanted = features if measure.needs == "features" else _source_probabilities(backbone, features)
            try:
                held_back = {"folds": sampled} if measure.holds_back else {}
                value = measure.function(wanted, sampled.labels, **held_back)
            except (TransferkitError, np.linalg.LinAlgError, FloatingPointError) as error:
                reason = str(error)
            if value is not None and not np.isfinite(value):
                value, reason = None, "The value is not finite."
        seconds = time.perf_counter() - start
        spent += seconds
        yield MeasureScore(measure=name, stage=TOP, value=value, seconds=seconds, reason=reason)


def _lacks_classifier(backbone: Backbone) -> str:
    """Why there are no source probabilities; empty if there are."""
    if backbone.head is None:
        return "The backbone has no classifier of its own."
    return "" if backbone.spec.pretrained else "The weights of its own classifier are random."


def _source_probabilities(backbone: Backbone, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N, Z) probabilities of the backbone's own classifier."""
    # The averages come first, whatever the pooling.
    return backbone.source_probabilities(features[:, : backbone.stages[-1].channels])


def _order(rows: Sequence[_Measured], prior: str, folds: Folds, seed: int) -> tuple[RankedModel, ...]:
    """Rows with their ranks, best first; those that share a rank by squared error."""
    known = [_prior(row.spec, prior) for row in rows]
    resampled = [row.resampled for row in rows if row.resampled is not None]
    if resampled:
        scores, draws = np.array([one.score for one in resampled]), np.stack([one.draws for one in resampled])
        found = rank_resampled(scores, draws)
        ranked = [_row(row, known, found, at) for at, row in enumerate(rows)]
        return tuple(sorted(ranked, key=lambda row: (row.rank, row.joined.squared_error or 0.0)))
    measurable = folds.groups_per_class[folds.labels] > 1
    right = np.stack([row.right for row in rows])[:, measurable]
    found = bootstrap_ranks(right, groups=folds.groups[measurable], seed=seed)
    ranked = [_row(row, known, found, at) for at, row in enumerate(rows)]
    return tuple(sorted(ranked, key=lambda row: (row.rank, row.joined.squared_error or 0.0)))


def _prior(spec: BackboneSpec, prior: str) -> float:
    return float(spec.parameters) if prior == PARAMETERS else spec.published_accuracy or 0.0


def _row(measured: _Measured, known: Sequence[float], found: RankIntervals, at: int) -> RankedModel:
    spec = measured.spec
    joined = measured.probe(joined=True)
    return RankedModel(
        name=measured.name,
        rank=int(found.rank[at]),
        rank_low=int(found.low[at]),
        rank_high=int(found.high[at]),
        best=float(found.best[at]),
        joined=joined,
        best_stage=measured.probe(joined=False),
        prior=known[at],
        prior_rank=1 + sum(other > known[at] for other in known),
        scores=measured.scores,
        images_per_second=measured.images_per_second,
        parameters=spec.parameters,
        image_size=spec.preprocessing.size,
        width=joined.dim,
        gigaflops=measured.gigaflops,
        pretrained=spec.pretrained,
        published_by=spec.published_by,
        seconds=measured.seconds,
    )


def _explain(models: Sequence[RankedModel], prior: str, images: int, asked: AskedViews) -> Iterator[str]:
    """The best model, how certain its rank is, what the prior alone would have chosen, and the views."""
    first = models[0]
    measure = first.joined.measure
    kind = "classifier" if measure == "accuracy" else "model"
    yield (
        f"{first.name} is first: a linear {kind} on all its stages joined has a held-back {measure} of "
        f"{format_score(first.joined.interval[0], measure)} on the {images:,} training images."
    )
    near = [row for row in models[1:] if row.rank_low == 1]
    if near:
        names = " and ".join(f"{row.name} ({_percent(row.best)})" for row in near)
        yield (
            f"It is the best one in {_percent(first.best)} of {RESAMPLES:,} resamples of these images; not "
            f"distinguishable by their 95 % intervals: {names}. Choose among these by cost."
        )
    elif len(models) > 1:
        said = f"It is the best one in {_percent(first.best)} of {RESAMPLES:,} resamples of these images"
        yield f"{said}; the 95 % interval of no other reaches rank 1."
    if len(models) > 1:
        favoured = min(models, key=lambda row: row.prior_rank)
        agrees = "agrees" if favoured is first else f"would have chosen {favoured.name}"
        yield f"The prior, {prior} alone without any of your images, {agrees}."
    yield _explain_views(asked)
    random = [row.name for row in models if not row.pretrained]
    if random:
        yield f"The weights of {', '.join(random)} are random: nothing was transferred."


def _explain_views(asked: AskedViews) -> str:
    """The views of the images, the same for all models."""
    seen = "+".join([*(asked.views or (asked.start,)), *(["mirror"] if asked.mirror else [])])
    if asked.plain:
        return (
            "All models were measured on one view, each checkpoint's own crop, since a view costs a pass of every "
            "model; views=crop+squash+zoom averages three."
        )
    return f"All models were measured on the same views: {seen}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
