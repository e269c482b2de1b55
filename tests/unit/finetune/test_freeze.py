"""Frozen means frozen: gradients, statistics, dropout, optimizer. Answers are read off the names of a toy's
parameters."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.unit.finetune.training_toys import (
    CLASSES,
    STAGES,
    Staged,
    draw,
    head_then,
    is_statistic,
    make_backbone,
    moved,
    phase,
    stage_of,
    states,
    trunk_names,
)
from tests.unit.nn.toy_networks import Isotropic, Wrapper, spec_of
from transferkit.core.errors import OptionError
from transferkit.finetune.freeze import FreezePlan
from transferkit.nn import Backbone
from transferkit.nn.norm import NORM_KINDS, swap_norm
from transferkit.strategies import HEAD, Phase, Rule

NORMS, BIASES = (".1.weight", ".1.bias"), ("bias",)
"""How the names of the toy's norm parameters and biases end."""


def make_network() -> nn.Sequential:
    return nn.Sequential(make_backbone(), nn.Linear(8, CLASSES))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, plan: FreezePlan | None = None) -> None:
    """Three optimizer steps over different images."""
    for images, labels in draw():
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        if plan is not None:
            plan.drop_idle()
        optimizer.step()


def asking(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def in_trunk(names: set[str]) -> set[str]:
    return {name.removeprefix("0.trunk.") for name in names if name.startswith("0.trunk.")}


# ---- Statistics and modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lrs", "norm"),
    [({}, "keep"), ({"top": 0.1}, "keep"), ({"middle": 0.1}, "keep"), ({"top": 0.1, "middle": 0.1}, "frozen")],
)
def test_what_is_frozen_keeps_its_bits_whatever_calls_train(lrs, norm):
    network = make_network()
    backbone = network[0]
    plan = FreezePlan(network, [phase("only", **lrs)], norm=norm)
    plan.start(0)
    before = states(backbone.trunk)
    optimizer = torch.optim.SGD(plan.groups(), momentum=0.9)
    for _ in range(2):
        network.train()  # every submodule, as Lightning#15062 and keras#7085 complain of
        backbone.trunk.stem.train()
        step(network, optimizer)
    learning = trunk_names(backbone, list(lrs), statistics=norm == "keep")
    assert moved(before, states(backbone.trunk)) == learning


def test_frozen_stages_give_in_training_what_they_give_in_evaluation():
    network = make_network()
    backbone = network[0]
    images = draw(1)[0][0]
    expected = backbone.eval().forward_stages(images)
    plan = FreezePlan(network, [phase("only", top=0.1)])
    plan.start(0)
    network.train()
    found = backbone.forward_stages(images)
    assert torch.equal(found["stem"], expected["stem"])
    assert torch.equal(found["middle"], expected["middle"])
    assert not torch.equal(found["top"], expected["top"])


def test_dropout_outside_of_any_module_is_off_when_the_end_is_frozen():
    network = make_network()
    images = draw(1)[0][0]
    expected = network[0].eval()(images)
    plan = FreezePlan(network, [phase("head")])
    plan.start(0)
    network.train()
    assert torch.equal(network[0](images), expected)
    plan = FreezePlan(network, [phase("top", top=0.1)], norm="frozen")
    plan.start(0)
    network.train()
    assert (network[0](images) == 0).float().mean() > 0.2


def test_a_transformers_own_ways_of_drawing_are_off_in_frozen_blocks():
    """Stochastic depth, dropout, and attention's, which is no module's call but an argument."""
    options = {"drop_path_rate": 0.9, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5}
    network = timm.create_model("test_vit", img_size=32, num_classes=0, **options)
    backbone = Backbone(network, spec_of(32))
    names = [stage.name for stage in backbone.stages]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = backbone.eval().forward_stages(images)
    model = nn.Sequential(backbone, nn.Linear(64, 2))
    rules = (Rule(stage=HEAD, lr=1.0), *(Rule(stage=name, lr=1.0) for name in names[-2:]), Rule(stage="*"))
    FreezePlan(model, [Phase(name="last", rules=rules)]).start(0)
    model.train()
    found = backbone.forward_stages(images)
    same = [torch.equal(found[name], expected[name]) for name in names]
    assert same == [True] * (len(names) - 2) + [False] * 2


def test_a_stage_wakes_up_when_its_phase_comes():
    """Nobody calls `train()` between two phases: Lightning leaves modes as it finds them."""
    network = make_network().train()
    plan = FreezePlan(network, head_then(top=0.1))
    plan.start(0)
    plan.set_modes(training=True)
    assert not any(module.training for module in network[0].trunk.modules())
    plan.start(1)
    plan.set_modes(training=True)
    trunk = network[0].trunk
    assert trunk.last[1].training
    assert trunk.last[3].training
    assert trunk.training  # its own dropout comes at the end
    assert not any(module.training for part in (trunk.stem, trunk.middle) for module in part.modules())
    plan.set_modes()
    network.eval()
    plan.set_modes()
    assert not any(module.training for module in network.modules())


def test_modes_are_left_alone_while_no_phase_is_in_force():
    network = make_network().train()
    plan = FreezePlan(network, [phase("head")])
    plan.set_modes(training=True)
    assert all(module.training for module in network.modules())


# ---- Gradients and groups -------------------------------------------------------------------------------------------


def test_each_phase_asks_for_the_gradients_that_it_trains():
    network = make_network()
    plan = FreezePlan(network, [*head_then(top=0.1), phase("all", 1.0, stem=0.1, middle=0.1, top=0.1)])
    for number, stages in enumerate([(), ("top",), STAGES]):
        plan.start(number)
        assert plan.phase == number
        assert in_trunk(asking(network)) == trunk_names(network[0], stages, statistics=False)
        assert {"1.weight", "1.bias"} <= asking(network)


def test_a_distributed_wrapper_sees_all_that_is_ever_trained_in_every_phase():
    network = make_network()
    plan = FreezePlan(network, head_then(top=0.1))
    expected = {f"0.trunk.{name}" for name in trunk_names(network[0], ["top"], statistics=False)}
    for number in range(2):
        plan.start(number, static=True)
        assert asking(network) == expected | {"1.weight", "1.bias"}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True)])
def test_what_idles_is_not_stepped_by_weight_decay_or_momentum(make, static):
    """Momentum of the phase before, and decay, would go on moving it; gradients of a static graph would too."""
    network = make_network().train()
    phases = [phase("all", 0.5, top=0.1, middle=0.1), phase("top alone", 0.5, head=0.0, top=0.1)]
    plan = FreezePlan(network, phases, weight_decay=0.5)
    optimizer = make(plan.groups())
    plan.start(0, static=static)
    step(network, optimizer, plan)
    plan.start(1, static=static)
    before = states(network)
    step(network, optimizer, plan)
    changed = {name for name in moved(before, states(network)) if not is_statistic(name)}
    assert changed == {f"0.trunk.{name}" for name in trunk_names(network[0], ["top"], statistics=False)}


def test_gradients_left_from_the_phase_before_are_dropped():
    network = make_network().train()
    plan = FreezePlan(network, [phase("all", 0.5, top=0.1), phase("head", 0.5)])
    optimizer = torch.optim.SGD(plan.groups(), momentum=0.9)
    plan.start(0)
    step(network, optimizer)
    plan.start(1)
    plan.drop_idle()
    assert all(parameter.grad is None for parameter in network[0].parameters())
    assert network[1].weight.grad is not None


def test_all_groups_are_there_from_the_start_each_with_its_rate_in_every_phase():
    network = make_network()
    phases = [phase("head", 0.2), phase("top", 0.3, head=0.02, top=0.01), phase("all", 0.5, middle=0.001, top=0.01)]
    groups = FreezePlan(network, phases, weight_decay=0.3).groups()
    expected = {"head": (0.05, 0.02, 0.05), "top": (0.0, 0.01, 0.01), "middle": (0.0, 0.0, 0.001)}
    assert {group["name"]: (group["lrs"], group["weight_decay"]) for group in groups} == {
        f"{stage}{suffix}": (lrs, decay)
        for stage, lrs in expected.items()
        for suffix, decay in (("", 0.3), (" (no decay)", 0.0))
    }
    assert all(group["lr"] == max(group["lrs"]) for group in groups)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(map(id, grouped)))
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {named[id(parameter)] for parameter in grouped} == {
        "1.weight",
        "1.bias",
        *(f"0.trunk.{name}" for name in trunk_names(network[0], ["middle", "top"], statistics=False)),
    }


def test_weight_decay_spares_norms_and_biases():
    network = make_network()
    groups = FreezePlan(network, [phase("all", stem=1.0, middle=1.0, top=1.0, head=1.0)], weight_decay=0.1).groups()
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    found = {name for name, parameter in network.named_parameters() if id(parameter) in decayed}
    assert found == {*(f"0.trunk.{part}.0.weight" for part in ("stem", "middle", "last")), "1.weight"}


def test_weight_decay_spares_what_the_networks_authors_exempt():
    network = timm.create_model("test_vit", init_values=0.1)  # with a scale per channel behind each layer
    exempt = network.no_weight_decay()
    assert {"pos_embed", "cls_token"} <= exempt
    network = nn.Sequential(Backbone(network, spec_of(160)).without_head(), nn.Linear(64, 2))
    groups = FreezePlan(network, [Phase(name="all", rules=(Rule(stage="*", lr=1.0),))], weight_decay=0.1).groups()
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in network.named_parameters():
        should = parameter.ndim > 1 and not any(name.endswith(part) for part in exempt)
        assert (id(parameter) in decayed) == should, name


# ---- Which rule for whom --------------------------------------------------------------------------------------------

rates = st.sampled_from([0.0, 0.1, 0.2])
rules = st.builds(
    Rule,
    stage=st.sampled_from([*STAGES, "head", "*", "s*", "?op", "mid*"]),
    kind=st.sampled_from(["any", "norm", "bias"]),
    lr=rates,
)
MATCHES = {
    **{name: {name} for name in (*STAGES, HEAD)},
    "*": {*STAGES, HEAD},
    "s*": {"stem"},
    "?op": {"top"},
    "mid*": {"middle"},
}
"""What the patterns above fit, by hand."""


def expected_claims(names: list[str], ordered: list[Rule]) -> dict[str, int | None]:
    """Parameter name -> number of the first rule that fits."""

    def fits(name: str, rule: Rule) -> bool:
        inside = name.removeprefix("0.trunk.")
        stage = HEAD if name.startswith("1.") else stage_of(inside)
        kind = {
            "any": True,
            "norm": name.startswith("0.") and inside.endswith(NORMS),
            "bias": name.endswith(BIASES),
        }
        return stage in MATCHES[rule.stage] and kind[rule.kind]

    return {name: next((i for i, rule in enumerate(ordered) if fits(name, rule)), None) for name in names}


@settings(max_examples=150, deadline=None)
@given(st.lists(rules, min_size=1, max_size=5), st.booleans())
def test_the_first_rule_counts_and_all_that_does_not_fit_is_named(ordered, with_rest):
    network = NETWORK
    ordered = [*ordered, Rule(stage="*", lr=0.3)] if with_rest else ordered
    if not any(rule.lr for rule in ordered):
        ordered = [*ordered, Rule(stage="*", lr=0.3)]
    names = [name for name, _ in network.named_parameters()]
    expected = expected_claims(names, ordered)
    homeless = [name for name, rule in expected.items() if rule is None]
    idle = [rule for number, rule in enumerate(ordered) if number not in expected.values()]
    made = Phase(name="drawn", rules=tuple(ordered))
    if homeless or idle:
        with pytest.raises(OptionError) as raised:
            FreezePlan(network, [made])
        said = str(raised.value)
        assert all(repr(name) in said for name in homeless)
        assert said.count("claims no parameter") == len(idle)
        assert said.count("has no rule") == len(homeless)
        return
    plan = FreezePlan(network, [made])
    plan.start(0)
    assert asking(network) == {name for name, rule in expected.items() if ordered[rule].lr > 0}
    plan.release()


NETWORK = make_network()


def test_all_that_is_wrong_is_said_at_once_over_all_phases():
    first = Phase(name="one", rules=(Rule(stage="head", lr=1.0), Rule(stage="layer4*"), Rule(stage="top")))
    second = Phase(name="two", rules=(Rule(stage="*", lr=1.0), Rule(stage="stem", kind="adapter", lr=1.0)))
    with pytest.raises(OptionError) as raised:
        FreezePlan(make_network(), [first, second])
    said = str(raised.value)
    assert "parameter '0.trunk.stem.0.weight' (stage 'stem') has no rule" in said
    assert "parameter '0.trunk.middle.1.bias' (stage 'middle') has no rule" in said
    assert "rule 'layer4*' claims no parameter" in said
    assert "rule 'stem (adapter)' claims no parameter" in said
    assert "phase 'one': rule 'layer4*'" in said
    assert "phase 'two': rule 'stem (adapter)'" in said


def test_a_rule_for_a_stage_without_parameters_is_no_mistake():
    toy = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.MaxPool2d(2))
    backbone = Backbone(nn.Sequential(*toy, nn.AdaptiveAvgPool2d(1), nn.Flatten()), spec_of(32))
    network = nn.Sequential(backbone, nn.Linear(8, 2))
    names = [stage.name for stage in backbone.stages]
    empty = [
        name
        for name in names
        if name not in {backbone.stage_of(p.rpartition(".")[0]) for p, _ in backbone.trunk.named_parameters()}
    ]
    assert empty
    rules = (Rule(stage=HEAD, lr=1.0), *(Rule(stage=name, lr=1.0) for name in names))
    FreezePlan(network, [Phase(name="all", rules=rules)])


def test_a_network_without_a_backbone_or_with_two_is_refused():
    rules = Phase(name="all", rules=(Rule(stage="*", lr=1.0),))
    with pytest.raises(
        OptionError, match=r"contains one transferkit backbone, got 0. Build it on transferkit.load_back"
    ):
        FreezePlan(nn.Linear(2, 2), [rules])
    with pytest.raises(OptionError, match="contains one transferkit backbone, got 2"):
        FreezePlan(nn.ModuleList([make_backbone(), make_backbone()]), [rules])


# ---- Swapped normalisation ------------------------------------------------------------------------------------------


def swapped(kind: str) -> nn.Sequential:
    network = make_network()
    images, _ = draw(1)[0]
    swap_norm(network, kind, calibrate=images if kind == "recalibrated" else None)
    return network


@pytest.mark.parametrize("kind", NORM_KINDS)
def test_swapped_layers_are_frozen_and_spared_weight_decay_as_others_are(kind):
    network = swapped(kind)
    plan = FreezePlan(network, head_then(top=0.1), weight_decay=0.1)
    decayed = {id(p) for group in plan.groups() if group["weight_decay"] for p in group["params"]}
    found = {name for name, parameter in network.named_parameters() if id(parameter) in decayed}
    assert found == {"0.trunk.last.0.weight", "1.weight"}
    plan.start(1)
    before = states(network[0].trunk)
    step(network.train(), torch.optim.SGD(plan.groups()), plan)
    changed, parameters = moved(before, states(network[0].trunk)), dict(network[0].trunk.named_parameters())
    assert changed & set(parameters) == trunk_names(network[0], ["top"], statistics=False) & set(parameters)
    assert all(name.startswith("last.") for name in changed)


@pytest.mark.parametrize(
    ("kind", "said"), [("momentum", "updated"), ("frozen", "fixed"), ("alpha", "fixed"), ("group", "none")]
)
def test_statistics_that_never_move_are_not_said_to(kind, said):
    network = swapped(kind)
    plan = FreezePlan(network, [phase("all", stem=1.0, middle=1.0, top=1.0, head=1.0)])
    assert {claim.statistics for claim in plan.claims() if claim.stage != HEAD} == {said}
    assert bool(plan.updated_statistics) is (said == "updated")


# ---- What is said of it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["keep", "frozen"])
def test_the_claims_add_up_to_the_network(norm):
    network = make_network()
    plan = FreezePlan(network, head_then(top=0.1), norm=norm, weight_decay=0.1)
    total = sum(parameter.numel() for parameter in network.parameters())
    claims = plan.claims()
    for name in ("head", "stages"):
        of_phase = [claim for claim in claims if claim.phase == name]
        assert sum(claim.parameters for claim in of_phase) == total
        assert sum(claim.tensors for claim in of_phase) == len(list(network.parameters()))
        assert [claim.stage for claim in of_phase] == [*STAGES, HEAD]
    updated = {(claim.phase, claim.stage) for claim in claims if claim.statistics == "updated"}
    assert updated == ({("stages", "top")} if norm == "keep" else set())
    assert {claim.stage for claim in claims if claim.statistics == "none"} == {HEAD}
    top = next(claim for claim in claims if (claim.phase, claim.stage) == ("stages", "top"))
    assert (top.lr, top.rule, top.decayed) == (0.1, "top", network[0].trunk.last[0].weight.numel())
    assert all(claim.decayed == 0 for claim in claims if claim.lr == 0)


def test_what_holds_several_stages_draws_at_its_end():
    """What a network does outside of its modules, it does behind the last of them."""
    network = nn.Sequential(Backbone(Wrapper(Staged()), spec_of(16)), nn.Linear(8, CLASSES))
    names = [stage.name for stage in network[0].stages]
    for learning, draws in ((names[-1:], True), (names[:-1], False)):
        rules = (Rule(stage=HEAD, lr=1.0), *(Rule(stage=name, lr=1.0) for name in learning), Rule(stage="*"))
        plan = FreezePlan(network, [Phase(name="one", rules=rules)])
        plan.start(0)
        plan.set_modes(training=True)
        assert network[0].trunk.inner.training == draws
        plan.release()


@pytest.mark.parametrize(
    ("lrs", "cut", "learning"),
    [
        ({}, "top", {HEAD}),
        ({"top": 0.1}, "middle", {HEAD, "top"}),
        ({"middle": 0.1}, "stem", {HEAD, "middle"}),
        ({"stem": 0.1, "top": 0.1}, None, {HEAD, "stem", "top"}),
    ],
)
def test_the_cut_is_the_last_stage_before_anything_learns_in_any_phase(lrs, cut, learning):
    plan = FreezePlan(make_network(), head_then(**lrs))
    assert plan.cut == cut
    assert plan.learning_stages == learning
    statistics = {
        f"{stage}.1" for stage, owner in (("stem", "stem"), ("middle", "middle"), ("last", "top")) if owner in learning
    }
    assert {name.rpartition(".")[0] for name in plan.updated_statistics} == statistics
    assert FreezePlan(make_network(), head_then(**lrs), norm="frozen").updated_statistics == []


# ---- Off again ------------------------------------------------------------------------------------------------------


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in network.modules())


def test_a_released_network_is_as_it_was_before():
    network = make_network()
    network[0].trunk.stem[0].weight.requires_grad_(False)
    before, wanted = hooks(network), asking(network)
    plan = FreezePlan(network, head_then(top=0.1))
    for number in (0, 1, 0):
        plan.start(number)
    assert hooks(network) > before
    plan.release()
    assert plan.phase is None
    assert hooks(network) == before
    assert asking(network) == wanted
    network.train()
    network(draw(1)[0][0])
    assert all(module.training for module in network.modules())
    plan.release()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_under_a_plan_has_a_plan_of_its_own(clone):
    network = make_network()
    plan = FreezePlan(network, head_then(top=0.1))
    plan.start(0)
    other, others_plan = clone((network, plan))
    others_plan.start(1)
    assert in_trunk(asking(network)) == set()
    assert in_trunk(asking(other)) == trunk_names(other[0], ["top"], statistics=False)
    other.train()
    before, kept = states(other[0].trunk), states(network)
    step(other, torch.optim.SGD(others_plan.groups()))
    assert moved(before, states(other[0].trunk)) == trunk_names(other[0], ["top"], statistics=True)
    assert not moved(kept, states(network))
    others_plan.release()
    assert hooks(other) == 0
    assert hooks(network) > 0
    assert others_plan.claims() == plan.claims()


def test_token_and_position_parameters_belong_to_the_first_stage():
    network = nn.Sequential(Backbone(Isotropic(3), spec_of()), nn.Linear(8, 2))
    first = network[0].stages[0].name
    plan = FreezePlan(network, [Phase(name="one", rules=(Rule(stage=first), Rule(stage="*", lr=1.0)))])
    plan.start(0)
    frozen = {name for name, _ in network.named_parameters()} - asking(network)
    assert frozen == {
        f"0.trunk.{name}"
        for name in (
            "token",
            "patch.weight",
            "patch.bias",
            "blocks.0.norm.weight",
            "blocks.0.norm.bias",
            "blocks.0.mlp.weight",
            "blocks.0.mlp.bias",
        )
    }
