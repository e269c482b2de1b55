"""Tables of attributes as people write them: what is read, and what every mistake is answered with."""

from __future__ import annotations

import pytest

from transferkit.core.errors import DataError, OptionError
from transferkit.scarce.attribute_table import match_classes, read_attributes

GOOD = "class,big,striped\nzebra,1,yes\ncat,0.5,no\nhorse,1,False\n"


def write(tmp_path, text, name="animals.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [GOOD, GOOD.replace(",", ";"), "\ufeff" + GOOD, "# ours\n" + GOOD + "\n\n"])
def test_it_is_read_as_people_write_it(tmp_path, text):
    table = read_attributes(write(tmp_path, text))
    assert table.classes == ("zebra", "cat", "horse")
    assert table.attributes == ("big", "striped")
    assert table.values.tolist() == [[1, 1], [0.5, 0], [1, 0]]


def test_names_with_accents_and_spaces_match_in_any_unicode_form(tmp_path):
    path = write(tmp_path, "class,a,b\nCafe\u0301 noir,1,0\nth\u00e9,0,1\nnew,1,1\n", name="my t\u00e9st.csv")
    ordered, seen = match_classes(read_attributes(path), ["th\u00e9", "Caf\u00e9 noir"])
    assert (ordered.classes, seen) == (("th\u00e9", "Caf\u00e9 noir", "new"), 2)


def test_a_constant_column_is_left_out(tmp_path):
    table = read_attributes(write(tmp_path, "class,a,b,alive\nx,1,0,1\ny,0,1,1\nz,0,0,1\n"))
    assert (table.attributes, table.constant) == (("a", "b"), ("alive",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,a,b\nx,1,big\ny,0,1\n", "1 cell is no number .x, b: 'big'.; write numbers, or true and false"),
        ("class,a,b\nx,1,\ny,0,nan\n", "2 cells are no number"),
        ("class,a\nx,1\ny,0\n", "at least 2 attributes must differ between classes, got 1; a column per attribute"),
        ("class,a,b\nx,1,1\ny,0,1\n", "got 1 .'b' is the same for all."),
        ("class,a,b\nx,1,0\nx,0,1\n", "several rows of the same class: 'x'; keep one row per class"),
        ("class,a,b\n,1,0\nx,0,1\n", "1 rows have no class name in the first column"),
        ("class,a,a\nx,1,0\ny,0,1\n", "has several columns 'a'. Rename or remove them."),
        ("class,a,b\n", "has no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_attributes(write(tmp_path, text))


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(DataError) as raised:
        read_attributes(write(tmp_path, "class,a\nx,much\nx,0\n"))
    assert "several rows" in str(raised.value)
    assert "no number" in str(raised.value)


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_attributes(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is no table. attributes= reads .csv"):
        read_attributes(write(tmp_path, "{}", name="animals.json"))
    for wrong in (3, None, ""):
        with pytest.raises(OptionError, match="attributes must be the path of a table"):
            read_attributes(wrong)
    with pytest.raises(OptionError, match="attributes of 'x' must be values by name"):
        read_attributes({"x": [1, 2]})


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (["zebra", "dog"], "class 'dog' has images and no row; add one, or remove its images. "),
        (["zebra", "Cat"], "class 'Cat' has images and no row; is it 'cat'. Write both alike"),
        (["zebra", "cat", "horse"], "every class has images, so there is nothing to learn from attributes"),
    ],
)
def test_what_does_not_fit_the_images_is_said(tmp_path, seen, message):
    with pytest.raises(DataError, match=message):
        match_classes(read_attributes(write(tmp_path, GOOD)), seen)


def test_a_row_that_is_a_class_in_another_spelling_is_no_new_class(tmp_path):
    path = write(tmp_path, GOOD + "Zebra,1,1\n")
    with pytest.raises(DataError, match="rows that look like one class: 'zebra', 'Zebra'; remove one, or rename it"):
        match_classes(read_attributes(path), ["zebra", "cat"])
