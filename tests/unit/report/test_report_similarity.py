"""What the report says about similarity, and that it says nothing where it was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from transferkit.records import RunRecord, SimilarityDetail, StageDistance
from transferkit.report import render
from transferkit.report.sections._similarity import write_similarity

STAGES = tuple(
    StageDistance(stage=name, distance=distance, error=0.002, w2=0.1, kl=0.05, channels=1280)
    for name, distance in (("stem", -0.001), ("top", 0.04))
)
MEASURED = SimilarityDetail(
    value=0.72, low=0.7, high=0.74, origin="norm statistics", note="Measured so.", images=347, stages=STAGES
)


def test_the_number_its_interval_and_each_stage_are_there():
    section = write_similarity(MEASURED)
    assert "Similarity 0.72 on a scale from 0 to 1 (95 % interval 0.70 to 0.74), measured on 347" in section.sentence
    assert [row.name for row in section.rows] == ["stem", "top"]
    for row in section.rows:
        assert 0 <= row.low <= row.at <= row.high <= 100
    assert section.rows[0].at == 0  # below 0 by chance is drawn at 0
    assert section.rows[1].channels == "1,280"


def test_what_is_not_known_is_said_without_a_plot():
    section = write_similarity(SimilarityDetail(value=None, origin="unknown", note="No batch normalisation."))
    assert "not known" in section.sentence
    assert (section.axis, section.rows) == (None, ())
    assert write_similarity(None) is None


def test_an_estimate_from_a_classifier_is_called_one_and_needs_no_plot():
    section = write_similarity(replace(MEASURED, origin="head confidence", note="It is rough.", stages=()))
    assert "0.70 to 0.74), estimated from the predictions of the backbone's own classifier on 347 training images." in (
        section.sentence
    )
    assert (section.note, section.axis, section.rows) == ("It is rough.", None, ())


def test_other_measures_have_names_for_people():
    section = write_similarity(replace(MEASURED, others={"mmd": 0.0123, "brand_new": 2.0}))
    assert section.others == (
        ("Maximum mean discrepancy, squared and unbiased (0: identical)", "0.0123"),
        ("brand_new", "2"),
    )


@pytest.mark.parametrize("detail", [None, MEASURED, replace(MEASURED, others={"mmd": 0.1})])
def test_the_page_has_the_section_if_somebody_looked(record: RunRecord, detail):
    page = render(replace(record, evidence=replace(record.evidence, similarity_detail=detail)))
    assert ('id="similarity"' in page) == (detail is not None)
    assert ('href="#similarity"' in page) == (detail is not None)
    assert ("Comparison with source images" in page) == (detail is not None and bool(detail.others))
