"""What geometry= and views= may say, however it is typed, and what is refused before any work."""

from __future__ import annotations

import pytest

from transferkit.core.errors import OptionError
from transferkit.records import Preprocessing
from transferkit.workflow.views.asked import apply_views, ask_views, distinct_geometries, refuse_for_tensors

OWN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.875)


@pytest.mark.parametrize(
    "typed",
    ["crop+squash+pad", "pad+crop+squash", " Crop + SQUASH +pad ", "crop,squash,pad", "crop squash pad",
     "pad+pad+squash+crop", ["squash", "crop", "pad"], ("PAD", "crop+squash")],
)  # fmt: skip
def test_order_case_spaces_and_repetition_do_not_matter(typed):
    assert ask_views(views=typed).views == ("crop", "squash", "pad")
    assert not ask_views(views=typed).mirror


@pytest.mark.parametrize(
    ("typed", "geometry", "views", "mirror"),
    [
        ("auto", None, None, False),
        (" AUTO ", None, None, False),
        (1, None, (), False),
        ("1", None, (), False),
        (["1"], None, (), False),
        ("squash", "squash", (), False),
        (["Pad"], "pad", (), False),
        ("mirror", None, (), True),
        ("squash+mirror", "squash", (), True),
        ("mirror+full+crop", None, ("crop", "full"), True),
        ("Wide + zoom", None, ("zoom", "wide"), False),
        ("zoom", "zoom", (), False),
    ],
)
def test_what_is_typed_is_what_is_meant(typed, geometry, views, mirror):
    asked = ask_views(views=typed)
    assert (asked.geometry, asked.views, asked.mirror) == (geometry, views, mirror)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sqash", r"Unknown view 'sqash'\. Closest known: squash\."),
        ("crop+pda", r"Unknown view 'pda'\. Closest known: pad\."),
        ("crop+miror", r"Closest known: mirror\."),
        ("letterbox", r"Unknown view 'letterbox'\. Known: crop, full, mirror, pad, squash, wide, zoom\."),
        (3, r"Unknown view '3'.*views=auto, views=1"),
        ("auto+pad", r"views=auto stands alone"),
        ("1+pad", r"views=1 stands alone"),
        ("", r"got ''"),
        (" + ", r"views must be auto, 1, or names"),
        (None, r"got None"),
        (True, r"got True"),
        ([], r"got \[\]"),
        ({"crop": 1}, r"views must be auto, 1, or names"),
    ],
)
def test_what_cannot_be_meant_is_refused(typed, said):
    with pytest.raises(OptionError, match=said):
        ask_views(views=typed)


@pytest.mark.parametrize("typed", ["squash", " SQUASH", "Squash "])
def test_a_geometry_is_a_name_however_typed(typed):
    assert ask_views(typed, 1).geometry == "squash"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sqaush", r"Unknown geometry 'sqaush'\. Closest known: squash\."),
        ("crop+pad", r"Several are averaged with views="),
        (1, r"Unknown geometry '1'"),
        (None, r"Unknown geometry 'None'"),
    ],
)
def test_a_geometry_that_there_is_not_is_refused(typed, said):
    with pytest.raises(OptionError, match=said):
        ask_views(typed)


def test_the_geometry_of_training_must_be_among_the_views_that_are_named():
    with pytest.raises(
        OptionError, match=r"geometry=full, which is not among views=crop\+pad\. Add it \(views=full\+crop\+pad\)"
    ):
        ask_views("full", "crop+pad")
    assert ask_views("full", "full+crop+pad").views == ("crop", "full", "pad")  # the remedy works
    with pytest.raises(OptionError, match="geometry=crop"):
        ask_views("crop", "squash")
    assert ask_views("pad", "mirror").geometry == "pad"


@pytest.mark.parametrize(("geometry", "views"), [("squash", "auto"), ("auto", "crop+pad"), ("auto", "mirror")])
def test_tensors_that_were_prepared_elsewhere_have_no_views(geometry, views):
    with pytest.raises(OptionError, match=r"preprocessed=True .* Leave geometry and views out"):
        refuse_for_tensors(ask_views(geometry, views))


@pytest.mark.parametrize(("geometry", "views"), [("auto", "auto"), ("auto", 1), ("crop", 1), ("crop", "auto")])
def test_what_is_left_open_asks_nothing_of_tensors(geometry, views):
    refuse_for_tensors(ask_views(geometry, views))


@pytest.mark.parametrize(
    ("sizes", "kept", "same"),
    [
        ([(40, 40), (8, 8)], ("crop", "full"), {"squash": "full", "pad": "full"}),
        ([(40, 40), (40, 30)], ("crop", "full", "squash", "pad"), {}),
        ([(33, 32), (320, 322)], ("crop", "full", "squash", "pad"), {}),
        ([(1000, 1001)], ("crop", "full"), {"squash": "full", "pad": "full"}),  # square within a pixel of the result
    ],
)
def test_geometries_that_show_the_same_are_found_by_what_they_do_to_these_sizes(sizes, kept, same):
    assert distinct_geometries(["crop", "full", "squash", "pad"], OWN, sizes) == (kept, same)


def test_a_checkpoint_whose_own_crop_keeps_everything_has_it_once():
    whole = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    assert distinct_geometries(["crop", "full"], whole, [(40, 30)]) == (("crop",), {"full": "crop"})
    squashed = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_mode="squash")
    assert distinct_geometries(["crop", "squash"], squashed, [(40, 30)]) == (("crop",), {"squash": "crop"})


def test_views_of_a_geometry_keep_the_checkpoints_own_crop():
    seen = apply_views(OWN, "squash", ["crop", "squash"], mirror=True)
    assert (seen.crop_mode, seen.crop_pct, seen.mirrored) == ("squash", 1.0, False)
    assert [view.name for view in seen.views] == ["crop", "squash", "crop+mirror", "squash+mirror"]
    own, squash, mirrored, _ = seen.each_view
    assert (own.crop_mode, own.crop_pct) == (OWN.crop_mode, OWN.crop_pct)
    assert squash == seen.primary
    assert (mirrored.crop_pct, mirrored.mirrored) == (OWN.crop_pct, True)
    assert apply_views(OWN, "crop", ["crop"], mirror=False) == OWN
