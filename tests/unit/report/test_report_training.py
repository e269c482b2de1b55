"""What people see of a fine-tuning run: its epochs, what was trained, and whether it beat the probe."""

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
from transferkit.report._fine_tuning import find_phases
from transferkit.report.charts import CHARTS, Band, Chart, Dots, Line, ReferenceLine
from transferkit.report.charts.epochs import MAX_DOTS, draw_epochs
from transferkit.report.sections._headline import write_headline
from transferkit.report.sections._kept import write_kept
from transferkit.report.sections._learning import OPEN_CLAIMS, name_trained, write_learning
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


# ---- charts


def lines(chart: Chart) -> list[Line]:
    return [mark for mark in chart.marks if isinstance(mark, Line)]


def dots(chart: Chart) -> list[Dots]:
    return [mark for mark in chart.marks if isinstance(mark, Dots)]


def rules(chart: Chart, axis: str) -> list[ReferenceLine]:
    return [mark for mark in chart.marks if isinstance(mark, ReferenceLine) and mark.axis == axis]


def bands(chart: Chart) -> list[Band]:
    return [mark for mark in chart.marks if isinstance(mark, Band)]


def test_equal_epochs_are_equal_distances_and_a_lower_loss_lies_lower():
    loss, accuracy, rate = draw_epochs(TRAINING.epochs, best=4)
    assert [chart.heading for chart in (loss, accuracy, rate)] == [
        "Loss, nats",
        "Held-back accuracy",
        "Highest learning rate",
    ]
    train = lines(loss)[0]
    places = [(loss.plot.x(point.x), loss.plot.y(point.y)) for point in train.points]
    steps = [right[0] - left[0] for left, right in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 5, abs=0.02)
    heights = [y for _, y in places]  # the loss falls: y, counted from the top, rises
    assert heights == sorted(heights)
    best = max(lines(accuracy)[0].points, key=lambda point: point.y)
    marked = rules(accuracy, "x")[0]
    assert best.x == marked.at
    assert marked.label == "epoch 5"  # people count from 1
    assert [point for point in dots(accuracy)[0].points if point.radius] == [best]


def test_phases_tile_the_axis_between_their_epochs():
    chart = draw_epochs(TRAINING.epochs, best=None)[0]
    plot = chart.plot
    first, second = [(plot.x(band.low), plot.x(band.high)) for band in bands(chart)]
    assert (first[0], second[1]) == pytest.approx((plot.left, plot.right), abs=0.02)
    assert first[1] == pytest.approx(second[0], abs=0.02)
    assert second[1] - second[0] == pytest.approx(2 * (first[1] - first[0]), abs=0.02)
    points = lines(chart)[0].points
    assert plot.x(points[1].x) < second[0] < plot.x(points[2].x)
    assert [(phase.name, phase.first, phase.last) for phase in find_phases(TRAINING.epochs)] == [
        ("head first", 1, 2),
        ("last stages", 3, 6),
    ]


def test_one_phase_needs_no_marks_and_an_unknown_best_epoch_gets_none():
    charts = draw_epochs([epoch(0), epoch(1)], best=7)
    assert not any(bands(chart) or rules(chart, "x") for chart in charts)


def test_the_probe_is_drawn_beside_the_accuracy_only_and_stays_inside():
    charts = draw_epochs([epoch(0), epoch(1)], best=1, probe=0.2)
    assert [len(rules(chart, "y")) for chart in charts] == [0, 1, 0]
    plot, probe = charts[1].plot, rules(charts[1], "y")[0]
    assert plot.top <= plot.y(probe.at) <= plot.bottom
    assert plot.y(probe.at) > plot.y(lines(charts[1])[0].points[0].y)  # 20 % lies below 50 %


def test_without_held_back_images_there_is_no_chart_of_accuracy():
    charts = draw_epochs([epoch(0, val_loss=None, val_accuracy=None)], best=0)
    assert [chart.heading for chart in charts] == ["Loss, nats", "Highest learning rate"]
    assert [line.legend for line in lines(charts[0]) if line.points] == ["training, with everything added to the loss"]


def test_many_epochs_are_a_line_with_one_dot():
    for chart in draw_epochs([epoch(n) for n in range(MAX_DOTS + 1)], best=3):
        assert [len(mark.points) for mark in dots(chart)] == [1] * len(lines(chart))
        assert [len(mark.points) for mark in lines(chart)] == [MAX_DOTS + 1] * len(lines(chart))


def test_the_legend_of_the_epochs_is_shared(trained_record):
    page = render(trained_record)
    start = page.index('data-chart="epochs"')
    legend = Page(page[page.index("<ul", start) : page.index("</ul>", start) + 5]).text
    for words in ("training, with everything added to the loss", "held-back images", "the probe on the same images"):
        assert legend.count(words) == 1


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
def test_whatever_was_measured_stays_inside_its_chart(measured):
    epochs = [
        epoch(n, train_loss=loss, val_loss=val, val_accuracy=share, lr=lr)
        for n, (loss, val, share, lr) in enumerate(measured)
    ]
    for chart in draw_epochs(epochs, best=0, probe=0.5):
        assert len(chart.y.ticks) <= 8
        assert len(chart.x.ticks) <= 6
        slack = 1e-6 * abs(chart.y.high - chart.y.low)
        for line in lines(chart):
            for point in line.points:
                assert chart.x.low < point.x < chart.x.high
                assert chart.y.low - slack <= point.y <= chart.y.high + slack


# ---- what was trained


def test_the_summary_counts_what_was_trained_once_and_names_the_rest():
    text = plain(write_learning(TRAINING.claims).sentence)
    assert text == (
        "Trained: 2.1 of 3.3 million parameters (the head and stage top); frozen: the rest, with its normalisation "
        "statistics. Normalisation statistics are updated in the trained stages."
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
def test_what_was_trained_is_named_as_people_would(learning, said):
    assert (
        name_trained([claim(stage, 0.1 if stage in learning else 0) for stage in ("a", "b", "c", "d", "head")]) == said
    )


def test_a_part_of_a_stage_is_called_a_part():
    claims = [claim("a", 0.1, rule="* (norm)", statistics="fixed"), claim("a", 0, parameters=90, statistics="fixed")]
    learning = write_learning([*claims, claim("head", 0.1)])
    assert learning.sentence == (
        "Trained: 20 of 110 parameters (the head and part of stage a); frozen: the rest. "
        "Normalisation statistics are frozen in all stages."
    )
    assert [cell.kind for cell in learning.phases[0].cells] == ["part", "all"]
    assert learning.kinds == ("all", "part")


def test_statistics_are_not_mentioned_where_there_are_none():
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
    assert "Show the parameters of each rule: 13 rows" in section(page, "training")


def test_every_claim_is_in_the_table_stem_to_head(trained_record):
    text = section(render(trained_record), "training")
    table = text[text.index("Running statistics") :]
    for part in ("Phase 1: head first", "Phase 2: last stages", "on 50,900", "updated", "frozen"):
        assert part in table
    last = table[table.index("Phase 2") :]
    assert last.index("stem") < last.index("blocks.0") < last.index("top") < last.index("head")


# ---- what was kept


def test_the_best_epoch_and_the_phases_are_said(trained_record):
    text = section(render(trained_record), "training")
    assert "6 epochs in 2 phases, 60 s. Epoch 5 was best on the 100 held-back images: accuracy 90.0 %, loss 0.5" in text
    assert "1: head first (epochs 1 to 2), 2: last stages (epochs 3 to 6)." in " ".join(text.split())
    assert "The batch was halved to 16." in text


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            PROBE,
            "The probe was kept: the returned model contains nothing from fine-tuning. On the 100 held-back images "
            "its accuracy is 85.0 % (log loss 0.55), the fine-tuned network's is 90.0 % (log loss 0.5): 5 images fewer "
            "classified correctly.",
        ),
        (
            AVERAGE,
            "The average of the fine-tuned network and the probe was kept, weighted 50 % to 50 %. On the 100 held-back "
            "images its accuracy is 92.0 % (log loss 0.45), the probe's is 85.0 % (log loss 0.55): 7 images more "
            "classified correctly.",
        ),
        (
            TUNED,
            "The fine-tuned network was kept. On the 100 held-back images its accuracy is 90.0 % (log loss 0.5), "
            "the probe's is 85.0 % (log loss 0.55): 5 images more classified correctly.",
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
    assert "The test images played no part in it." in text
    assert "The test images" not in section(render(replace(trained_record, metrics={})), "kept")


def test_a_kept_one_that_is_not_among_the_candidates_still_shows(trained_record):
    training = replace(TRAINING, candidates=(), kept=TUNED, held_back=0)
    found = write_kept(replace(trained_record, training=training))
    assert found.sentence == "The fine-tuned network was kept. There was nothing to compare it with."
    assert [row.chosen for row in found.rows] == [True]


def test_equals_are_called_equals(trained_record):
    tuned = replace(TUNED, accuracy=PROBE.accuracy)
    training = replace(TRAINING, candidates=(PROBE, tuned), kept=tuned)
    assert write_kept(replace(trained_record, training=training)).sentence.endswith(
        ": as many images classified correctly."
    )


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
    assert "fine-tuning of a few layers, reading the top stage. Trained: the head and stage top." in text
    assert (
        "Learning rate 0.002, 0.1 times the backbone's original rate; batch-normalisation statistics are updated"
        in text
    )
    assert "The returned model is the average of the fine-tuned network and the probe" in text
    assert "closed form" not in text


def test_a_decision_to_fine_tune_without_a_record_is_not_called_a_closed_form(trained_record):
    text = section(render(replace(trained_record, training=None)), "decision")
    assert "Learning rate 0.002" in text
    assert "closed form" not in text


def test_normalisation_without_statistics_is_not_mentioned(trained_record):
    claims = tuple(replace(one, statistics="none") for one in TRAINING.claims)
    text = section(render(replace(trained_record, training=replace(TRAINING, claims=claims))), "decision")
    assert "statistics" not in text


def test_the_stage_that_is_read_was_not_chosen_for_its_frozen_accuracy(record, trained_record):
    text = section(render(trained_record), "stages")
    assert "chosen" not in text
    assert "accuracy before any fine-tuning" in text
    assert "accuracy before any fine-tuning" not in section(render(record), "stages")


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
    assert "Notes" not in Page(page).text


def test_epochs_without_validation_have_no_best_one(trained_record):
    epochs = tuple(epoch(n, val_loss=None, val_accuracy=None) for n in range(3))
    found = write_training(replace(TRAINING, epochs=epochs, best_epoch=2))
    assert found.sentence.endswith("No images were held back to compare the epochs on.")
    assert not any(best for _, best in found.rows)
    figure = CHARTS["epochs"](replace(trained_record, training=replace(TRAINING, epochs=epochs, best_epoch=2)))
    assert not any(rules(chart, "x") for chart in figure.charts)


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


def test_a_fit_without_a_finite_held_back_loss_has_no_best_epoch():
    broken = replace(epoch(0), train_loss=math.nan, val_loss=math.nan, val_accuracy=0.1)
    training = replace(build_training(), epochs=(broken,), best_epoch=0)
    assert "No epoch ended with a finite held-back loss." in write_training(training).sentence


def test_few_epochs_are_not_said_to_have_a_sound_shape():
    few = replace(build_training(), epochs=(epoch(0), epoch(1)), best_epoch=0, symptoms=())
    assert "fewer than 5 epochs show no shape" in write_training(few).reassurance
    one = replace(few, epochs=(epoch(0),))
    assert write_training(one).reassurance.startswith("No sign of trouble. The training loss is ")
