"""The plan of a strategy that a person names."""

from __future__ import annotations

import pytest

from tests.unit.finetune.training_toys import make_backbone
from transferkit.core.errors import OptionError
from transferkit.decision import starting_rate
from transferkit.finetune.plans import DEFAULT_BATCH_SIZE, plan_for
from transferkit.options import Recipe
from transferkit.records import Decision
from transferkit.strategies import HEAD, STRATEGIES, TUNABLE, with_new_head


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"linear_probe"}))
@pytest.mark.parametrize("stage", ["top", "middle", 1, "joined"])
def test_a_name_and_a_stage_give_the_plan_of_the_same_decision(strategy, stage):
    found = plan_for(strategy, make_backbone(), stage=stage, lr=1e-3, norm="keep")
    decision = Decision(
        strategy=strategy,
        stage="middle" if stage == 1 else str(stage),
        lr=1e-3,
        lr_scale=0.0,
        norm="keep",
        mode="given",
        reasons=("asked for",),
    )
    assert found == with_new_head(STRATEGIES[strategy](decision, ["stem", "middle", "top"]))


def highest(plan, stage="top"):
    return max(rule.lr for phase in plan.phases for rule in phase.rules if rule.stage == stage)


@pytest.mark.parametrize("recipe", [None, Recipe(), Recipe(optimizer="sgd", batch_size=64)])
def test_without_a_rate_it_is_a_tenth_of_the_original(recipe):
    backbone = make_backbone()
    used = recipe or Recipe()
    expected = starting_rate(
        backbone.spec, optimizer=used.optimizer, batch_size=used.batch_size or DEFAULT_BATCH_SIZE
    ).lr
    assert highest(plan_for("many_layers", backbone, recipe=recipe)) == pytest.approx(expected)
    assert highest(plan_for("many_layers", backbone, lr=0.25)) == pytest.approx(0.25)


def test_a_recipes_own_rate_is_obeyed():
    assert highest(plan_for("many_layers", make_backbone(), recipe=Recipe(lr=0.125))) == pytest.approx(0.125)


def test_a_recipes_share_of_the_original_rate_is_obeyed():
    backbone = make_backbone()
    tenth, fifth, half = (
        highest(plan_for("many_layers", backbone, recipe=Recipe(lr_scale=share))) for share in (0.1, 0.2, 0.5)
    )
    assert (fifth, half) == pytest.approx((2 * tenth, 5 * tenth))
    assert tenth == highest(plan_for("many_layers", backbone))
    assert highest(plan_for("many_layers", backbone, lr=0.25, recipe=Recipe(lr_scale=0.2))) == 0.25


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("unfreeze", "names"), [(2, ["middle", "top"]), (["stem"], ["stem"]), ("top", ["top"])])
def test_stages_to_train_are_obeyed_or_refused(strategy, unfreeze, names):
    if strategy not in TUNABLE:
        with pytest.raises(OptionError, match=f"strategy={strategy} does not accept it"):
            plan_for(strategy, make_backbone(), unfreeze=unfreeze)
        return
    plan = plan_for(strategy, make_backbone(), unfreeze=unfreeze, lr=1e-3)
    learning = {rule.stage for phase in plan.phases for rule in phase.rules if rule.lr > 0}
    assert learning == {HEAD, *names}


def test_a_rate_that_is_yet_to_be_found_needs_images():
    with pytest.raises(OptionError, match="lr='find' needs images"):
        plan_for("many_layers", make_backbone(), recipe=Recipe(lr="find"))
    assert highest(plan_for("many_layers", make_backbone(), lr=0.5, recipe=Recipe(lr="find"))) == 0.5


def test_what_is_unknown_is_offered_its_closest():
    with pytest.raises(OptionError, match="Unknown strategy 'few-layers'. Closest known: few_layers."):
        plan_for("few-layers", make_backbone(), unfreeze=1)
    with pytest.raises(OptionError, match="Unknown stage 'midle'. Closest known: middle."):
        plan_for("few_layers", make_backbone(), stage="midle")
    with pytest.raises(OptionError, match="Unknown stage 'midle'. Closest known: middle."):
        plan_for("few_layers", make_backbone(), unfreeze=["midle"])
    with pytest.raises(OptionError, match=r"Stage index must be in \[-3, 2\], got 3."):
        plan_for("few_layers", make_backbone(), stage=3)
    with pytest.raises(OptionError, match="Unknown treatment of normalisation 'kept'. Closest known: keep."):
        plan_for("few_layers", make_backbone(), norm="kept")
