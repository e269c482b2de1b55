"""What people see of a fine-tuning run: its epochs, what learnt, and whether it beat the probe."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.report.conftest import build_training
from tests.unit.report.test_report_render import Page, section
from transferkit.records import Candidate, Claim, Epoch, RunRecord
from transferkit.report import render
from transferkit.report._epochs import DOTTED, draw_epochs, find_phases, fit_axis
from transferkit.report.sections._headline import write_headline
from transferkit.report.sections._kept import write_kept
from transferkit.report.sections._learning import OPEN_CLAIMS, name_learnt, write_learning
from transferkit.report.sections._training import MAX_EPOCH_ROWS, write_training
from transferkit.strategies.plan import STRATEGIES

TRAINING = build_training()
PROBE, AVERAGE, TUNED = TRAINING.candidates


def epoch(number: int, **other) -> Epoch:
    facts = {"phase": "all", "train_loss": 1.0, "lr": 0.1, "seconds": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
    return Epoch(number=number, **{**facts, **other})


def claim(stage: str, lr: float, *, phase: str = "all", rule: str = "*", parameters: int = 10, **other) -> Claim:
    facts = {"tensors": 1, "decayed": parameters if lr else 0, "statistics": "none"}
    return Claim(phase=phase, rule=rule, stage=stage, parameters=parameters, lr=lr, **{**facts, **other})


def kept(record: RunRecord, one: Candidate) -> RunRecord:
    return replace(record, training=replace(record.training, kept=one))


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u00a0", " ")


# ---- drawing


def test_equal_epochs_are_equal_distances_and_a_lower_loss_lies_lower():
    loss, accuracy, rate = draw_epochs(TRAINING.epochs, best=4)
    assert [panel.title for panel in (loss, accuracy, rate)] == [
        "Loss, nats",
        "Held-back accuracy",
        "Highest learning rate",
    ]
    train = next(line for line in loss.lines if line.kind == "train")
    steps = [right.x - left.x for left, right in itertools.pairwise(train.dots)]
    assert steps == pytest.approx([steps[0]] * 5, abs=0.02)
    heights = [dot.y for dot in train.dots]  # the loss falls: y, counted from the top, rises
    assert heights == sorted(heights)
    best = min(accuracy.lines[0].dots, key=lambda dot: dot.y)
    assert best.best
    assert best.x == accuracy.best.at
    assert accuracy.best.text == "epoch 5"  # people count from 1


def test_phases_tile_the_axis_between_their_epochs():
    panel = draw_epochs(TRAINING.epochs, best=None)[0]
    first, second = panel.bands
    assert (first.x, second.x + second.width) == pytest.approx((panel.left, panel.left + panel.across), abs=0.02)
    assert first.x + first.width == pytest.approx(second.x, abs=0.02)
    assert second.width == pytest.approx(2 * first.width, abs=0.02)
    dots = panel.lines[0].dots
    assert dots[1].x < second.x < dots[2].x
    assert [(phase.name, phase.first, phase.last) for phase in find_phases(TRAINING.epochs)] == [
        ("head first", 1, 2),
        ("last stages", 3, 6),
    ]


def test_one_phase_needs_no_marks_and_an_unknown_best_epoch_gets_none():
    panels = draw_epochs([epoch(0), epoch(1)], best=7)
    assert all(panel.bands == () and panel.best is None for panel in panels)


def test_the_probe_is_drawn_beside_the_accuracy_only_and_stays_inside():
    panels = draw_epochs([epoch(0), epoch(1)], best=1, probe=0.2)
    assert [panel.probe is not None for panel in panels] == [False, True, False]
    assert panels[1].top <= panels[1].probe <= panels[1].top + panels[1].down
    assert panels[1].probe > panels[1].lines[0].dots[0].y  # 20 % lies below 50 %


def test_without_held_back_images_there_is_no_panel_of_accuracy():
    panels = draw_epochs([epoch(0, val_loss=None, val_accuracy=None)], best=0)
    assert [panel.title for panel in panels] == ["Loss, nats", "Highest learning rate"]
    assert [line.kind for line in panels[0].lines] == ["train"]


def test_many_epochs_are_a_line_with_one_dot():
    panels = draw_epochs([epoch(n) for n in range(DOTTED + 1)], best=3)
    for panel in panels:
        for line in panel.lines:
            assert len(line.dots) == 1
            assert line.path.count("L") == DOTTED


@given(
    st.lists(
        st.tuples(
            st.floats(-10, 1e30) | st.sampled_from([math.nan, math.inf]),
            st.none() | st.floats(0, 1e6),
            st.none() | st.floats(0, 1),
            st.floats(0, 10),
        ),
        max_size=40,
    )
)
def test_whatever_was_measured_stays_inside_its_panel(measured):
    epochs = [
        epoch(n, train_loss=loss, val_loss=val, val_accuracy=share, lr=lr)
        for n, (loss, val, share, lr) in enumerate(measured)
    ]
    for panel in draw_epochs(epochs, best=0, probe=0.5):
        assert len(panel.rows) <= 8
        assert len(panel.columns) <= 6
        for line in panel.lines:
            for dot in line.dots:
                assert panel.left <= dot.x <= panel.left + panel.across
                assert panel.top <= dot.y <= panel.top + panel.down


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=9))
def test_an_axis_has_round_ends_around_all_values(values):
    scale = fit_axis(values)
    slack = 1e-6 * max(map(abs, values)) + 1e-12
    assert scale.low <= min(values) + slack
    assert max(values) - slack <= scale.high
    assert [tick.at for tick in scale.ticks] == sorted({tick.at for tick in scale.ticks})


# ---- what learnt


def test_the_summary_counts_what_learnt_once_and_names_the_rest():
    text = plain(write_learning(TRAINING.claims).sentence)
    assert text == (
        "Trained: 2.1 of 3.3 million parameters (the head and stage top); frozen: the rest, its running statistics "
        "included. In the stages that are trained, running statistics of normalisation are updated."
    )


@pytest.mark.parametrize(
    ("learning", "said"),
    [
        (["head"], "the head alone"),
        (["b", "c", "d", "head"], "the head and the last 3 stages, b to d"),
        (["a", "b", "c", "d", "head"], "the head and all 4 stages"),
        (["a", "b", "head"], "the head and 2 stages, a to b"),
        (["b"], "stage b"),
        (["a", "c", "head"], "the head and stages a and c"),
        ([], ""),
    ],
)
def test_what_learnt_is_named_as_people_would(learning, said):
    assert (
        name_learnt([claim(stage, 0.1 if stage in learning else 0) for stage in ("a", "b", "c", "d", "head")]) == said
    )


def test_a_part_of_a_stage_is_called_a_part():
    claims = [claim("a", 0.1, rule="* (norm)", statistics="fixed"), claim("a", 0, parameters=90, statistics="fixed")]
    learning = write_learning([*claims, claim("head", 0.1)])
    assert learning.sentence == (
        "Trained: 20 of 110 parameters (the head and a part of stage a); frozen: the rest. "
        "Running statistics of normalisation are frozen in all stages."
    )
    assert [cell.kind for cell in learning.phases[0].cells] == ["part", "all"]
    assert learning.kinds == ("all", "part")


def test_nothing_is_said_of_running_statistics_where_there_are_none():
    assert write_learning([claim("a", 0.1), claim("head", 0.1)]).sentence == "All 20 parameters are trained."
    assert "statistics" not in write_learning([claim("a", 0), claim("head", 0.1)]).sentence
    assert write_learning([]) is None


def test_the_fields_of_a_phase_tile_its_row():
    for row in write_learning(TRAINING.claims).phases:
        assert [cell.x for cell in row.cells] == pytest.approx([0, 25, 50, 75])
        assert sum(cell.width for cell in row.cells) == pytest.approx(100)


def test_a_long_table_of_claims_is_folded(trained_record):
    few = write_learning([claim(f"s{n}", 0.1) for n in range(OPEN_CLAIMS)])
    many = [claim(f"s{n}", 0.1) for n in range(OPEN_CLAIMS + 1)]
    assert not few.folded
    assert write_learning(many).folded
    page = render(replace(trained_record, training=replace(TRAINING, claims=tuple(many))))
    assert "takes hold of: 13 rows" in section(page, "training")


def test_every_claim_is_in_the_table_stem_to_head(trained_record):
    text = section(render(trained_record), "training")
    table = text[text.index("Running statistics") :]
    for part in ("Phase 1: head first", "Phase 2: last stages", "on 50,900", "stay as they were", "updated", "frozen"):
        assert part in table
    last = table[table.index("Phase 2") :]
    assert last.index("stem") < last.index("blocks.0") < last.index("top") < last.index("head")


# ---- what was kept


def test_the_best_epoch_and_the_phases_are_said(trained_record):
    text = section(render(trained_record), "training")
    assert "6 epochs in 2 phases, 60 s. Epoch 5 did best on the 100 held-back images: accuracy 90.0 %, loss 0.5" in text
    assert "1: head first (epochs 1 to 2), 2: last stages (epochs 3 to 6)." in " ".join(text.split())
    assert "The batch was halved to 16." in text


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            PROBE,
            "Kept is the probe: nothing that training changed is in the model. On the 100 held-back images its "
            "accuracy is 85.0 % (log loss 0.55), that of the fine-tuned network 90.0 % (log loss 0.5): 5 images fewer.",
        ),
        (
            AVERAGE,
            "Kept is the average of the fine-tuned network and the probe, 50 % to 50 %. On the 100 held-back images "
            "its accuracy is 92.0 % (log loss 0.45), that of the probe 85.0 % (log loss 0.55): 7 images more.",
        ),
        (
            TUNED,
            "Kept is the fine-tuned network. On the 100 held-back images its accuracy is 90.0 % (log loss 0.5), "
            "that of the probe 85.0 % (log loss 0.55): 5 images more.",
        ),
    ],
)
def test_the_kept_one_is_compared_with_its_rival(trained_record, one, sentence):
    found = write_kept(kept(trained_record, one))
    assert plain(found.sentence) == sentence
    assert [row.chosen for row in found.rows] == [other == one for other in TRAINING.candidates]
    for row in found.rows:
        assert 0 <= row.low <= row.at <= row.high <= 100


def test_the_images_behind_the_comparison_are_named(trained_record):
    text = section(render(trained_record), "kept")
    assert "They are a fifth of the training images." in text
    assert "The test images took no part in it." in text
    assert "The test images" not in section(render(replace(trained_record, metrics={})), "kept")


def test_a_kept_one_that_is_not_among_the_candidates_still_shows(trained_record):
    training = replace(TRAINING, candidates=(), kept=TUNED, held_back=0)
    found = write_kept(replace(trained_record, training=training))
    assert found.sentence == "Kept is the fine-tuned network. There was nothing to compare it with."
    assert [row.chosen for row in found.rows] == [True]


def test_equals_are_called_equals(trained_record):
    tuned = replace(TUNED, accuracy=PROBE.accuracy)
    training = replace(TRAINING, candidates=(PROBE, tuned), kept=tuned)
    assert write_kept(replace(trained_record, training=training)).sentence.endswith(": as many.")


# ---- the rest of the page


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            PROBE,
            "A linear classifier on frozen features of packaged/tiny; fine-tuning of a few layers was tried and not",
        ),
        (AVERAGE, "reading the top stage of packaged/tiny, averaged with a linear classifier on frozen features."),
        (TUNED, "Fine-tuning of a few layers, reading the top stage of packaged/tiny."),
    ],
)
def test_the_headline_names_what_is_returned(trained_record, one, said):
    assert said in write_headline(kept(trained_record, one)).sentence


def test_without_a_split_the_headline_is_of_the_held_back_images(trained_record):
    head = write_headline(replace(trained_record, metrics={}))
    assert plain(head.figure) == "92.0 %"
    assert head.subject == "accuracy on the 100 held-back images"
    assert head.caveat.startswith("The 12 test images were not scored yet. Choices were made on these images")


def test_the_decision_speaks_of_fine_tuning(trained_record):
    text = section(render(trained_record), "decision")
    assert "fine-tuning of a few layers, reading the top stage. Fine-tuned: the head and stage top." in text
    assert "Learning rate 0.002, 0.1 of the backbone's own; where layers learn, batch normalisation" in text
    assert "What is returned is its average with the probe" in text
    assert "closed form" not in text


def test_a_decision_to_fine_tune_without_a_record_is_not_called_a_closed_form(trained_record):
    text = section(render(replace(trained_record, training=None)), "decision")
    assert "Learning rate 0.002" in text
    assert "closed form" not in text


def test_normalisation_without_statistics_is_not_spoken_of(trained_record):
    claims = tuple(replace(one, statistics="none") for one in TRAINING.claims)
    text = section(render(replace(trained_record, training=replace(TRAINING, claims=claims))), "decision")
    assert "statistics" not in text


def test_the_stage_that_is_read_was_not_chosen_for_its_frozen_accuracy(record, trained_record):
    text = section(render(trained_record), "stages")
    assert "chosen" not in text
    assert "from before any fine-tuning" in text
    assert "from before any fine-tuning" not in section(render(record), "stages")


def test_the_frozen_pass_and_the_epochs_are_told_apart(trained_record):
    text = section(render(trained_record), "timings")
    assert "Before training: the backbone ran over 12 images" in text
    assert "Then 6 epochs of about 10 s each" in text


def test_the_rate_of_the_original_training_is_among_the_facts(record):
    spec = replace(
        record.evidence.backbone, original_lr=0.016, original_batch=256, original_optimizer="rmsprop", original_by="me"
    )
    text = section(render(replace(record, evidence=replace(record.evidence, backbone=spec))), "reproduce")
    assert "0.016 at batch 256, rmsprop (me)" in text
    assert "Learning rate" not in section(render(record), "reproduce")


@pytest.mark.parametrize(
    "strategy",
    ["linear_probe", "few_layers", "many_layers", "lp_ft", "norm_only", "bias_only", "surgical", "lora", *STRATEGIES],
)
def test_every_strategy_has_words_of_its_own(strategy):
    from transferkit.report._words import STRATEGIES as WORDS

    assert strategy in WORDS


def test_a_closed_form_has_neither_section(record):
    page = Page(render(record))
    assert not {"training", "kept"} & set(page.ids)
    assert "#training" not in [value for _, _, value in page.attributes]
    assert write_training(None) is None


def test_both_sections_stand_once_and_are_linked(trained_record):
    page = Page(render(trained_record))
    for name in ("training", "kept"):
        assert page.ids.count(name) == 1
        assert ("a", "href", f"#{name}") in page.attributes


def test_bare_training_is_said_to_be_bare(trained_record):
    training = replace(TRAINING, claims=(), epochs=(), candidates=(), notes=(), how="")
    page = render(replace(trained_record, training=training))
    assert "No epochs were recorded." in section(page, "training")
    assert "Worth knowing" not in Page(page).text


def test_epochs_without_validation_have_no_best_one():
    epochs = tuple(epoch(n, val_loss=None, val_accuracy=None) for n in range(3))
    found = write_training(replace(TRAINING, epochs=epochs, best_epoch=2))
    assert found.sentence.endswith("Nothing was held back to tell the epochs apart.")
    assert not any(best for _, best in found.rows)
    assert all(panel.best is None for panel in found.panels)


def test_a_loss_that_was_not_finite_is_said_and_not_drawn(trained_record):
    epochs = (epoch(0), epoch(1, train_loss=math.nan, val_loss=math.inf), epoch(2))
    page = render(replace(trained_record, training=replace(TRAINING, epochs=epochs, best_epoch=2)))
    assert "The training loss was not finite in 1 of them." in section(page, "training")
    assert "nan" not in Page(page).text
    assert not any("nan" in value or "inf " in value for _, name, value in Page(page).attributes if name in ("d", "cy"))


def test_of_a_thousand_epochs_some_are_listed_the_best_and_the_last_among_them():
    epochs = tuple(epoch(n) for n in range(1000))
    found = write_training(replace(TRAINING, epochs=epochs, best_epoch=501))
    assert len(found.rows) <= MAX_EPOCH_ROWS + 2
    assert [row[0] for row, best in found.rows if best] == ["502"]
    assert found.rows[-1][0][0] == "1,000"
    assert found.more == "Every 5th epoch, the best and the last one."


def test_hostile_names_of_phases_rules_and_stages_are_text(trained_record):
    hostile = '</title><script>alert("1")</script>'
    claims = tuple(replace(one, phase=hostile, rule=hostile, stage=hostile) for one in TRAINING.claims)
    epochs = tuple(replace(one, phase=hostile if one.number < 3 else "x") for one in TRAINING.epochs)
    training = replace(TRAINING, claims=claims, epochs=epochs, how=hostile, notes=(hostile,))
    page = Page(render(replace(trained_record, training=training)))
    assert "script" not in page.tags
    assert hostile in page.text
