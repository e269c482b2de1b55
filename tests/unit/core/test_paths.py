"""Paths as people write them, and places that cannot be written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from transferkit.core.errors import OptionError, RunFolderError
from transferkit.core.paths import MARKER, check_file, check_folder, expand, make_folder, mark_folder
from transferkit.data.own_output import is_own_folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~", "/home/x"), ("~/a b", "/home/x/a b"), ("a/~", "a/~"), ("~nobody-of-this-name/a", "~nobody-of-this-name/a")],
)
def test_home_is_meant_at_the_start_only(given, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert expand(given) == expand(Path(given)) == Path(expected)


def test_the_marker_is_the_first_thing_in_a_folder_and_the_data_knows_it(tmp_path):
    mark_folder(tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [MARKER]
    (tmp_path / "c").mkdir()
    own = [is_own_folder(tmp_path / name, lambda _: False) for name in ("a", "a/b", "c")]
    assert own == [True, True, False]


def test_a_folder_made_for_one_file_is_known_and_one_that_was_there_is_left_alone(tmp_path, monkeypatch):
    for name in ("empty", "full", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/notes.txt").touch()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("new/deep", "empty", "full", "here"):
        make_folder(tmp_path / name)
        make_folder(tmp_path / name)
    own = [is_own_folder(tmp_path / name, lambda _: False) for name in ("new", "new/deep", "empty", "full", "here")]
    assert own == [True, True, True, False, False]
    assert not is_own_folder(tmp_path / "new/deep", lambda _: True)


def test_what_lightning_leaves_is_no_class_unless_there_are_images_in_it(tmp_path):
    (tmp_path / "lightning_logs/version_0/checkpoints").mkdir(parents=True)
    (tmp_path / "other/version_0").mkdir(parents=True)
    assert is_own_folder(tmp_path / "lightning_logs", lambda _: False)
    assert not is_own_folder(tmp_path / "lightning_logs", lambda _: True)
    assert not is_own_folder(tmp_path / "other", lambda _: False)


def test_a_folder_that_is_a_file_or_below_one_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, problem in (
        ("file", "is a file, not a folder"),
        ("file/x/y", "is inside .*file"),
        ("dangling", "a file"),
    ):
        with pytest.raises(RunFolderError, match=f"{problem}.* out=DIR"):
            check_folder(tmp_path / name)
    check_folder(tmp_path / "new" / "er")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="is not writable"):
        check_folder(tmp_path / "locked" / "x")


@pytest.mark.parametrize(
    ("name", "problem"),
    [("m.pt", "must end in .onnx.*out=.*m.onnx"), ("m", "must end in .onnx"), ("dir", "is a folder.*dir/model.onnx")],
)
def test_a_file_of_another_kind_is_refused(name, problem, tmp_path):
    (tmp_path / "dir").mkdir()
    with pytest.raises(OptionError, match=problem):
        check_file(tmp_path / name, suffixes=(".onnx",), example="model")
    check_file(tmp_path / "a" / "M.ONNX", suffixes=(".onnx",), example="model")
