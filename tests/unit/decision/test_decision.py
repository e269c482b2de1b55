"""What is advised, for tables of numbers whose answer the textbook or plain sense gives."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.decision import MODES, Conditions, choose, complete, rule, starting_rate
from transferkit.decision.textbook import NEAR, PLENTY_IMAGES, PLENTY_PER_CLASS
from transferkit.records import (
    BackboneSpec,
    DataSummary,
    Evidence,
    Preprocessing,
    ProbeScore,
    SimilarityDetail,
    StageSpec,
)

STAGES = ("stem", "early", "middle", "late", "top")
TRAINED_LAYERS = {"linear_probe": 0, "few_layers": 1, "many_layers": 2}


def decide(evidence, *, mode="evidence", batch_size=None, budget=None):
    """To decide is to choose and to complete."""
    return complete(choose(evidence, mode=mode, budget=budget), evidence, Conditions(batch_size=batch_size))


def score(stage: str, accuracy: float, *, error: float = 0.5, method: str = "ridge", half: float = 0.02) -> ProbeScore:
    return ProbeScore(
        stage=stage,
        method=method,
        dim=8,
        accuracy=accuracy,
        low=max(0.0, accuracy - half),
        high=min(1.0, accuracy + half),
        squared_error=error if method == "ridge" else None,
    )


def evidence(*probes: ProbeScore, per_class: int = 30, similarity: float | None = None) -> Evidence:
    plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    return Evidence(
        backbone=BackboneSpec(
            name="toy",
            source="module",
            architecture="toy",
            preprocessing=plain,
            pretrained=True,
            stages=tuple(StageSpec(name=name, channels=8, stride=None) for name in STAGES),
        ),
        data=DataSummary(
            origin="here",
            classes=("cat", "dog"),
            counts={"train": (per_class, per_class), "test": (9, 9)},
            split_rule="as given",
        ),
        probes=probes or (score("top", 0.8),),
        pooling="avg",
        image_size=32,
        similarity=similarity,
        seconds={"probe": 1.5},
    )


def advice(images: int, per_class: float, similarity: float):
    return rule(images=images, per_class=per_class, similarity=similarity, stages=STAGES)


@pytest.mark.parametrize(
    ("images", "per_class", "similarity", "strategy", "stages"),
    [
        (100, 10, 0.9, "linear_probe", {"top"}),
        (100, 10, 0.1, "linear_probe", {"middle", "late"}),
        (100_000, 1000, 0.9, "few_layers", {"top"}),
        (100_000, 1000, 0.1, "many_layers", {"top"}),
    ],
)
def test_four_corners_of_the_textbook_matrix(images, per_class, similarity, strategy, stages):
    decision = advice(images, per_class, similarity)
    assert decision.strategy == strategy
    assert decision.stage in stages
    assert decision.mode == "rule"


@pytest.mark.parametrize(
    ("images", "per_class", "plenty"),
    [
        (PLENTY_IMAGES, PLENTY_PER_CLASS, True),
        (PLENTY_IMAGES - 1, PLENTY_PER_CLASS, False),
        (PLENTY_IMAGES, PLENTY_PER_CLASS - 0.1, False),
        (100_000, 5, False),  # many images of very many classes
    ],
)
def test_plenty_needs_many_images_in_all_and_per_class(images, per_class, plenty):
    assert (advice(images, per_class, 0.9).strategy == "few_layers") == plenty


amounts = st.tuples(st.integers(1, 10**6), st.floats(0.1, 10**5))


@settings(deadline=None)
@given(one=amounts, other=amounts, similarity=st.floats(0, 1))
def test_more_data_never_trains_fewer_layers(one, other, similarity):
    less, more = (tuple(map(pick, zip(one, other, strict=True))) for pick in (min, max))
    trained = [TRAINED_LAYERS[advice(*amount, similarity).strategy] for amount in (less, more)]
    assert trained == sorted(trained)


@settings(deadline=None)
@given(one=st.floats(0, 1), other=st.floats(0, 1), depth=st.integers(1, 30))
def test_little_data_is_read_no_earlier_the_nearer_it_is_and_never_below_the_middle(one, other, depth):
    stages = (*(f"s{i}" for i in range(depth - 1)), "top")
    far, near = (
        stages.index(rule(images=50, per_class=5, similarity=s, stages=stages).stage) for s in sorted((one, other))
    )
    assert (depth - 1) // 2 <= far <= near < depth


def test_far_data_reads_an_earlier_stage_than_the_top():
    assert [advice(50, 5, s).stage for s in (0.0, 0.4, NEAR)] == ["middle", "late", "top"]


@settings(deadline=None)
@given(per_class=st.integers(500, 10**5), similarity=st.floats(0, 1), batch_size=st.integers(1, 900))
def test_the_rule_fine_tunes_at_a_tenth_of_the_original_rate_for_the_batch_and_with_the_norm_of_any_decision(
    per_class, similarity, batch_size
):
    looked = evidence(per_class=per_class, similarity=similarity)
    decision = decide(looked, mode="rule", batch_size=batch_size)
    start = starting_rate(looked.backbone, optimizer="adamw", batch_size=batch_size)
    assert (decision.lr, decision.lr_scale) == (start.lr, 0.1)
    assert decision.norm == "frozen"  # the weights are trained ones
    assert start.why in decision.reasons


def test_linear_probe_has_no_rate_and_touches_no_normalisation():
    decision = decide(evidence(per_class=5, similarity=0.2), mode="rule")
    assert (decision.strategy, decision.lr, decision.lr_scale, decision.norm) == ("linear_probe", 0, 0, "frozen")


def test_reasons_of_the_rule_contain_its_numbers():
    said = " ".join(advice(12_345, 678, 0.37).reasons)
    for number in ("12,345", "678", "0.37", f"{PLENTY_IMAGES:,}", str(PLENTY_PER_CLASS), str(NEAR)):
        assert number in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 0}, "images must be >= 1 and per_class > 0, got 0"),
        ({"per_class": 0}, "images must be >= 1 and per_class > 0, got 100 and 0"),
        ({"per_class": float("nan")}, "per_class > 0, got 100 and nan"),
        ({"similarity": 1.1}, r"similarity must be in \[0, 1\], got 1.1"),
        ({"similarity": float("nan")}, r"similarity must be in \[0, 1\], got nan"),
    ],
)
def test_rule_refuses_numbers_out_of_range(changed, message):
    with pytest.raises(OptionError, match=message):
        rule(**{"images": 100, "per_class": 10, "similarity": 0.5, "stages": STAGES, **changed})


def test_mode_rule_reads_the_evidence():
    looked = evidence(per_class=1000, similarity=0.2)
    expected = rule(images=2000, per_class=1000, similarity=0.2, stages=STAGES)
    assert choose(looked, mode="rule") == expected
    assert expected.strategy == "many_layers"
    assert decide(looked, mode="rule", batch_size=8) == complete(expected, looked, Conditions(batch_size=8))


def test_agreement_with_the_textbook_is_said():
    looked = evidence(score("top", 0.9), score("late", 0.6), similarity=0.9)
    assert "the measurements agree" in decide(looked).reasons[-1]
    assert "overrule" in decide(replace(looked, similarity=0.1)).reasons[-1]
    assert not any("textbook" in reason for reason in decide(replace(looked, similarity=None)).reasons)


def test_deciding_takes_less_than_a_millisecond():
    looked = evidence(*(score(f"s{i}", i / 30) for i in range(30)), similarity=0.5)
    decide(looked)
    start = time.perf_counter()
    for _ in range(100):
        decide(looked)
    assert time.perf_counter() - start < 1.0  # a tenth of that on a quiet machine


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "often"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(OptionError, match="budget must be > 0 seconds"):
        decide(evidence(), budget=budget)


def test_unknown_mode_offers_the_closest():
    with pytest.raises(OptionError, match="Unknown mode 'evidnce'. Closest known: evidence"):
        decide(evidence(), mode="evidnce")
    assert MODES == ("evidence", "rule")


def test_rule_without_similarity_says_why_and_what_to_pass():
    with pytest.raises(OptionError, match=r"needs the similarity of the data.*Pass similarity=S in \[0, 1\]"):
        decide(evidence(), mode="rule")
    unknown = SimilarityDetail(value=None, origin="unknown", note="The weights are random.")
    with pytest.raises(OptionError, match="could not be measured: The weights are random. Pass similarity=S"):
        decide(replace(evidence(), similarity_detail=unknown), mode="rule")
